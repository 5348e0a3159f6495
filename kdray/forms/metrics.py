"""The metrics of a model in each form, such as int8_latency_ms: their names, and the metric of PyTorch that each is.

`kdray.evaluation` measures them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdray.forms.form import Form
from kdray.forms.forms import GRAPH_FORMS

MEASURED = ("latency_ms", "latency_p95_ms", "throughput_per_s", "size_mb")
"""What is measured of a model in a form, by the names of the same metrics in PyTorch."""


@dataclass(frozen=True)
class FormMetric:
    """A metric of a model in a form."""

    form: Form
    base: str
    """The name of the same metric in PyTorch."""


def metric_name(form: Form, base: str) -> str:
    """The name of a metric in a form: int8_latency_ms for latency_ms."""
    return f"{form.name}_{base}"


FORM_COSTS: tuple[str, ...] = tuple(metric_name(form, base) for form in GRAPH_FORMS for base in MEASURED)
"""The metrics that are measured of a model in its forms."""

FORM_SPEEDUPS: Mapping[str, str] = {
    metric_name(form, "speedup"): metric_name(form, "latency_ms") for form in GRAPH_FORMS
}
"""The speed-up in a form -> the latency whose ratio it is: that of the teacher and that of the student in this form."""

FORM_SIZES: tuple[str, ...] = tuple(metric_name(form, "size_mb") for form in GRAPH_FORMS)
"""The size of the file of each form."""

FORM_METRICS: Mapping[str, FormMetric] = {
    metric_name(form, base): FormMetric(form, base) for form in GRAPH_FORMS for base in (*MEASURED, "speedup")
}
"""All metrics of forms, by name."""


def split_form(name: str) -> tuple[Form | None, str]:
    """The form that a metric is of, None for PyTorch, and the metric's name there: int8 and latency_ms."""
    form = next((form for form in GRAPH_FORMS if name.startswith(metric_name(form, ""))), None)
    return form, name if form is None else name.removeprefix(metric_name(form, ""))


def named_forms(metrics: Iterable[str]) -> tuple[Form, ...]:
    """The forms that metrics with these names are of, in the order of the list of forms."""
    names = {FORM_METRICS[name].form.name for name in metrics if name in FORM_METRICS}
    return tuple(form for form in GRAPH_FORMS if form.name in names)
