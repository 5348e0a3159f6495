"""The stage that ships the chosen student: its folder, its model card, the report, and the artifacts in MLflow."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from kdray.choice.decision import Decision
from kdray.errors import NoStudent
from kdray.evaluation.trial_record import TrialRecord
from kdray.export.card import write_card
from kdray.export.shipped import Shipped, copy_forms
from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained, weights_fingerprint
from kdray.report.figures import Figures
from kdray.report.files import write_report
from kdray.stages.choosing import student_to_ship
from kdray.stages.reading import SweepRecords
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons
from kdray.storage.files import replace_folder
from kdray.storage.mirror import fetch, remove
from kdray.storage.paths import SweepPaths
from kdray.storage.records import write_record
from kdray.training.trial import EvaluateStudent


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    paths: SweepPaths
    figures: Figures
    page: str | None = None
    """The path of MLflow's page that shows the trials of the sweep, behind the address of the server."""
    server: str | None = None
    """The address of MLflow, where the sweep has a server."""
    registered: str | None = None
    """The outcome of registering the student, in words."""

    @property
    def exit_code(self) -> int:
        return 0 if self.figures.chosen is not None else NoStudent.exit_code


def ship(session: Session, lessons: Lessons, decision: Decision) -> Decision:
    """Put the chosen student into `chosen/` and measure it there; the students of the front go to MLflow.

    Returns the decision with what was measured, and writes it down.
    """
    paths, tracker = session.paths, session.tracker
    for number in decision.front:
        tracker.log_artifacts(paths.student(number), "student", trial=number)
    if decision.chosen is None:
        remove(paths.chosen)  # it may hold what an earlier rule chose
        tracker.sweep(tags={"kdray.chosen": "none", "kdray.choice": " ".join(decision.sentences)})
        return decision
    record = session.ledger[decision.chosen]
    with replace_folder(paths.chosen) as folder:
        weights = student_to_ship(session.sweep, paths, record, decision.confirmation)
        shutil.copytree(weights, folder, dirs_exist_ok=True)
        copy_forms(fetch(paths.chosen), folder)
    measured = _measure(session, lessons, record)
    sentences = (*decision.sentences, _describe_test(session, lessons, decision, measured["test"]))
    decision = decision.model_copy(update={"sentences": sentences, "measured": measured})
    write_record(paths.choice, decision)
    tracker.sweep(
        metrics={f"chosen.{split}.{name}": value for split, of in measured.items() for name, value in of.items()},
        tags={"kdray.chosen": str(decision.chosen), "kdray.choice": " ".join(sentences)},
    )
    return decision


@dataclass(frozen=True)
class Results:
    """What a session has written at its end."""

    figures: Figures
    student: Shipped | None
    """None where no student satisfies the rule."""


def write_results(session: Session, decision: Decision, lineage: Lineage, written: SweepRecords) -> Results:
    """Write the model card and the report."""
    sweep, paths = session.sweep, session.paths
    settings = sweep.identity()
    figures = written.figures(sweep.name, settings, session.ledger.records())
    student = None
    if decision.chosen is not None:
        student = Shipped(
            paths=paths,
            task=sweep.task,
            data=sweep.data,
            latency=sweep.latency,
            settings=settings,
            decision=decision,
            lineage=lineage,
        )
        write_card(student, figures)
    write_report(figures, paths.report)
    session.tracker.log_artifacts(paths.report, "report")
    return Results(figures, student)


def _measure(session: Session, lessons: Lessons, record: TrialRecord) -> dict[str, dict[str, float]]:
    """Split -> the metrics of the student in `chosen/`."""
    inputs = lessons.inputs.of(session.sweep.recipe_of(record.params).student)
    student = Pretrained(session.paths.chosen, weights_fingerprint(session.paths.chosen))
    measured: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        (measured[split],) = session.slots.run(EvaluateStudent(inputs, student, split), f"examine-{split}")
    return measured


def _describe_test(session: Session, lessons: Lessons, decision: Decision, test: Mapping[str, float]) -> str:
    metric = session.sweep.task.quality
    confirmed = decision.confirmation is not None and decision.confirmation.winner is not None
    which = "The one of them that is shipped, the best by the validation rows, on" if confirmed else "On"
    rows = len(lessons.inputs.teacher.tokens.rows("test"))
    return (
        f"{which} {rows:,} test rows, which nothing was chosen by: {metric} {test[metric]:.4f}, "
        f"{test['retention']:.1%} of the teacher's."
    )
