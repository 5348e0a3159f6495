"""The SQLite database that all sweeps of a storage share by default. It exists with its complete schema, or not at all.

MLflow creates the schema in some thirty steps and refuses a database whose creation was cut off, for example by a full
disk or a killed process. So the database is created under another name and then linked to its place.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient


def make_database(path: Path, scratch: Path) -> None:
    """Create an MLflow database at `path`, if there is none. Several sweeps may do this at the same time.

    `scratch` is a folder that no other process uses; what a killed process left in it is deleted.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    if path.exists():
        return
    scratch.mkdir(parents=True)
    new = scratch / path.name
    new.touch()  # SQLite makes files that only their owner may write, whatever the umask allows a team
    MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)  # the first query makes the schema
    # A link, not a rename: a rename would replace the database that another sweep has just put there.
    with suppress(FileExistsError):
        os.link(new, path)
    shutil.rmtree(scratch, ignore_errors=True)
