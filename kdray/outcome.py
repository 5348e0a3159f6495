"""What a sweep came to: the choice, the student that is shipped, and the figures that are shown of it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from kdray.choice import Choice, chosen, front_numbers
from kdray.claim import ledger_in, settings_in
from kdray.errors import NoStudent, SweepFailed
from kdray.paths import SweepPaths, new_folder, read_json, write_json
from kdray.pretrained import Pretrained, weights_fingerprint
from kdray.report import Figures
from kdray.search.ledger import Ledger
from kdray.sweep import Sweep
from kdray.tracking import Tracker
from kdray.trial import Examine, Lesson
from kdray.worker import Pool


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    paths: SweepPaths
    figures: Figures
    page: str | None = None
    """Of MLflow's user interface, behind its address: the sweep's trials side by side."""

    @property
    def exit_code(self) -> int:
        return 0 if self.figures.chosen is not None else NoStudent.exit_code


def choose(sweep: Sweep, paths: SweepPaths, ledger: Ledger) -> Figures:
    """Apply the rule and write down what came of it. Raises SweepFailed when no trial ran to its end."""
    records = ledger.records()
    if not any(record.state == "completed" for record in records):
        first = next((record.error for record in records if record.error), "early stopping ended them all")
        raise SweepFailed(f"none of the {len(records)} trials ran to its end; the first: {first}")
    choice: Choice = chosen(records, sweep.choose, read_json(paths.teacher_figures))
    front = sorted(front_numbers(records, sweep.search.objectives))
    write_json(paths.choice, {"chosen": choice.number, "front": front, "sentences": [choice.sentence]})
    return figures_of(paths)


def ship(
    sweep: Sweep, paths: SweepPaths, lessons: Mapping[str | None, Lesson], slots: Pool, figures: Figures,
    tracker: Tracker,
) -> None:  # fmt: skip
    """Put the chosen student into `chosen/`, measured there once more, and the front's students into MLflow."""
    for number in figures.front:
        tracker.log_artifacts(paths.student(number), "student", trial=number)
    if figures.chosen is None:
        return
    with new_folder(paths.chosen) as folder:
        shutil.copytree(paths.student(figures.chosen), folder, dirs_exist_ok=True)
    record = next(record for record in figures.records if record.number == figures.chosen)
    lesson = lessons[sweep.recipe_of(record.params).student.checkpoint]
    student = Pretrained(paths.chosen, weights_fingerprint(paths.chosen))
    measured = {}
    for split in ("validation", "test"):
        (measured[split],) = slots.run(Examine(lesson, student, split), f"examine-{split}")
    quality = sweep.task.metric_names(2)[0]
    test = measured["test"]
    sentence = (
        f"On {len(lesson.tokens.rows('test'))} test rows, which nothing was chosen by: {quality} {test[quality]:.4f}, "
        f"{test['retention']:.1%} of the teacher's."
    )
    choice = read_json(paths.choice)
    write_json(paths.choice, choice | {"sentences": [*choice["sentences"], sentence], "measured": measured})
    tracker.sweep(
        metrics={f"chosen.{split}.{name}": value for split, of in measured.items() for name, value in of.items()},
        tags={"kdray.chosen": str(figures.chosen), "kdray.choice": " ".join([*figures.sentences, sentence])},
    )


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
        objectives=identity["search"]["objectives"],
        searched=list(identity["space"]),
        conditions=read_json(paths.conditions)["costs"] if paths.conditions.exists() else "",
    )
