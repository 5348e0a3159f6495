"""What the report, the page and the model card show of the teacher: its costs, several teachers, earlier sweeps."""

from collections.abc import Iterator, Mapping

from kdray.evaluation.formatting import format_metric, heading
from kdray.evaluation.measuring import COST_METRICS
from kdray.forms.metrics import FORM_SPEEDUPS
from kdray.models.lineage import CheckpointModel, EarlierSweep
from kdray.report.figures import Figures

UNKNOWN = "unknown"
EARLIER_TITLE = "The sweeps before this one"
EARLIER_COSTS = ("latency_ms", "parameters")


def teacher_value(figures: Figures, name: str, own: Mapping[str, float] | None = None) -> str:
    """A figure of the teacher, or one of `own` in its place; a cost that nobody could measure is "unknown"."""
    values = figures.teacher if own is None else own
    shares = {"retention": 1.0} if own is None else {}
    if own is None and not figures.has_unknown_costs:
        shares |= {"speedup": 1.0, **{name: 1.0 for name, latency in FORM_SPEEDUPS.items() if latency in values}}
    if name not in values and name in COST_METRICS and figures.has_unknown_costs:
        return UNKNOWN
    return format_metric(name, {**shares, **values}.get(name))


def teacher_names(figures: Figures) -> Iterator[tuple[str, Mapping[str, float] | None]]:
    """The teacher, and each of several models whose mean it is: a name, and the model's own figures (None: those of
    the teacher)."""
    models = figures.several_teachers
    yield (f"teacher (mean of {len(models)})" if models else "teacher"), None
    for number, model in enumerate(models):
        students = ", source of the students" if model.gave_students else ""
        yield f"teacher {number}: {model.name}{students}", model.figures


def about_models(figures: Figures) -> str:
    """How several models teach together; empty for one."""
    if not figures.several_teachers:
        return ""
    weights = ", ".join(f"{model.share:.2g}" for model in figures.several_teachers)
    return (
        f"The teacher is the mean of the probabilities of {len(figures.several_teachers)} models (weights {weights}); "
        "its costs are those of all of them, one after the other."
    )


def about_rows(figures: Figures) -> str:
    """What the teacher was fine-tuned on, if these are rows of its own; empty otherwise."""
    rows = figures.lineage.teacher_rows if figures.lineage else 0
    if not rows:
        return ""
    return f"The teacher was fine-tuned on {rows:,} labelled rows of its own (teacher.data), which no student sees."


def about_checkpoints(figures: Figures) -> str:
    """Which earlier sweeps made the checkpoints that students begin from; empty if none did."""
    return " ".join(f"{_beginning(each)}." for each in _checkpoints(figures))


def _checkpoints(figures: Figures) -> tuple[CheckpointModel, ...]:
    return figures.lineage.checkpoints if figures.lineage else ()


def _beginning(checkpoint: CheckpointModel) -> str:
    # Without the folder, because the card is published.
    sweep = checkpoint.earlier
    task = f" ({sweep.task})" if sweep.task else ""
    return f"Students with a student.checkpoint begin from the student of the sweep {sweep.name}{task}"


def _fingerprints(checkpoint: CheckpointModel) -> str:
    sweep = checkpoint.earlier
    return (
        f"{_beginning(checkpoint)}. Fingerprints: {sweep.data} of its data, {sweep.teacher_weights} of its teacher, "
        f"{checkpoint.weights} of its student with a head for this task."
    )


def about_teacher(figures: Figures) -> str:
    """How the teacher, and what students begin from, came about, where that is out of the ordinary; empty otherwise."""
    return " ".join(filter(None, [about_models(figures), about_rows(figures), about_checkpoints(figures)]))


def earlier_sweeps(figures: Figures) -> list[EarlierSweep]:
    """The sweeps that made the teachers and the checkpoints of the students, and those before them."""
    return list(figures.lineage.earlier_sweeps()) if figures.lineage else []


def earlier_about(figures: Figures) -> str:
    """The caption of the table of the earlier sweeps."""
    sweeps = earlier_sweeps(figures)
    others = [sweep.name for sweep in sweeps if not sweep.is_on_same_rows]
    if not others:
        rows = "All test rows are those of this sweep (the fingerprints of texts and labels are equal)."
    else:
        rows = (
            f"The figures of {', '.join(others)} are of other rows than those of this sweep (the fingerprints of texts "
            "and labels differ), and must not be compared with its figures."
        )
    measured = dict.fromkeys(f"{sweep.name}: {sweep.measured}" for sweep in sweeps if sweep.measured)
    costs = f" Costs were measured in the sweep of each row: {'; '.join(measured)}." if measured else ""
    made = []
    if any(figures.lineage.teacher_sweeps() if figures.lineage else ()):
        made.append("The teacher is the student of an earlier sweep, which had a teacher of its own.")
    return " ".join([*made, *map(_fingerprints, _checkpoints(figures)), f"{rows}{costs}"])


def earlier_titles(figures: Figures) -> list[str]:
    """The titles of the columns."""
    quality = heading(figures.quality)
    return [
        "sweep",
        "its teacher",
        "metric",
        "its teacher, test rows",
        "its student, test rows",
        f"its teacher, validation {quality}",
        *(f"its teacher, {heading(name)}" for name in EARLIER_COSTS),
        "test rows",
    ]


def earlier_rows(figures: Figures) -> list[list[str]]:
    """The cells of each earlier sweep, the latest one first."""
    return [
        [
            sweep.name,
            sweep.teacher,
            heading(sweep.metric),
            format_metric(sweep.metric, sweep.on_test.get("teacher")),
            format_metric(sweep.metric, sweep.on_test.get("student")),
            format_metric(figures.quality, sweep.figures.get(figures.quality)),
            *(format_metric(name, sweep.figures.get(name)) for name in EARLIER_COSTS),
            "as here" if sweep.is_on_same_rows else "other rows",
        ]
        for sweep in earlier_sweeps(figures)
    ]
