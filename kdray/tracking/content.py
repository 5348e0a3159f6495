"""The desired content of a sweep's runs, and the part of it that the store lacks; as JSON, too. Does not import MLflow.

A metric value is identified by its name and step, a folder of artifacts by its path in the run. A run keeps its first
name and its first start time. A metric value that is repeated keeps its first time stamp.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kdray.evaluation.trial_record import State, TrialRecord
from kdray.safe_text.secrets import mask_all
from kdray.storage.names import path_below
from kdray.tracking.tracker import Ending, RunNumber

STATUS: dict[State | Ending, str] = {
    "running": "RUNNING",
    "completed": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "finished": "FINISHED",
    "interrupted": "KILLED",
}
"""The state of a trial, or the ending of a session -> MLflow's run status."""
# Characters. MLflow cuts longer values without a message; here a cut value ends with an ellipsis.
_MAX_PARAM_LENGTH = 6_000
_MAX_TAG_LENGTH = 8_000


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric."""

    value: float
    time_ms: int
    """Milliseconds since the epoch."""

    def has_value_of(self, other: "Point | None") -> bool:
        """Whether the other point exists and has the same value; NaN equals NaN here."""
        return other is not None and (self.value == other.value or (math.isnan(self.value) and math.isnan(other.value)))


@dataclass
class RunContent:
    """The content of a run, or a change of it. An empty field of a change changes nothing."""

    name: str = ""
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float = 0.0
    """Seconds since the epoch; 0 while the run is open."""
    status: str | None = None
    """MLflow's run status."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, int], Point] = field(default_factory=dict)
    """(name, step) -> value and time."""
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Path in the run -> local folder."""

    def __bool__(self) -> bool:
        return self != RunContent()

    def add(self, change: "RunContent") -> None:
        """Apply a change."""
        self.name = self.name or change.name
        self.started = self.started or change.started
        self.ended = change.ended or self.ended
        self.status = change.status or self.status
        self.params |= change.params
        self.tags |= change.tags
        self.metrics |= _points_with_other_values(change.metrics, self.metrics)
        self.artifacts |= change.artifacts

    def missing_in(self, other: "RunContent") -> "RunContent":
        """The part of this content that `other` lacks, or holds with another value."""
        return RunContent(
            name="" if other.name else self.name,
            started=0.0 if other.started else self.started,
            ended=0.0 if self.ended == other.ended else self.ended,
            status=None if self.status == other.status else self.status,
            params={name: value for name, value in self.params.items() if other.params.get(name) != value},
            tags={name: value for name, value in self.tags.items() if other.tags.get(name) != value},
            metrics=_points_with_other_values(self.metrics, other.metrics),
            artifacts={path: folder for path, folder in self.artifacts.items() if other.artifacts.get(path) != folder},
        )

    def to_json(self, root: Path) -> dict[str, Any]:
        """A JSON object without the empty fields. Folders are relative to `root`: a sweep's folder may be moved."""
        lists = {
            "metrics": [[name, point.value, point.time_ms, step] for (name, step), point in self.metrics.items()],
            "artifacts": {path: str(folder.relative_to(root)) for path, folder in self.artifacts.items()},
        }
        return {name: value for name, value in {**vars(self), **lists}.items() if value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], root: Path, source: object) -> "RunContent":
        """The content that `to_json` wrote; its folders are below `root`. `source` is the place of the JSON.

        Raises StorageError for a folder that is not below `root`: its files would be published. Raises ValueError for
        any other wrong value.
        """
        read = _Fields.model_validate(fields)
        for path in read.artifacts:
            path_below(root, path, source)
        return cls(
            **read.model_dump(exclude={"metrics", "artifacts"}),
            metrics={(name, step): Point(value, time_ms) for name, value, time_ms, step in read.metrics},
            artifacts={path: path_below(root, folder, source) for path, folder in read.artifacts.items()},
        )


