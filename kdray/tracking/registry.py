"""MLflow's model registry: the versions of one registered model, and the alias `champion` of one of them.

A version is known by the fingerprint of its weights, a tag, so that saying the same again makes no second one. Which
version ought to be champion is decided elsewhere.
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
from kdray.storage.paths import StoragePaths
from kdray.tracking.content import tags_of
from kdray.tracking.sender import describe_error, limit_requests
from kdray.tracking.settings import Tracking, mask_secrets

log = logging.getLogger(__name__)
T = TypeVar("T")

CHAMPION = "champion"
_PAUSE_S = 1.0  # between two tries
_PASSING = (429, 500, 503, 504)
"""What a server answers, or MLflow where there is no answer, that may be otherwise a moment later."""
_LONGEST_DESCRIPTION = 5_000


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    run_id: str | None
    tags: Mapping[str, str]
    description: str


class Registry:
    """The registered model of this name, in the registry of a sweep's store.

    All methods but `insisting` may raise whatever a store may raise, and may then be called again.
    """

    def __init__(self, model: str, tracking: Tracking, paths: StoragePaths) -> None:
        """Connects to nothing yet."""
        self.model, self.uri = model, mask_secrets(tracking.uri_in(paths))
        self._tracking, self._uri = tracking, tracking.uri_in(paths)
        self._open_client: Any = None

    def insisting(self, call: Callable[[], T]) -> T:
        """What `call` returns, tried again for `tracking.patience_s` while the store does not answer.

        Raises TrackingError when it goes on so, and at once when the store refuses.
        """
        begun = time.monotonic()
        while True:
            try:
                return call()
            except Exception as error:
                log.info("MLflow at %s: %s", self.uri, mask_secrets("".join(traceback.format_exception(error))))
                if not _passes(error) or time.monotonic() - begun >= self._tracking.patience_s:
                    why = describe_error(error, self._tracking.timeout_s)
                    raise TrackingError(f"MLflow at {self.uri} does not register the student ({why}).") from None
                time.sleep(_PAUSE_S)

    def version(
        self, weights: str, run_id: str, tags: Mapping[str, str], description: str, write: Callable[[], Path]
    ) -> Version:
        """The version that holds these weights, as an artifact of this run; `write` makes it where there is none.

        What it says of itself is brought up to date, unless it is another run's.
        """
        tags = tags_of({**tags, "kdray.weights": weights})
        description = mask_secrets(description)[:_LONGEST_DESCRIPTION]
        found = self._holding(weights) or self._made(weights, run_id, tags, description, write)
        if found.run_id == run_id:
            for name, value in tags.items():
                if found.tags.get(name) != value:
                    self._client.set_model_version_tag(self.model, found.number, name, value)
            if found.description != description:
                self._client.update_model_version(self.model, found.number, description)
        return found

    def champion(self) -> Version | None:
        """The version that has the alias; None where none has it."""
        number = self._client.get_registered_model(self.model).aliases.get(CHAMPION)
        return None if number is None else _version(self._client.get_model_version(self.model, str(number)))

    def crown(self, version: Version) -> None:
        """Give the alias to this version."""
        self._client.set_registered_model_alias(self.model, CHAMPION, version.number)

    @property
    def _client(self) -> Any:
        if self._open_client is None:
            limit_requests(self._tracking.timeout_s)
            self._open_client = MlflowClient(tracking_uri=self._uri)
        return self._open_client

    def _holding(self, weights: str) -> Version | None:
        found = self._client.search_model_versions(f"name = '{self.model}' and tags.`kdray.weights` = '{weights}'")
        return _version(found[0]) if found else None

    def _made(
        self, weights: str, run_id: str, tags: Mapping[str, str], description: str, write: Callable[[], Path]
    ) -> Version:
        run = self._client.get_run(run_id)
        path = f"model/{weights}"  # of its own: a sweep may choose again, and a version's files never change
        self._client.log_artifacts(run_id, str(write()), path)
        try:
            self._client.create_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{run.info.artifact_uri}/{path}"
        return _version(self._client.create_model_version(self.model, source, run_id, tags, description=description))


def _version(found: Any) -> Version:
    return Version(str(found.version), found.run_id, dict(found.tags), found.description or "")


def _passes(error: Exception) -> bool:
    """Whether it may go by itself: no answer, or one that says so; a refusal does not."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _PASSING
    return isinstance(error, OSError)
