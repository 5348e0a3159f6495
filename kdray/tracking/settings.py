"""The address of the MLflow store, and how long to wait for a server. Settings only: nothing is opened here."""

from pathlib import Path
from urllib.parse import unquote, urlparse

from pydantic import Field, field_validator

from kdray.errors import StorageError
from kdray.safe_text.escaping import printable
from kdray.safe_text.secrets import has_secret
from kdray.settings import Settings
from kdray.storage.names import check_links
from kdray.storage.paths import StoragePaths
from kdray.storage.trust import is_below

_SERVED = ("http", "https", "databricks")
"""Schemes of a server, which decides itself where it keeps artifacts."""
_SCHEMES = (*_SERVED, "sqlite", "postgresql", "mysql", "mssql")


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
    def _check_uri(cls, uri: str | None) -> str | None:
        if not uri:
            return None
        if has_secret(uri):
            raise ValueError(
                "there is a password in the address, or a part that may be a secret, and it would be written into logs "
                "and reports. Leave it out: MLflow's client finds it in MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or in MLFLOW_TRACKING_TOKEN; PostgreSQL's in PGPASSWORD or ~/.pgpass."
            )
        if _scheme(uri) not in _SCHEMES:
            allowed = ", ".join(f"{name}://" for name in _SCHEMES)
            raise ValueError(
                f"MLflow has no store at {printable(uri)!r}; allowed: {allowed} (a file: sqlite:////folder/mlflow.db)."
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

    def may_write_to(self, artifact_uri: str, storage: StoragePaths) -> bool:
        """Whether files may be sent to this place, which the MLflow store names for a run.

        A server, or a database that the user named, decides for itself. A SQLite file in the storage may have been
        written by somebody else, so it names a place in the storage without a link that leads out of it, or nothing is
        sent: MLflow writes through the links of files that exist already.
        """
        if not is_below(self.uri_in(storage), storage.storage):
            return True
        url = urlparse(artifact_uri)
        # MLflow takes a path without a scheme as it stands, with everything that would be a query in a URI.
        if (
            url.scheme not in ("", "file")
            or url.netloc
            or set(artifact_uri) & set("?#;\\")
            or not artifact_uri.isprintable()
        ):
            return False
        place = Path(unquote(url.path))
        if not place.is_absolute() or not place.resolve().is_relative_to(storage.storage.resolve()):
            return False
        try:
            check_links(place, storage.storage)
        except StorageError:
            return False
        return True


def default_uri(storage: StoragePaths) -> str:
    """The tracking URI of the SQLite store that all sweeps of this storage share."""
    return f"sqlite:///{storage.tracking_database}"


def _scheme(uri: str) -> str:
    """The scheme of the address, without the name of a driver; empty where no scheme can be read."""
    try:
        return urlparse(uri).scheme.partition("+")[0]
    except ValueError:  # such as brackets that are no IPv6 address
        return ""
