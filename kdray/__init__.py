"""Distil a large NLP model into the best small one for a use. What a sweep script imports stands in `__init__.pyi`.

Names are imported when they are first used: a training worker that imports `kdray.training.trial` loads no MLflow and
no Optuna.
"""

import os

import lazy_loader

for _name, _value in (
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    # Where the package `kernels` is installed, transformers would download programs for some layers, and run them.
    ("USE_HUB_KERNELS", "OFF"),
):
    # The libraries read their variable when they are imported, which is after this line. Ray's is set in `slots`.
    os.environ.setdefault(_name, _value)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
