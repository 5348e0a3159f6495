"""The forms that a sweep is about: those that its objectives, constraints or rule name a metric of.

They are measured with the other costs, before the search; no other form is exported for a sweep.
"""

from collections.abc import Sequence

from kdray.errors import SpecError
from kdray.evaluation.costs import Costs
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.form import Form
from kdray.forms.forms import FORM_OF, ONNX
from kdray.forms.libraries import require_installed
from kdray.forms.metrics import FORM_METRICS, FORM_SPEEDUPS, metric_name, named_forms
from kdray.students.student import Student
from kdray.sweep import Sweep


def forms_of(sweep: Sweep, records: Sequence[TrialRecord]) -> tuple[Form, ...]:
    """The forms that a sweep with these trials is measured in.

    They include those that the trials were measured in: the rule may have changed, but trials of one architecture must
    have the same costs, by which early stopping knows them. They include ONNX if a student is served by its graph, and
    int8 if students are trained for it: an architecture without that form is then refused before the search.
    """
    measured = (name for record in records for name in record.costs)
    named = named_forms((*_named_metrics(sweep), *_metrics_in_mind(sweep), *measured))
    return named if _all_plain(sweep) else tuple(dict.fromkeys((ONNX, *named)))


def forms_to_ship(sweep: Sweep, student: Student) -> tuple[Form, ...]:
    """The forms that this student is exported in: those of the rule, and ONNX if transformers alone cannot load it."""
    named = named_forms(sweep.choose.metrics)
    return named if student.is_plain else tuple(dict.fromkeys((ONNX, *named)))


def check_forms(sweep: Sweep, records: Sequence[TrialRecord]) -> None:
    """Check, before anything starts, that the forms of a sweep with these trials can be measured.

    Raises SpecError for a rule that names a metric of a form which the trials were not measured in, ResourceError if a
    library is missing that measures the forms, or exports the chosen student in the forms of the rule.
    """
    for name in sweep.choose.metrics:
        if name in FORM_METRICS and any(name not in record.costs for record in records):
            raise SpecError(
                f"choose {name!r}: the trials of this sweep (there are {len(records)}) were not measured in this form. "
                "Forms are measured before the search, and only where the sweep names one of their metrics. Name a "
                f"metric that the trials have, such as {FORM_METRICS[name].base}, or run the sweep with this rule "
                "under another name (--set name=...)."
            )
    # Where all costs are in the cache, another rule may choose on a machine without the libraries.
    if named_forms(sweep.choose.metrics) or not _all_plain(sweep) or (not records and forms_of(sweep, records)):
        require_installed()


def check_speedups(sweep: Sweep, costs: Costs) -> None:
    """Raise SpecError if the sweep names a speed-up in a form that the teacher does not have."""
    for name in _named_metrics(sweep):
        if name in FORM_SPEEDUPS and FORM_SPEEDUPS[name] not in costs.teacher:
            raise SpecError(f"{name}: {' '.join(costs.notes)} Name {FORM_SPEEDUPS[name]} instead.")


def _all_plain(sweep: Sweep) -> bool:
    return all(student.is_plain for student in sweep.students)


def _metrics_in_mind(sweep: Sweep) -> tuple[str, ...]:
    return (metric_name(FORM_OF["int8"], "latency_ms"),) if sweep.trains_for_int8 else ()


def _named_metrics(sweep: Sweep) -> tuple[str, ...]:
    return (*sweep.search.objectives, *sweep.search.constraints, *sweep.choose.metrics)
