"""Where a sweep's runs go, and how long a server may be silent: settings only, nothing is opened here."""

import re
from urllib.parse import urlparse

from pydantic import Field, field_validator

from kdray.settings import Settings
from kdray.storage.paths import StoragePaths

_SERVED = ("http", "https", "databricks")
_SCHEMES = (*_SERVED, "sqlite", "postgresql", "mysql", "mssql")
_SECRETS = (
    (re.compile(r"://[^/@\s]+@"), "://***@"),
    (re.compile(r"([?&][^=&\s]*(?:password|passwd|token|secret)[^=&\s]*=)[^&\s]+", re.IGNORECASE), r"\1***"),
)


class Tracking(Settings):
    """Where the sweep's runs go: by default a SQLite file and a folder in the storage."""

    enabled: bool = True
    uri: str | None = None
    """MLflow's tracking URI."""
    experiment: str = "kdray"
    registry: bool = True
    """Put a confirmed student into MLflow's model registry at the end of the sweep."""
    model: str | None = None
    """What the registered model is called; several sweeps may share one. None: as the sweep."""
    timeout_s: int = Field(10, ge=1)
    """How long one HTTP request waits for an answer, before it is tried again. Only the sending thread waits."""
    patience_s: float = Field(30.0, ge=0)
    """How long the end of a sweep, and `kdray sync`, wait for a server that says nothing."""

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        scheme = urlparse(uri or "sqlite:").scheme.split("+")[0]
        if scheme not in _SCHEMES:
            allowed = ", ".join(f"{name}://" for name in _SCHEMES)
            raise ValueError(
                f"MLflow has no store at {uri!r}; allowed: {allowed} (a file: sqlite:////folder/mlflow.db)."
            )
        return uri

    @field_validator("model")
    @classmethod
    def _registrable(cls, model: str | None) -> str | None:
        if model is not None and (not model.strip() or set(model) & set("/:'")):
            raise ValueError(f"no registered model can be called {model!r}; leave out / : ' and give it some letters.")
        return model

    def uri_in(self, storage: StoragePaths) -> str:
        """The store that a sweep in this storage writes to."""
        return self.uri or default_uri(storage)

    def artifacts_in(self, storage: StoragePaths) -> str | None:
        """Where that store keeps files; None where its server decides. Beside a database alone MLflow would put them
        into whatever folder the sweep was begun in, which a job of a cluster loses."""
        return None if urlparse(self.uri_in(storage)).scheme in _SERVED else storage.tracking_artifacts.as_uri()


def default_uri(storage: StoragePaths) -> str:
    """The SQLite store that all sweeps of this storage share."""
    return f"sqlite:///{storage.tracking_database}"


def mask_secrets(text: str) -> str:
    """Without the name, password or token that an address may carry."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
