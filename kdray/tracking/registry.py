"""MLflow's model registry: the versions of one registered model, and the alias `champion` of one of them.

A version is identified by the fingerprint of its weights, which is a tag, so that registering a student again makes no
second version. Which version should be champion is decided in `kdray.choice`.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kdray.errors import TrackingError
from kdray.safe_text.secrets import mask_secrets
from kdray.storage.names import check_links
from kdray.storage.paths import StoragePaths
from kdray.storage.sqlite_files import check_sqlite_address
from kdray.tracking.content import tags_of
from kdray.tracking.sender import describe_error, limit_requests
from kdray.tracking.settings import Tracking

log = logging.getLogger(__name__)
T = TypeVar("T")

CHAMPION = "champion"
_PAUSE_S = 1.0  # between two tries
_TRANSIENT_CODES = (429, 500, 503, 504)
"""HTTP codes of errors that may not happen again a moment later. MLflow also gives 500 when no answer came."""
_MAX_DESCRIPTION_LENGTH = 5_000  # characters


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    run_id: str | None
    tags: Mapping[str, str]
    description: str


class Registry:
    """The registered model of this name, in the registry of a sweep's store.

    All methods except `retry` may raise any error that a store raises, and may then be called again.
    """

    def __init__(self, model: str, tracking: Tracking, paths: StoragePaths) -> None:
        """Open no connection yet.

        Raises StorageError if the database of the storage, or a file beside it, leads to another place.
        """
        check_links(paths.tracking_database, paths.storage)
        check_sqlite_address(tracking.uri_in(paths))
        self.model, self.uri = model, tracking.uri_in(paths)
        self._tracking, self._paths = tracking, paths
        self._open_client: Any = None

    def retry(self, call: Callable[[], T]) -> T:
        """Call `call` again and again for `tracking.patience_s` while the store does not answer; return its result.

        Raises TrackingError after that time, and immediately when the store refuses the request.
        """
        start = time.monotonic()
        while True:
            try:
                return call()
            except TrackingError:
                raise
            except Exception as error:
                log.info("MLflow at %s: %s", self.uri, mask_secrets("".join(traceback.format_exception(error))))
                if not _is_transient(error) or time.monotonic() - start >= self._tracking.patience_s:
                    reason = describe_error(error, self._tracking.timeout_s)
                    raise TrackingError(f"MLflow at {self.uri} does not register the student ({reason}).") from None
                time.sleep(_PAUSE_S)

    def find_or_create_version(
        self, weights: str, run_id: str, tags: Mapping[str, str], description: str, write: Callable[[], Path]
    ) -> Version:
        """Find the version with these weights, or create it as an artifact of this run; `write` writes the model.

        The tags and the description of the version are brought up to date, unless it belongs to another run.
        """
        tags = tags_of({**tags, "kdray.weights": weights})
        description = mask_secrets(description)[:_MAX_DESCRIPTION_LENGTH]
        version = self._find_version(weights) or self._create_version(weights, run_id, tags, description, write)
        if version.run_id == run_id:
            for name, value in tags.items():
                if version.tags.get(name) != value:
                    self._client.set_model_version_tag(self.model, version.number, name, value)
            if version.description != description:
                self._client.update_model_version(self.model, version.number, description)
        return version

    def champion(self) -> Version | None:
        """The version that has the alias `champion`; None if no version has it."""
        number = self._client.get_registered_model(self.model).aliases.get(CHAMPION)
        return None if number is None else _version(self._client.get_model_version(self.model, str(number)))

    def make_champion(self, version: Version) -> None:
        """Give the alias `champion` to this version."""
        self._client.set_registered_model_alias(self.model, CHAMPION, version.number)

    @property
    def _client(self) -> Any:
        if self._open_client is None:
            limit_requests(self._tracking.timeout_s)
            self._open_client = MlflowClient(tracking_uri=self.uri)
        return self._open_client

    def _find_version(self, weights: str) -> Version | None:
        versions = self._client.search_model_versions(f"name = '{self.model}' and tags.`kdray.weights` = '{weights}'")
        return _version(versions[0]) if versions else None

    def _create_version(
        self, weights: str, run_id: str, tags: Mapping[str, str], description: str, write: Callable[[], Path]
    ) -> Version:
        run = self._client.get_run(run_id)
        if not self._tracking.may_write_to(str(run.info.artifact_uri), self._paths):
            raise TrackingError(
                f"MLflow at {self.uri} names {run.info.artifact_uri} for the files of the student, which is, or leads, "
                "outside of the storage, so nothing is sent there. Name a server with --tracking-uri."
            )
        # A folder for these weights only: a sweep may choose another student later, and the files of a version in the
        # registry must never change.
        path = f"model/{weights}"
        self._client.log_artifacts(run_id, str(write()), path)
        try:
            self._client.create_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{run.info.artifact_uri}/{path}"
        return _version(self._client.create_model_version(self.model, source, run_id, tags, description=description))


def _version(found: Any) -> Version:
    """The Version for MLflow's ModelVersion."""
    return Version(
        number=str(found.version),
        run_id=found.run_id,
        tags=dict(found.tags),
        description=found.description or "",
    )


def _is_transient(error: Exception) -> bool:
    """Whether the error may not happen again: no answer, or a server that is overloaded. A refusal is not transient."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _TRANSIENT_CODES
    return isinstance(error, OSError)
