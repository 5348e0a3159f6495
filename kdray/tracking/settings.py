"""The address of the MLflow store, and how long to wait for a server. Settings only: nothing is opened here."""

import re
from urllib.parse import urlparse

from pydantic import Field, field_validator

from kdray.settings import Settings
from kdray.storage.paths import StoragePaths

_SERVED = ("http", "https", "databricks")
"""Schemes of a server, which decides itself where it keeps artifacts."""
_SCHEMES = (*_SERVED, "sqlite", "postgresql", "mysql", "mssql")
_SECRETS = (
    (re.compile(r"://[^/@\s]+@"), "://***@"),
    (re.compile(r"([?&][^=&\s]*(?:password|passwd|token|secret)[^=&\s]*=)[^&\s]+", re.IGNORECASE), r"\1***"),
)
"""Pattern and replacement: name and password before the host, and secrets in the query."""


class Tracking(Settings):
    """Where the runs of the sweep are written; by default a SQLite file and a folder in the storage."""

    enabled: bool = True
    uri: str | None = None
    """MLflow's tracking URI. None: the SQLite file in the storage."""
    experiment: str = "kdray"
    registry: bool = True
    """Register a confirmed student in MLflow's model registry at the end of the sweep."""
    model: str | None = None
    """The name of the registered model; several sweeps may share it. None: the name of the sweep."""
    timeout_s: int = Field(10, ge=1)
    """Seconds that one HTTP request waits for an answer before it is tried again. Only the sending thread waits."""
    patience_s: float = Field(30.0, ge=0)
    """Seconds that the end of a sweep, and `kdray sync`, wait for a server that accepts nothing."""

    @field_validator("uri")
    @classmethod
    def _check_scheme(cls, uri: str | None) -> str | None:
        scheme = urlparse(uri or "sqlite:").scheme.split("+")[0]
        if scheme not in _SCHEMES:
            allowed = ", ".join(f"{name}://" for name in _SCHEMES)
            raise ValueError(
                f"MLflow has no store at {uri!r}; allowed: {allowed} (a file: sqlite:////folder/mlflow.db)."
            )
        return uri

    @field_validator("model")
    @classmethod
    def _check_model_name(cls, model: str | None) -> str | None:
        # MLflow refuses / and : in the name; ' would end the string in the filter that finds a version.
        if model is not None and (not model.strip() or set(model) & set("/:'")):
            raise ValueError(
                f"no registered model can be called {model!r}; leave out / : ' and use at least one other character."
            )
        return model

    def uri_in(self, storage: StoragePaths) -> str:
        """The tracking URI for a sweep in this storage."""
        return self.uri or default_uri(storage)

    def artifacts_in(self, storage: StoragePaths) -> str | None:
        """The URI of the folder for artifacts; None where a server decides that.

        Beside a plain database MLflow would write artifacts into the working directory of the command, and a job on a
        cluster loses that folder.
        """
        return None if urlparse(self.uri_in(storage)).scheme in _SERVED else storage.tracking_artifacts.as_uri()


def default_uri(storage: StoragePaths) -> str:
    """The tracking URI of the SQLite store that all sweeps of this storage share."""
    return f"sqlite:///{storage.tracking_database}"


def mask_secrets(text: str) -> str:
    """The text with the user name, password and token of each address in it replaced by `***`."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
