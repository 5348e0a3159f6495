"""Whether a form gives the same answers as the student, and what it costs: compared with PyTorch on one machine.

In array names: A answers, C outputs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import nn

from kdray.data.rows import Rows
from kdray.errors import StorageError
from kdray.evaluation.measuring import describe_conditions, hardware_name, measure_form
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.statistics import Interval, bootstrap_difference, bootstrap_interval, metric_of_counts
from kdray.export.shipped import Shipped
from kdray.forms.form import size_mb
from kdray.forms.forms import FILES, FormName
from kdray.safe_text.escaping import printable
from kdray.slots.job import Worker
from kdray.storage.files import read_json
from kdray.tasks.kept_thresholds import read_thresholds
from kdray.tasks.task import Outputs, Task

EXPORT_FILE = "export.json"
BATCH = 32
"""The most rows of a batch. Fixed, since in int8 a row's logits depend a little on the other rows of its batch: dynamic
quantisation computes one scale for all their activations."""


TOKENS = 1024
"""The most tokens of a batch of a language model: a graph gives a logit of each of them for each token of the
vocabulary, and its answers are copies of these. With a vocabulary of 50,000 they are 200 MB."""


@dataclass(frozen=True)
class FormFigures:
    """The quality, size and speed of one form."""

    form: FormName
    file: str
    """Relative to the student's folder."""
    size_mb: float
    """Millions of bytes, with the weights in other files."""
    latency_ms: float
    """The median of a pass over `latency.batch_size` synthetic examples."""
    latency_p95_ms: float
    throughput_per_s: float
    """Examples per second."""
    metrics: dict[str, float]
    """The metrics of the task."""
    intervals: dict[str, Interval]
    """Confidence intervals of those metrics that can have one."""
    agreement: float = 1.0
    """How far the answers are those of PyTorch, see `Task.agreement`."""
    largest_difference: float = 0.0
    """The largest absolute difference of an output from PyTorch's."""
    difference: Interval | None = None
    """The difference of the task's quality metric from PyTorch's on the same rows; None in a record of an earlier
    version of kdray."""


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    split: str
    """The rows on which quality was measured."""
    rows: int
    """The number of these rows."""
    conditions: str
    """The conditions and the hardware of the measurement of latency."""
    forms: tuple[FormFigures, ...]
    """PyTorch is the first."""
    missing: dict[str, str]
    """Form -> the reason why it could not be exported."""

    def figures_of(self, form: str) -> FormFigures | None:
        """The figures of this form; None if it was not exported."""
        return next((figures for figures in self.forms if figures.form == form), None)

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)


def read_export_result(file: Path) -> ExportResult | None:
    """Read the result of an export; None if the student was not exported. Raises StorageError for a damaged file."""
    if not file.exists():
        return None
    try:
        return TypeAdapter(ExportResult).validate_python(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(
            f"{file}: is damaged ({printable(where)}: {first['msg']}). Run `kdray export` again to replace it."
        ) from None


class FormChecker:
    """Measures the forms of one student. PyTorch must be the first: the other forms are compared with its outputs."""

    def __init__(self, student: Shipped, rows: Rows, split: str) -> None:
        self._student, self._rows, self._split = student, rows, split
        self._pytorch: Outputs | None = None
        self._config_model = student.model.model()  # only its configuration is read, for the synthetic inputs
        self._thresholds_C = read_thresholds(self._config_model.config)

    def measure(self, form: str, model: nn.Module, file: Path) -> FormFigures:
        """Measure this form; `model` was loaded from `file`."""
        task = self._student.task
        outputs = Outputs(compute_logits(model, self._rows, _batch(self._rows), Worker(), None), self._thresholds_C)
        expected = self._pytorch = self._pytorch or outputs
        speed = measure_form(model, self._config_model, self._student.latency)
        return FormFigures(
            form=form,
            file=FILES[form],
            size_mb=size_mb(file),
            latency_ms=speed["latency_ms"],
            latency_p95_ms=speed["latency_p95_ms"],
            throughput_per_s=speed["throughput_per_s"],
            metrics=task.values(outputs, self._rows),
            intervals=_intervals(task, outputs, self._rows),
            agreement=task.agreement(outputs, expected),
            largest_difference=_largest_difference(task, outputs, expected),
            difference=_difference(task, outputs, expected, self._rows),
        )

    @property
    def allowed_difference(self) -> float:
        """See `Task.allowed_difference`. Raises LookupError before PyTorch is measured."""
        if self._pytorch is None:
            raise LookupError("PyTorch is not measured yet")
        return self._student.task.allowed_difference(self._pytorch)

    def result(self, forms: list[FormFigures], missing: dict[str, str]) -> ExportResult:
        """The result of the export: the figures of the exported forms, and the reasons for the missing ones."""
        conditions = describe_conditions(self._student.latency, hardware_name(), "float32 (int8: weights in int8)")
        return ExportResult(
            split=self._split,
            rows=len(self._rows.example_starts) - 1,
            conditions=conditions,
            forms=tuple(forms),
            missing=missing,
        )


def _batch(rows: Rows) -> int:
    """The number of rows per batch."""
    return BATCH if rows.top_k is None else min(BATCH, max(1, TOKENS // rows.max_length))


def _largest_difference(task: Task, outputs: Outputs, expected: Outputs) -> float:
    return float(np.abs(task.compared_numbers(outputs) - task.compared_numbers(expected)).max())


def _intervals(task: Task, outputs: Outputs, rows: Rows) -> dict[str, Interval]:
    counts = task.counts(outputs, rows)
    return {name: bootstrap_interval(metric_of_counts(name, [counts])) for name in counts.metrics}


def _difference(task: Task, form: Outputs, pytorch: Outputs, rows: Rows) -> Interval:
    """The difference of the quality metric between the outputs of a form and those of PyTorch."""
    name = task.quality.name
    return bootstrap_difference(*(metric_of_counts(name, [task.counts(outputs, rows)]) for outputs in (form, pytorch)))
