"""Whether a form is still the student, and what it costs: measured beside PyTorch, on the same rows and machine."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdray.data.rows import Rows
from kdray.evaluation.measuring import (
    describe_conditions,
    hardware_name,
    measure_throughput,
    synthetic_inputs,
    time_calls,
)
from kdray.evaluation.outputs import agreement, compute_logits, evaluation_mode
from kdray.evaluation.statistics import (
    CONFUSION_METRICS,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    classification_metric,
)
from kdray.export.forms import FILES, Form
from kdray.export.shipped import Shipped
from kdray.slots.job import Worker, torch_threads
from kdray.storage.files import read_json
from kdray.tasks.task import Task

EXPORT_FILE = "export.json"
BATCH = 32
"""Rows at once: in int8 a row's logits depend on its neighbours a little, for they share the scale of activations."""


@dataclass(frozen=True)
class FormFigures:
    """What was measured of one form."""

    form: Form
    file: str
    """In the student's folder."""
    size_mb: float
    latency_ms: float
    latency_p95_ms: float
    throughput_per_s: float
    metrics: dict[str, float]
    """The task's."""
    intervals: dict[str, Interval]
    """Of those metrics that have one."""
    agreement: float = 1.0
    """The share of rows on which it answers what PyTorch does."""
    largest_difference: float = 0.0
    """Of any logit from PyTorch's."""
    difference: Interval | None = None
    """Of the first metric, from PyTorch's on the same rows."""


@dataclass(frozen=True)
class ExportResult:
    """What came of an export."""

    split: str
    rows: int
    conditions: str
    """How latency was measured, and on what."""
    forms: tuple[FormFigures, ...]
    missing: dict[str, str]
    """Form -> why it could not be made."""

    def of(self, form: Form) -> FormFigures | None:
        """The figures of this form, if it is there."""
        return next((figures for figures in self.forms if figures.form == form), None)

    def written(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_export_result(file: Path) -> ExportResult | None:
    """What was written of an export; None where there was none."""
    if not file.exists():
        return None
    known = read_json(file)
    forms = tuple(
        FormFigures(
            **{
                **figures,
                "intervals": {name: Interval(**bounds) for name, bounds in figures["intervals"].items()},
                "difference": figures["difference"] and Interval(**figures["difference"]),
            }
        )
        for figures in known["forms"]
    )
    return ExportResult(**{**known, "forms": forms})


class FormChecker:
    """Measures forms of one student, PyTorch first: what it says is what the others are held against."""

    def __init__(self, student: Shipped, rows: Rows, split: str) -> None:
        self._student, self._rows, self._split = student, rows, split
        self._expected: np.ndarray | None = None
        self._synthetic = student.model.model()

    def __call__(self, form: Form, model: nn.Module, file: Path) -> FormFigures:
        """The figures of this form, which was read from this file."""
        latency, task, labels = self._student.latency, self._student.task, self._rows.labels
        logits_NxC = compute_logits(model, self._rows, BATCH, Worker(), None)
        expected_NxC = logits_NxC if self._expected is None else self._expected
        self._expected = expected_NxC
        once = self._passing(model, latency.batch_size)
        many = self._passing(model, latency.throughput_batch_size)
        with evaluation_mode(model), torch_threads(latency.threads):
            passes, throughput = time_calls(once, latency), measure_throughput(many, latency.throughput_batch_size)
        return FormFigures(
            form,
            FILES[form],
            _size_mb(file),
            passes.p50,
            passes.p95,
            throughput,
            task.metrics(logits_NxC, labels),
            _intervals(task, logits_NxC, labels),
            agreement(logits_NxC, expected_NxC),
            float(np.abs(logits_NxC - expected_NxC).max()),
            _difference(task, logits_NxC, expected_NxC, labels),
        )

    def conclusion(self, forms: list[FormFigures], missing: dict[str, str]) -> ExportResult:
        """All of it."""
        how = describe_conditions(self._student.latency, hardware_name(), "float32 (int8: weights in int8)")
        return ExportResult(self._split, len(self._rows), how, tuple(forms), missing)

    def _passing(self, model: nn.Module, examples: int) -> Callable[[], object]:
        inputs = synthetic_inputs(self._synthetic, examples, self._student.latency.length, torch.device("cpu"))
        return lambda: model(**inputs)


def _intervals(task: Task, logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, Interval]:
    names = [name for name in task.metric_names(logits_NxC.shape[1]) if name in CONFUSION_METRICS]
    return {
        name: bootstrap_interval(classification_metric(name, logits_NxC.argmax(axis=1), labels_N)) for name in names
    }


def _difference(task: Task, ours_NxC: np.ndarray, theirs_NxC: np.ndarray, labels_N: np.ndarray) -> Interval | None:
    if task.quality not in CONFUSION_METRICS:
        return None
    ours, theirs = (
        classification_metric(task.quality, logits_NxC.argmax(axis=1), labels_N)
        for logits_NxC in (ours_NxC, theirs_NxC)
    )
    return bootstrap_difference(ours, theirs)


def _size_mb(file: Path) -> float:
    """Of the file and of the weights that it keeps in files beside it, in millions of bytes."""
    weights = [*file.parent.glob(f"{file.name}*"), *file.parent.glob("model-*-of-*.safetensors")]
    return sum(path.stat().st_size for path in weights if path.is_file()) / 1e6
