"""What a sweep came to: the choice, the student that is shipped, and the figures that are shown of it."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.choice import Choice, candidates, chosen, front_numbers
from kdray.claim import ledger_in, settings_in
from kdray.confirmation import Rerun, Verdict, answers_of, judged, rerun_all, reruns
from kdray.errors import NoStudent, SweepFailed
from kdray.export import keep_forms, shipped, write_card
from kdray.mirror import fetched
from kdray.paths import SweepPaths, new_folder, read_json, write_json
from kdray.pretrained import Pretrained, weights_fingerprint
from kdray.record import TrialRecord
from kdray.report import Figures
from kdray.search.importance import importances
from kdray.search.ledger import Ledger
from kdray.settings import dotted
from kdray.slots import SlotPool
from kdray.sweep import Sweep
from kdray.tracking import Tracker
from kdray.trial import Examine, Lesson, Trial, quality
from kdray.worker import Pool, Report

FIRST_RERUN = 10_000
"""MLflow shows what confirmed a choice beside the trials: its numbers begin where theirs never come."""


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


def confirm(
    sweep: Sweep, paths: SweepPaths, ledger: Ledger, lessons: Mapping[str | None, Lesson], slots: SlotPool,
    tracker: Tracker, on_progress: Callable[[int, int], None],
) -> Verdict | None:  # fmt: skip
    """Train the candidates and their controls again, and judge them on the test rows; None where nothing is confirmed.

    Each run is in MLflow beside the trials, under a number of its own.
    """
    able = candidates(ledger.records(), sweep.choose, sweep.confirm.candidates)
    costs = {record.number: record.costs for record in able}
    runs = reruns(sweep.confirm, able, sweep.recipe_of, sweep.seed)
    rows = lessons[None].transfer.rows(lessons[None].tokens, "test")
    trials = {
        run: Trial(run.recipe, lessons[run.recipe.student.checkpoint], run.seed, paths.rerun(run.key)) for run in runs
    }
    numbers = _numbers(paths.reruns, [run.key for run in runs])
    failed: dict[Rerun, str] = {}
    ended = 0

    def on_end(run: Rerun, reports: list[Report], error: str | None) -> None:
        nonlocal ended
        ended += 1
        on_progress(ended, len({run.key for run in runs}))
        answers = answers_of(paths.rerun(run.key))
        if error:
            failed[run] = error
        if reports or error:
            tested = {} if answers is None else quality(sweep.task, answers, rows)
            figures = {**costs[run.trial], **{f"test.{name}": value for name, value in tested.items()}}
            record = TrialRecord(
                numbers[run.key], {}, "failed" if error else "completed", tuple(reports), figures, error,
                started=time.time() - sum(report.get("train_seconds", 0.0) for report in reports), ended=time.time(),
                title=str(run),
            )  # fmt: skip
            tags = {"kdray.role": run.role, "kdray.candidate": str(run.trial), "kdray.teacher": sweep.teacher.called}
            tracker.trial(record, dotted(run.recipe) | {"seed": run.seed}, tags)

    rerun_all(trials, slots, on_end)
    answers = {run: logits for run in runs if (logits := answers_of(paths.rerun(run.key))) is not None}
    return judged(answers, failed, rows, sweep.task, able, sweep.choose, read_json(paths.teacher_figures))


def choose(sweep: Sweep, paths: SweepPaths, ledger: Ledger, verdict: Verdict | None) -> Figures:
    """Apply the rule and write down what came of it. Raises SweepFailed when no trial ran to its end."""
    records = ledger.records()
    if not any(record.state == "completed" for record in records):
        first = next((record.error for record in records if record.error), "early stopping ended them all")
        raise SweepFailed(f"none of the {len(records)} trials ran to its end; the first: {first}")
    choice: Choice = chosen(records, sweep.choose, read_json(paths.teacher_figures))
    number, sentences = (choice.number, [choice.sentence]) if verdict is None else (verdict.chosen, verdict.sentences)
    written: dict[str, Any] = {"chosen": number, "sentences": sentences, "rule": sweep.choose.model_dump(mode="json")}
    written["front"] = sorted(front_numbers(records, sweep.search.objectives))
    written["importances"] = importances(ledger)
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
        return
    record = next(record for record in figures.records if record.number == figures.chosen)
    with new_folder(paths.chosen) as folder:
        shutil.copytree(_weights(sweep, paths, record, figures), folder, dirs_exist_ok=True)
        keep_forms(fetched(paths.chosen), folder)
    lesson = lessons[sweep.recipe_of(record.params).student.checkpoint]
    student = Pretrained(paths.chosen, weights_fingerprint(paths.chosen))
    measured = {}
    for split in ("validation", "test"):
        (measured[split],) = slots.run(Examine(lesson, student, split), f"examine-{split}")
    metric = sweep.task.metric_names(2)[0]
    test = measured["test"]
    which = "On" if figures.verdict is None else "The one of them that is shipped, the best by the validation rows, on"
    sentence = (
        f"{which} {len(lesson.tokens.rows('test'))} test rows, which nothing was chosen by: {metric} "
        f"{test[metric]:.4f}, {test['retention']:.1%} of the teacher's."
    )
    choice = read_json(paths.choice)
    write_json(paths.choice, choice | {"sentences": [*choice["sentences"], sentence], "measured": measured})
    tracker.sweep(
        metrics={f"chosen.{split}.{name}": value for split, of in measured.items() for name, value in of.items()},
        tags={"kdray.chosen": str(figures.chosen), "kdray.choice": " ".join([*figures.sentences, sentence])},
    )
    write_card(shipped(paths), figures_of(paths))


def _weights(sweep: Sweep, paths: SweepPaths, record: TrialRecord, figures: Figures) -> Path:
    """Of the seeds that confirmed it, the best by the validation rows; of a search alone, the trial's own."""
    if figures.verdict is None:
        return fetched(paths.student(record.number))
    metric = figures.verdict.metric
    runs = reruns(sweep.confirm.model_copy(update={"controls": False}), [record], sweep.recipe_of, sweep.seed)
    trained = [student for run in runs if fetched(student := paths.rerun(run.key)).exists()]
    return max(trained, key=lambda student: float(read_json(fetched(student.with_name("ended.json")))[-1][metric]))


def _numbers(file: Path, keys: Sequence[str]) -> dict[str, int]:
    """A number for each, the same whenever it is asked for, and no trial's."""
    known: dict[str, int] = read_json(file) if file.exists() else {}
    for key in keys:
        known.setdefault(key, FIRST_RERUN + len(known))
    if keys:
        write_json(file, known)
    return known


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
        verdict=Verdict.model_validate(choice["confirmation"]) if "confirmation" in choice else None,
        objectives=identity["search"]["objectives"],
        searched=list(identity["space"]),
        conditions=read_json(paths.conditions)["costs"] if paths.conditions.exists() else "",
    )
