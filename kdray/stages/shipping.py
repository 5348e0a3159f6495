"""The stage that ships the chosen student: its folder, its model card, the report, and artifacts in MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass

from kdray.choice.decision import Decision
from kdray.errors import NoStudent
from kdray.evaluation.formatting import format_difference, format_metric, noun
from kdray.evaluation.trial_record import TrialRecord
from kdray.export.card import write_card
from kdray.export.checks import ExportResult
from kdray.export.exporting import export_named_forms
from kdray.export.shipped import Shipped, copy_forms
from kdray.export.student_files import copy_student_files
from kdray.forms.form import Form
from kdray.forms.forms import PYTORCH
from kdray.forms.metrics import MEASURED
from kdray.models.folders import weights_fingerprint
from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained
from kdray.report.figures import Figures
from kdray.report.files import write_report
from kdray.slots.job import Worker
from kdray.stages.choosing import student_to_ship
from kdray.stages.named_forms import forms_to_ship
from kdray.stages.reading import SweepRecords
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons
from kdray.storage.files import replace_folder
from kdray.storage.mirror import delete, fetch
from kdray.storage.names import check_regular_files
from kdray.storage.paths import SweepPaths
from kdray.storage.records import write_record
from kdray.tasks.label_figures import LabelFigures
from kdray.tracking.ids import save_run_ids
from kdray.training.trial import EvaluateStudent


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep."""

    paths: SweepPaths
    figures: Figures
    page: str | None = None
    """The path of MLflow's page with the trials of the sweep, without the address of the server."""
    server: str | None = None
    """The address of the MLflow server; None where the sweep is tracked in a file."""
    registered: str | None = None
    """The outcome of registering the student, in words."""

    @property
    def exit_code(self) -> int:
        return 0 if self.figures.chosen is not None else NoStudent.exit_code


def ship(session: Session, lessons: Lessons, decision: Decision) -> Decision:
    """Write the chosen student to `chosen/`, measure it there, and log the students of the front to MLflow.

    Returns the decision with the measured metrics, and records it.
    """
    paths, tracker = session.paths, session.tracker
    for number in decision.front:
        tracker.log_artifacts(paths.student(number), "student", trial=number)
    if decision.chosen is None:
        delete(paths.chosen)  # it may hold the student that an earlier rule chose
        tracker.sweep(tags={"kdray.chosen": "none", "kdray.choice": " ".join(decision.sentences)})
        return decision
    record = session.ledger[decision.chosen]
    with replace_folder(paths.chosen) as folder:
        weights = student_to_ship(session.sweep, paths, record, decision.confirmation)
        check_regular_files(weights, paths.root)
        copy_student_files(weights, folder)
        # If the weights are the same as before, the forms that were exported from them stay valid.
        copy_forms(fetch(paths.chosen), folder)
    measured, by_label = _measure(session, lessons, record)
    exported = _export(session, lessons, decision, record)
    sentences = (
        *decision.sentences,
        _describe_test(session, lessons, decision, measured["test"]),
        *(_describe_form(session, exported, form) for form in _forms(session, record)),
    )
    decision = decision.model_copy(update={"sentences": sentences, "measured": measured, "by_label": by_label})
    write_record(paths.choice, decision)
    tracker.sweep(
        metrics={
            f"chosen.{split}.{name}": value
            for split, metrics in (measured | _figures_of_forms(exported)).items()
            for name, value in metrics.items()
        },
        tags={"kdray.chosen": str(decision.chosen), "kdray.choice": " ".join(sentences)},
    )
    return decision


@dataclass(frozen=True)
class Results:
    """The figures and the student that a session has written at its end."""

    figures: Figures
    student: Shipped | None
    """None where no student satisfies the rule."""


def write_results(session: Session, decision: Decision, lineage: Lineage, records: SweepRecords) -> Results:
    """Write the model card of the shipped student, and the report, which is logged to MLflow, too."""
    sweep, paths = session.sweep, session.paths
    # results.csv names the runs of the trials, and MLflow's answers come later than the ends of short trials.
    save_run_ids(session.ledger, session.tracker.run_ids())
    figures = records.figures(sweep.name, sweep.identity(), session.ledger.records())
    student = None
    if decision.chosen is not None:
        student = _shipped(session, decision, lineage)
        write_card(student, figures)
    write_report(figures, paths.report)
    session.tracker.log_artifacts(paths.report, "report")
    return Results(figures, student)