class _Fields(BaseModel):
    """The JSON of a RunContent, in which every field may be missing."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    started: float = 0.0
    ended: float = 0.0
    status: str | None = None
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: list[tuple[str, float, int, int]] = []
    """Name, value, time and step of each point."""
    artifacts: dict[str, str] = {}


@dataclass(eq=False)
class TrackedRun:
    """One MLflow run: its desired content, and the content that the store is known to hold."""

    number: RunNumber
    desired: RunContent = field(default_factory=RunContent)
    stored: RunContent = field(default_factory=RunContent)
    latest: dict[str, tuple[int, Point]] = field(default_factory=dict)
    """For a run that existed in the store: metric -> step and point of its last value.

    MLflow's search returns only these. Points before them count as stored, so no metric history is read.
    """
    evaluations: int = 0
    """How many evaluations of the trial the desired content has; those of earlier sessions are not counted."""
    run_id: str | None = None
    """The last known id; it is certain only when `is_in_store`."""
    is_in_store: bool = False
    """Whether the run was found or created since the last connection to the store."""

    def unsent(self) -> RunContent:
        """The part of the desired content that the store lacks.

        MLflow does not change a param, so a new value of a param becomes the tag `changed.NAME`.
        """
        missing = self.desired.missing_in(self.stored)
        changed = {f"changed.{name}": value for name, value in missing.params.items() if name in self.stored.params}
        missing.tags |= {name: value for name, value in changed.items() if self.stored.tags.get(name) != value}
        missing.params = {name: value for name, value in missing.params.items() if name not in self.stored.params}
        # In the order of steps: when sending is cut off, `latest` still separates the stored points from the others.
        by_step = sorted(missing.metrics.items(), key=lambda item: item[0][1])
        missing.metrics = {(name, step): point for (name, step), point in by_step if self._is_later(name, step, point)}
        return missing

    def _is_later(self, name: str, step: int, point: Point) -> bool:
        if name not in self.latest:
            return True
        last_step, last = self.latest[name]
        is_new_value = point.time_ms > last.time_ms and not point.has_value_of(last)
        return step > last_step or (step == last_step and is_new_value)


def trial_name(record: TrialRecord) -> str:
    """The name of a trial's run: its title, or its number and depth."""
    if record.title:
        return record.title
    depth = record.params.get("student.depth")
    return f"trial {record.number:03d}" + (f" depth {depth}" if depth is not None else "")


def trial_content(
    sweep: str, record: TrialRecord, settings: Mapping[str, Any], tags: Mapping[str, str], known_evaluations: int = 0
) -> RunContent:
    """The desired content of a trial's run. `settings` are all settings by dotted name; the record's params win.

    The metrics of the first `known_evaluations` evaluations are left out.
    """
    own = {
        "kdray.sweep": sweep,
        "kdray.trial": str(record.number),
        "kdray.status": record.state,
        "kdray.attempts": str(record.attempts),
        **({"kdray.host": record.host} if record.host else {}),
        **({"kdray.error": record.error} if record.error else {}),
        **({"kdray.remarks": " ".join(record.remarks)} if record.remarks else {}),
    }
    return RunContent(
        name=trial_name(record),
        started=record.started,
        ended=record.ended,
        status=STATUS[record.state],
        params=params_of({**settings, **record.params}),
        tags=tags_of({**tags, **own}),
        metrics=_history(record, known_evaluations),
    )


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings as MLflow params: text of limited length, without secrets."""
    return _texts(values, _MAX_PARAM_LENGTH)


def tags_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The values as MLflow tags: text of limited length, without secrets."""
    return _texts(values, _MAX_TAG_LENGTH)


def points_of(values: Mapping[str, float], seconds: float, step: int) -> dict[tuple[str, int], Point]:
    """The metrics as points of one time, in seconds since the epoch, and one step; leaves out what is not a number."""
    time_ms = int(seconds * 1000)
    return {
        (name, step): Point(float(value), time_ms) for name, value in values.items() if isinstance(value, int | float)
    }


def _history(record: TrialRecord, known_evaluations: int) -> dict[tuple[str, int], Point]:
    """The costs of the record, and the metrics of its evaluations after the first `known_evaluations` ones.

    The times are computed from the record and not read from a clock: MLflow stores a point that is sent again as one
    point only if its time is the same.
    """
    seconds = record.started
    points = points_of(record.costs, seconds, 0)
    for index, evaluation in enumerate(record.history, start=1):
        seconds += evaluation.get("train_seconds", 1.0) + evaluation.get("eval_seconds", 0.0)
        if index > known_evaluations:
            values = {name: value for name, value in evaluation.items() if name != "step"}
            points |= points_of(values, seconds, int(evaluation.get("step", index)))
    return points


def _points_with_other_values(
    points: Mapping[tuple[str, int], Point], known: Mapping[tuple[str, int], Point]
) -> dict[tuple[str, int], Point]:
    return {key: point for key, point in points.items() if not point.has_value_of(known.get(key))}


def _texts(values: Mapping[str, Any], max_length: int) -> dict[str, str]:
    masked = mask_all(map(str, values.values()))
    # Most trials have the same settings: interned, their names and values are in memory once and not once a trial.
    return {sys.intern(name): sys.intern(_cut(text, max_length)) for name, text in zip(values, masked, strict=True)}


def _cut(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 2]} …"
