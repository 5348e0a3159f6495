"""The SQLite database that all sweeps of a storage share by default: there with its whole schema, or not there.

MLflow makes it in thirty steps and does not use one that was left half made; a full disk or a killed process is enough.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient


def make_database(path: Path) -> None:
    """Make an MLflow database where there is none; of several processes that try at once, one has its way."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        made = Path(folder) / path.name
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        with suppress(FileExistsError):
            os.link(made, path)