def _shipped(session: Session, decision: Decision, lineage: Lineage) -> Shipped:
    """The student in `chosen/`, with the settings of this sweep."""
    sweep = session.sweep
    return Shipped(
        paths=session.paths,
        task=sweep.task,
        data=sweep.data,
        latency=sweep.latency,
        settings=sweep.identity(),
        decision=decision,
        lineage=lineage,
    )


def _export(session: Session, lessons: Lessons, decision: Decision, record: TrialRecord) -> ExportResult | None:
    """Export the student in `chosen/` in the forms of `forms_to_ship`; None if there are none.

    The costs in the search are those of a model with other weights; here the trained student is checked and timed.
    """
    forms = _forms(session, record)
    if not forms:
        return None
    session.screen.stage("Forms of the chosen student")
    rows = lessons.inputs.of(session.sweep.recipe_of(record.params).student).rows("test", Worker())
    return export_named_forms(_shipped(session, decision, lessons.lineage), forms, rows, session.screen.note)


def _forms(session: Session, record: TrialRecord) -> tuple[Form, ...]:
    return forms_to_ship(session.sweep, session.sweep.recipe_of(record.params).student)


def _figures_of_forms(exported: ExportResult | None) -> dict[str, dict[str, float]]:
    """Form -> the figures of the student in it: metrics on the test rows, size and speed."""
    return {
        figures.form: {
            **figures.metrics,
            "agreement": figures.agreement,
            **{name: getattr(figures, name) for name in MEASURED},
        }
        for figures in (exported.forms if exported else ())
        if figures.form != PYTORCH
    }


def _describe_form(session: Session, exported: ExportResult | None, form: Form) -> str:
    """The sentence about the shipped student in a form that the rule names."""
    figures = exported.figures_of(form.name) if exported else None
    if figures is None:
        reason = exported.missing.get(form.name, "no reason was given") if exported else ""
        return f"The trained student could not be exported in {form.label}: {reason}."
    metric = session.sweep.task.quality.name
    quality = f"{noun(metric)} {format_metric(metric, figures.metrics[metric])}"
    if figures.difference is not None:
        quality += f", {format_difference(metric, figures.difference)} compared with PyTorch"
    costs = ", ".join(
        f"{noun(name)} {format_metric(name, getattr(figures, name))}" for name in ("latency_ms", "size_mb")
    )
    return (
        f"{form.file} is this student in {form.label}. On the same test rows: {quality}, agreement with "
        f"PyTorch {format_metric('agreement', figures.agreement)}; measured after the training: {costs}."
    )


def _measure(
    session: Session, lessons: Lessons, record: TrialRecord
) -> tuple[dict[str, dict[str, float]], dict[str, LabelFigures] | None]:
    """Measure the student in `chosen/`. Returns its metrics by split, and the figures by label on the test rows."""
    inputs = lessons.inputs.of(session.sweep.recipe_of(record.params).student)
    student = Pretrained(session.paths.chosen, weights_fingerprint(session.paths.chosen))
    measured: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        job = EvaluateStudent(inputs, student, split, by_label=split == "test")
        measured[split], *labels = session.slots.run(job, f"examine-{split}")
    figures = {str(report["label"]): LabelFigures(report["f1"], report["count"]) for report in labels}
    return measured, figures or None


def _describe_test(session: Session, lessons: Lessons, decision: Decision, test: Mapping[str, float]) -> str:
    """The sentence about the shipped student on the test rows; `test` are its metrics there."""
    metric = session.sweep.task.quality.name
    confirmed = decision.confirmation is not None and decision.confirmation.winner is not None
    seed = "Of the seeds of this student, the best one on the validation rows is shipped. " if confirmed else ""
    rows = len(lessons.inputs.first.tokens.rows("test").example_starts) - 1
    value = format_metric(metric, test[metric])
    return (
        f"{seed}On {rows:,} test rows, which were not used to choose it: {noun(metric)} {value}, "
        f"retention {format_metric('retention', test['retention'])}."
    )
