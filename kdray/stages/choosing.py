"""What a sweep came to: the choice, the student that is shipped, and the figures that are shown of it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.choice.controls import Control
from kdray.choice.reruns import Confirm, reruns
from kdray.choice.rule import Choice, Choose, chosen, front_numbers
from kdray.choice.verdict import Verdict
from kdray.errors import NoStudent, StorageError, SweepFailed
from kdray.evaluation.trial_record import TrialRecord
from kdray.export.card import write_card
from kdray.export.shipped import keep_forms, shipped
from kdray.models.pretrained import Pretrained, weights_fingerprint
from kdray.report.figures import Figures
from kdray.search.claim import ledger_in, settings_in
from kdray.search.importance import importances
from kdray.search.ledger import Ledger
from kdray.settings import Settings
from kdray.slots.job import Pool
from kdray.storage.files import new_folder, read_json, write_json
from kdray.storage.mirror import fetched, remove
from kdray.storage.paths import SweepPaths, shown
from kdray.sweep import Sweep
from kdray.tracking.tracker import Tracker
from kdray.training.trial import Examine, Lesson, reports_of


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    paths: SweepPaths
    figures: Figures
    page: str | None = None
    """Of MLflow's user interface, behind its address: the sweep's trials side by side."""
    server: str | None = None
    """MLflow's address, where the sweep has a server."""
    registered: str | None = None
    """What came of registering the student, in words."""

    @property
    def exit_code(self) -> int:
        return 0 if self.figures.chosen is not None else NoStudent.exit_code


class Asked(Settings):
    """By which rule a sweep's student was chosen, and how sure of it one was to be."""

    choose: Choose = Choose()
    confirm: Confirm = Confirm()

    @classmethod
    def read(cls, paths: SweepPaths) -> "Asked":
        """Of a sweep that has come to a choice."""
        return cls(**read_json(paths.choice).get("asked", {}))


def choose(
    sweep: Sweep, paths: SweepPaths, ledger: Ledger, controls: Sequence[Control], verdict: Verdict | None
) -> Figures:
    """Apply the rule and write down what came of it.

    Raises SweepFailed when no trial ran to its end, StorageError when the chosen one's weights were not kept.
    """
    records = ledger.records()
    if not any(record.state == "completed" for record in records):
        first = next((record.error for record in records if record.error), "early stopping ended them all")
        raise SweepFailed(f"none of the {len(records)} trials ran to its end; the first: {first}")
    choice: Choice = chosen(records, sweep.choose, read_json(paths.teacher_figures))
    number, sentences = (choice.number, [choice.sentence]) if verdict is None else (verdict.chosen, verdict.sentences)
    if number is not None:
        _weights(sweep, paths, records[number], verdict)
    written: dict[str, Any] = {"chosen": number, "sentences": sentences}
    written["asked"] = Asked(choose=sweep.choose, confirm=sweep.confirm).model_dump(mode="json")
    written["front"] = sorted(front_numbers(records, sweep.search.objectives))
    written["importances"] = importances(ledger)
    written["controls"] = [control.model_dump(mode="json") for control in controls]
    if verdict is not None:
        written["confirmation"] = verdict.model_dump(mode="json")
    write_json(paths.choice, written)
    return figures_of(paths)


def ship(
    sweep: Sweep, paths: SweepPaths, lessons: Mapping[str | None, Lesson], slots: Pool, figures: Figures,
    tracker: Tracker,
) -> None:  # fmt: skip
    """Put the chosen student into `chosen/`, measured there once more, and the front's students into MLflow."""
    for number in figures.front:
        tracker.log_artifacts(paths.student(number), "student", trial=number)
    if figures.chosen is None:
        remove(paths.chosen)  # what an earlier rule chose
        tracker.sweep(tags={"kdray.chosen": "none", "kdray.choice": " ".join(figures.sentences)})
        return
    record = next(record for record in figures.records if record.number == figures.chosen)
    with new_folder(paths.chosen) as folder:
        shutil.copytree(_weights(sweep, paths, record, figures.verdict), folder, dirs_exist_ok=True)
        keep_forms(fetched(paths.chosen), folder)
    lesson = lessons[sweep.recipe_of(record.params).student.checkpoint]
    student = Pretrained(paths.chosen, weights_fingerprint(paths.chosen))
    measured = {}
    for split in ("validation", "test"):
        (measured[split],) = slots.run(Examine(lesson, student, split), f"examine-{split}")
    metric = sweep.task.metric_names(2)[0]
    test = measured["test"]
    again = figures.verdict is not None and figures.verdict.winner is not None
    which = "The one of them that is shipped, the best by the validation rows, on" if again else "On"
    sentence = (
        f"{which} {len(lesson.tokens.rows('test')):,} test rows, which nothing was chosen by: {metric} "
        f"{test[metric]:.4f}, {test['retention']:.1%} of the teacher's."
    )
    choice = read_json(paths.choice)
    write_json(paths.choice, choice | {"sentences": [*choice["sentences"], sentence], "measured": measured})
    tracker.sweep(
        metrics={f"chosen.{split}.{name}": value for split, of in measured.items() for name, value in of.items()},
        tags={"kdray.chosen": str(figures.chosen), "kdray.choice": " ".join([*figures.sentences, sentence])},
    )
    write_card(shipped(paths), figures_of(paths))


def _weights(sweep: Sweep, paths: SweepPaths, record: TrialRecord, verdict: Verdict | None) -> Path:
    """Of the seeds that confirmed it, the best by the validation rows; the trial's own where there are none.

    Raises StorageError when the trial's own are needed and were not kept.
    """
    if verdict is not None and verdict.winner is not None:
        metric = verdict.metric
        runs = reruns(sweep.confirm.model_copy(update={"controls": False}), [record], sweep.recipe_of, sweep.seed)
        trained = [student for run in runs if fetched(student := paths.rerun(run.key)).exists()]
        return max(trained, key=lambda student: float(reports_of(student)[-1][metric]))
    student = fetched(paths.student(record.number))
    if not student.exists():
        raise StorageError(
            f"{shown(student)}: trial {record.number} was on no front that the rule of then asked for, so its weights "
            "were not kept. Train it again: --set confirm.candidates=1."
        )
    return student


def figures_of(paths: SweepPaths) -> Figures:
    """What is known of a finished or running sweep, from its files. Raises StorageError where there is none."""
    identity = settings_in(paths)
    choice = read_json(paths.choice) if paths.choice.exists() else {"chosen": None, "front": [], "sentences": []}
    return Figures(
        name=paths.name,
        teacher=read_json(paths.teacher_figures) if paths.teacher_figures.exists() else {},
        records=ledger_in(paths).records(),
        front=choice["front"],
        chosen=choice["chosen"],
        sentences=choice["sentences"],
        importances=choice.get("importances", {}),
        times=read_json(paths.times) if paths.times.exists() else {},
        origin=read_json(paths.origin) if paths.origin.exists() else {},
        controls=[Control.model_validate(control) for control in choice.get("controls", [])],
        verdict=Verdict.model_validate(choice["confirmation"]) if "confirmation" in choice else None,
        objectives=identity["search"]["objectives"],
        searched=list(identity["space"]),
        conditions=read_json(paths.conditions)["costs"] if paths.conditions.exists() else "",
    )
