"""What the runs of a sweep ought to hold, and what of it is news; how a change is written as JSON. Knows no MLflow.

A metric is known by its name and step, a folder of artifacts by its path in the run. Whatever was said first of a run's
name and start stays, and so does the time of a point whose value is said again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdray.evaluation.trial_record import State, TrialRecord
from kdray.tracking.settings import mask_secrets
from kdray.tracking.tracker import Ending

STATUS: dict[State | Ending, str] = {
    "running": "RUNNING",
    "completed": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "finished": "FINISHED",
    "interrupted": "KILLED",
}
_LONGEST_PARAM = 6_000  # characters; MLflow cuts longer values and says nothing
_LONGEST_TAG = 8_000


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    value: float
    at: int
    """Milliseconds since the epoch."""

    def says(self, other: "Point | None") -> bool:
        """Whether the other point has this value, too."""
        return other is not None and (self.value == other.value or (math.isnan(self.value) and math.isnan(other.value)))


@dataclass
class RunContent:
    """What a run holds, or a change of it: what is empty here is not changed."""

    name: str = ""
    started: float = 0.0
    """Seconds since the epoch, as `ended`."""
    ended: float = 0.0
    status: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, int], Point] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self != RunContent()

    def add(self, change: "RunContent") -> None:
        """Take over a change."""
        self.name = self.name or change.name
        self.started = self.started or change.started
        self.ended = change.ended or self.ended
        self.status = change.status or self.status
        self.params |= change.params
        self.tags |= change.tags
        self.metrics |= {key: point for key, point in change.metrics.items() if not point.says(self.metrics.get(key))}
        self.artifacts |= change.artifacts

    def beyond(self, held: "RunContent") -> "RunContent":
        """The part of this that `held` does not hold."""
        return RunContent(
            name="" if held.name else self.name,
            started=0.0 if held.started else self.started,
            ended=0.0 if self.ended == held.ended else self.ended,
            status=None if self.status == held.status else self.status,
            params={name: value for name, value in self.params.items() if held.params.get(name) != value},
            tags={name: value for name, value in self.tags.items() if held.tags.get(name) != value},
            metrics={key: point for key, point in self.metrics.items() if not point.says(held.metrics.get(key))},
            artifacts={path: folder for path, folder in self.artifacts.items() if held.artifacts.get(path) != folder},
        )

    def written(self, root: Path) -> dict[str, Any]:
        """As JSON, without what is empty; folders below `root` are named from there, for a sweep's folder may move."""
        lists = {
            "metrics": [[name, point.value, point.at, step] for (name, step), point in self.metrics.items()],
            "artifacts": {path: _below(root, folder) for path, folder in self.artifacts.items()},
        }
        return {name: value for name, value in {**vars(self), **lists}.items() if value}

    @classmethod
    def read(cls, written: Mapping[str, Any], root: Path) -> "RunContent":
        """The content that was written so."""
        metrics = {(name, step): Point(value, at) for name, value, at, step in written.get("metrics", ())}
        artifacts = {path: root / folder for path, folder in written.get("artifacts", {}).items()}
        return cls(**{**written, "metrics": metrics, "artifacts": artifacts})


@dataclass(eq=False)
class TrackedRun:
    """One MLflow run: what it ought to hold, and what it is known to hold."""

    number: int | None
    """The trial's; None for the sweep's own run."""
    wanted: RunContent = field(default_factory=RunContent)
    sent: RunContent = field(default_factory=RunContent)
    latest: dict[str, tuple[int, Point]] = field(default_factory=dict)
    """Of a run that was found in the store: step and point of the last value of each metric."""
    run_id: str | None = None
    """As far as is known; it is there for certain when `found`."""
    found: bool = False

    def unsent(self) -> RunContent:
        """What the run ought to hold and does not. A param cannot change: a new value goes to a tag."""
        news = self.wanted.beyond(self.sent)
        changed = {f"changed.{name}": value for name, value in news.params.items() if name in self.sent.params}
        news.tags |= {name: value for name, value in changed.items() if self.sent.tags.get(name) != value}
        news.params = {name: value for name, value in news.params.items() if name not in self.sent.params}
        by_step = sorted(news.metrics.items(), key=lambda item: item[0][1])  # so that `latest` always tells the rest
        news.metrics = {(name, step): point for (name, step), point in by_step if self._is_later(name, step, point)}
        return news

    def _is_later(self, name: str, step: int, point: Point) -> bool:
        if name not in self.latest:
            return True
        last_step, last = self.latest[name]
        return step > last_step or (step == last_step and point.at > last.at and not point.says(last))


def trial_name(record: TrialRecord) -> str:
    """What a trial is called in MLflow."""
    if record.title:
        return record.title
    depth = record.params.get("student.depth")
    return f"trial {record.number:03d}" + (f" depth {depth}" if depth is not None else "")


def trial_content(sweep: str, record: TrialRecord, settings: Mapping[str, Any], tags: Mapping[str, str]) -> RunContent:
    """What a trial's run ought to hold."""
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
        trial_name(record),
        record.started,
        record.ended,
        STATUS[record.state],
        params_of({**settings, **record.params}),
        tags_of({**tags, **own}),
        _history(record),
    )


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow takes them, without secrets."""
    return {name: _cut(mask_secrets(str(value)), _LONGEST_PARAM) for name, value in values.items()}


def tags_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them, without secrets."""
    return {name: _cut(mask_secrets(str(value)), _LONGEST_TAG) for name, value in values.items()}


def points(values: Mapping[str, float], seconds: float, step: int) -> dict[tuple[str, int], Point]:
    """Metrics at one time and step; what is no number is left out."""
    at = int(seconds * 1000)
    return {(name, step): Point(float(value), at) for name, value in values.items() if isinstance(value, int | float)}


def _history(record: TrialRecord) -> dict[tuple[str, int], Point]:
    """All the record's numbers. Their times follow from the record, so that a replay sends the same points."""
    at = record.started
    found = points(record.costs, at, 0)
    for index, evaluation in enumerate(record.history, start=1):
        at += evaluation.get("train_seconds", 1.0) + evaluation.get("eval_seconds", 0.0)
        values = {name: value for name, value in evaluation.items() if name != "step"}
        found |= points(values, at, int(evaluation.get("step", index)))
    return found


def _below(root: Path, folder: Path) -> str:
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 2]} …"
