"""The SQLite database that all sweeps of a storage share by default: there with its whole schema, or not there.

MLflow makes it in thirty steps and does not use one that was left half made; a full disk or a killed process is enough.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient


def make_database(path: Path, workshop: Path) -> None:
    """Make an MLflow database where there is none; of several sweeps that try at once, one has its way.

    `workshop` is a folder that nobody else uses; what a killed process left there is removed.
    """
    shutil.rmtree(workshop, ignore_errors=True)
    if path.exists():
        return
    workshop.mkdir(parents=True)
    made = workshop / path.name
    MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
    with suppress(FileExistsError):
        os.link(made, path)
    shutil.rmtree(workshop, ignore_errors=True)
