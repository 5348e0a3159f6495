"""Distil a large NLP model into the best small one for a use. What a sweep script imports stands in `__init__.pyi`.

Names are imported when they are first used: a training worker that imports `kdray.training.trial` loads no MLflow, no Optuna.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
