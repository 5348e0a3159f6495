"""The story of a sweep, from teacher to chosen student.

Each step finds its finished work on disk and skips it: running the same sweep again goes on where it was left.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdray.choice import Choice, chosen, front_numbers
from kdray.costs import AskHardware, measured_costs, with_speedup
from kdray.data import Splits, load_splits
from kdray.errors import NoStudent, StorageError, SweepFailed
from kdray.paths import SweepPaths, new_folder, read_json, write_json
from kdray.pretrained import Pretrained, found, weights_fingerprint
from kdray.record import TrialRecord
from kdray.report import Figures, write_report
from kdray.screen import NullScreen, Screen
from kdray.search.ledger import Ledger
from kdray.search.searcher import Study
from kdray.search.searching import search
from kdray.settings import dotted
from kdray.slots import LocalSlots, SlotPool, connect, open_slots
from kdray.space import architectures
from kdray.sweep import Sweep
from kdray.teacher import adopted, check_quality, obtain_source, obtain_teacher
from kdray.tokens import TokenSet, tokenised
from kdray.tracking import Tracker, git_commit, versions
from kdray.transfer import obtain_transfer_set
from kdray.trial import Examine, Lesson, Recipe, Trial
from kdray.worker import Report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    paths: SweepPaths
    figures: Figures

    @property
    def exit_code(self) -> int:
        return 0 if self.figures.chosen is not None else NoStudent.exit_code


def run(
    sweep: Sweep, paths: SweepPaths, *, screen: Screen | None = None, address: str | None = None,
    require_cluster: bool = False, fresh: bool = False, local: bool = False,
) -> Outcome:  # fmt: skip
    """Run a sweep, or go on with it.

    `local` runs every job in this process, without Ray. Raises Refused when something is wrong with what was asked,
    before any training; SweepFailed when no trial ran to its end.
    """
    screen = screen or NullScreen()
    claim(sweep, paths, fresh)
    screen.stage("Data")
    splits = load_splits(sweep.data, sweep.task)
    sweep.check_classes(splits)
    for note in (*splits.notes, sizes(splits)):
        screen.note(note)
    source = obtain_source(sweep.teacher, sweep.task, splits, paths, sweep.seed)
    sources = student_sources(sweep, splits, source, paths)
    ledger = Ledger.open(paths.journal, sweep.name, sweep.search.objectives)

    with (
        slots_for(sweep, paths, screen, address, require_cluster, local) as slots,
        tracked(sweep, paths, ledger) as tracker,
    ):
        screen.stage("Teacher")
        teacher = obtain_teacher(
            sweep.teacher, source, sweep.task, sources[None].tokens, paths, sweep.seed, slots, epochs_on(screen, sweep)
        )
        screen.stage("Transfer set")
        transfer = obtain_transfer_set(
            sweep.transfer, teacher, sources[None].tokens, paths, slots,
            lambda done, shards: screen.progress("shards labelled", done, shards),
        )  # fmt: skip
        validation = transfer.rows(sources[None].tokens, "validation")
        check_quality(sweep.teacher, transfer.logits("validation").all(), validation.labels, splits.labels)
        lessons = {name: Lesson(sweep.task, of.model, of.tokens, transfer) for name, of in sources.items()}
        lessons[None] = replace(lessons[None], source=teacher)

        screen.stage("Costs of each architecture")
        costs = Costs.measured(sweep, sources, paths, slots, screen)
        taught = sweep.task.metrics(transfer.logits("validation").all(), validation.labels)
        write_json(paths.teacher_figures, taught | costs.teacher)
        tracker.sweep(metrics={f"teacher.{name}": value for name, value in (taught | costs.teacher).items()})

        screen.stage("Search")
        study = Study(sweep.search, sweep.space, ledger, costs.of, lambda params: evaluations(sweep.recipe_of(params)))
        keeper = Keeper(sweep, paths, ledger, tracker, screen)
        search(slots, study, lambda number, params: trial(sweep, lessons, paths, number, params), keeper.take)

        screen.stage("Choice")
        figures = choose(sweep, paths, ledger)
        ship(sweep, paths, lessons, slots, figures, tracker)
        write_report(figures, paths.report)
        tracker.log_artifacts(paths.report, "report")
    return Outcome(paths, figures_of(paths))


def claim(sweep: Sweep, paths: SweepPaths, fresh: bool) -> None:
    """Make the sweep's folder its own. Raises StorageError when it belongs to a sweep with other settings."""
    if fresh and paths.root.exists():
        shutil.rmtree(paths.root)
    identity = {"identity": sweep.identity(), "choose": sweep.choose.model_dump(mode="json")}
    if paths.settings.exists():
        differences = different(read_json(paths.settings)["identity"], identity["identity"])
        if differences:
            raise StorageError(
                f"{paths.root}: the name {sweep.name!r} is used by a sweep with other settings: "
                f"{'; '.join(differences)}. Give this one another name (--set name=...), or start over with --fresh."
            )
    elif paths.root.exists() and any(paths.root.iterdir()) and not paths.logs.exists():
        raise StorageError(f"{paths.root}: holds something that is no sweep. Give another name or another --storage.")
    write_json(paths.settings, identity)


@dataclass(frozen=True)
class StudentSource:
    """What students are cut from, and the rows in its tokenizer's ids."""

    model: Pretrained
    tokens: TokenSet


def student_sources(
    sweep: Sweep, splits: Splits, teacher: Pretrained, paths: SweepPaths
) -> dict[str | None, StudentSource]:
    """The source of every student in the space, by `student.checkpoint`; None is the teacher.

    Raises SpecError for a student that its source cannot make, before anything is trained.
    """
    students = [sweep.recipe_of(params).student for params in architectures(sweep.space)]
    sources: dict[str | None, StudentSource] = {
        None: StudentSource(teacher, tokenised(splits, sweep.task, teacher.tokenizer(), paths))
    }
    for student in students:
        if student.checkpoint not in sources:
            folder = found(student.checkpoint or "", student.revision, "student.checkpoint")
            model = adopted(folder, sweep.task, splits.labels, paths, sweep.seed)
            sources[student.checkpoint] = StudentSource(model, tokenised(splits, sweep.task, model.tokenizer(), paths))
        student.chosen_layers(sources[student.checkpoint].model.layers)
    return sources


@dataclass(frozen=True)
class Costs:
    """The costs of the teacher and of every architecture in the space."""

    sweep: Sweep
    teacher: dict[str, float]
    by_shape: dict[tuple[str | None, int], dict[str, float]]

    @classmethod
    def measured(
        cls,
        sweep: Sweep,
        sources: Mapping[str | None, StudentSource],
        paths: SweepPaths,
        slots: SlotPool,
        screen: Screen,
    ) -> "Costs":
        """Measured one after the other, once every slot has started and is idle."""
        slots.wait()
        hardware = str(next(iter(slots.run(AskHardware(), "hardware")))["hardware"])
        teacher = measured_costs(sources[None].model, None, sweep.latency, hardware, paths, slots)
        costs = cls(sweep, teacher, {})
        shapes = {costs.shape(params): sweep.recipe_of(params).student for params in architectures(sweep.space)}
        for done, (shape, student) in enumerate(shapes.items(), start=1):
            source = sources[student.checkpoint].model
            costs.by_shape[shape] = with_speedup(
                measured_costs(source, student, sweep.latency, hardware, paths, slots), teacher
            )
            screen.progress("architectures", done, len(shapes))
        return costs

    def shape(self, params: Mapping[str, Any]) -> tuple[str | None, int]:
        """What distinguishes one architecture of the sweep from another."""
        student = self.sweep.recipe_of(params).student
        return student.checkpoint, student.depth or 0

    def of(self, params: Mapping[str, Any]) -> dict[str, float]:
        """The costs of the student that these searched settings make."""
        return self.by_shape[self.shape(params)]


def trial(
    sweep: Sweep, lessons: Mapping[str | None, Lesson], paths: SweepPaths, number: int, params: Mapping[str, Any]
) -> Trial:
    """The trial with these searched settings. All trials of a sweep share its seed: they see the same batches."""
    recipe = sweep.recipe_of(params)
    return Trial(recipe, lessons[recipe.student.checkpoint], sweep.seed, paths.student(number))


def evaluations(recipe: Recipe) -> int:
    """How many evaluations a trial makes when nothing stops it."""
    return recipe.training.epochs * recipe.training.evaluations_per_epoch


class Keeper:
    """Keeps tracker, screen and disk up with the ledger as trials change."""

    def __init__(self, sweep: Sweep, paths: SweepPaths, ledger: Ledger, tracker: Tracker, screen: Screen) -> None:
        self.sweep, self.paths, self.ledger, self.tracker, self.screen = sweep, paths, ledger, tracker, screen
        self.tags = {"kdray.task": sweep.task.name, "kdray.teacher": teacher_name(sweep)}
        self.worth_keeping = keeping(sweep)
        for record in ledger.records():
            self.take(record)

    def take(self, record: TrialRecord) -> None:
        """A trial began, was evaluated or ended."""
        self.tracker.trial(record, searchable(self.sweep.recipe_of(record.params)), self.tags)
        for number, run_id in self.tracker.run_ids().items():
            if number is not None and self.ledger[number].run_id != run_id:
                self.ledger.set_run_id(number, run_id)
        records = self.ledger.records()
        if record.state == "completed":
            self.drop_students(records)
        best = max(
            (r for r in records if r.state == "completed"),
            key=lambda r: (r.metrics[self.sweep.search.objectives[0]], -r.number), default=None,
        )  # fmt: skip
        self.screen.trials(records, self.sweep.search.trials, best)

    def drop_students(self, records: list[TrialRecord]) -> None:
        """Remove the weights of students that another one beats in everything that the choice may look at."""
        kept = front_numbers(records, self.worth_keeping)
        for record in records:
            if record.state == "completed" and record.number not in kept:
                shutil.rmtree(self.paths.student(record.number).parent, ignore_errors=True)


def keeping(sweep: Sweep) -> tuple[str, ...]:
    """The metrics whose front holds every student that may be chosen or shown."""
    quality = sweep.task.metric_names(2)[0]
    return tuple(dict.fromkeys((*sweep.search.objectives, quality, *sweep.choose.metrics)))


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
    sweep: Sweep, paths: SweepPaths, lessons: Mapping[str | None, Lesson], slots: SlotPool, figures: Figures,
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
    if not paths.settings.exists():
        raise StorageError(f"{paths.root}: there is no sweep here; give STORAGE/NAME, such as results/quickstart.")
    identity = read_json(paths.settings)["identity"]
    choice = read_json(paths.choice) if paths.choice.exists() else {"chosen": None, "front": [], "sentences": []}
    return Figures(
        name=paths.name,
        teacher=read_json(paths.teacher_figures) if paths.teacher_figures.exists() else {},
        records=Ledger.read(paths.journal, paths.name).records(),
        front=choice["front"],
        chosen=choice["chosen"],
        sentences=choice["sentences"],
        objectives=identity["search"]["objectives"],
        searched=list(identity["space"]),
    )


@contextmanager
def slots_for(
    sweep: Sweep, paths: SweepPaths, screen: Screen, address: str | None, require_cluster: bool, local: bool
) -> Iterator[SlotPool]:
    """The slots of the sweep: in this process, or on the Ray that was joined or started."""
    if local:
        with LocalSlots(threads=max(1, int(sweep.slots.cpus or os.cpu_count() or 1))) as slots:  # as one Ray slot has
            yield slots
        return
    cluster = connect(address, require_cluster, paths.logs)
    try:
        screen.note(cluster.sentence)
        with open_slots(sweep.slots, paths.root, paths.logs) as ray_slots:
            yield ray_slots
    finally:
        cluster.close()


@contextmanager
def tracked(sweep: Sweep, paths: SweepPaths, ledger: Ledger) -> Iterator[Tracker]:
    """The sweep's run in MLflow, begun or gone on with, and closed with how the sweep ended."""
    tracker = sweep.tracking.open(paths)
    commit = git_commit(Path.cwd())
    tags = {"kdray.task": sweep.task.name, "kdray.teacher": teacher_name(sweep), **versions()}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    tracker.start_sweep(sweep.name, searchable(sweep), tags, ledger.attr("mlflow_run"))
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.end_sweep("interrupted")
        raise
    except BaseException:
        tracker.end_sweep("failed")
        raise
    else:
        tracker.end_sweep("finished")
    finally:
        if run_id := tracker.run_ids().get(None):
            ledger.set_attr("mlflow_run", run_id)


def searchable(settings: Any) -> dict[str, Any]:
    """Every setting by dotted name, in a form that can be written down."""
    flat = dotted(settings)
    domains = flat.pop("space", {})
    smoke = flat.pop("smoke", {})
    del smoke
    return flat | {f"space.{name}": getattr(domain, "domain_str", domain) for name, domain in domains.items()}


def teacher_name(sweep: Sweep) -> str:
    """What the teacher is called in tags."""
    model = sweep.teacher.model
    return model if isinstance(model, str) else "from scratch"


def sizes(splits: Splits) -> str:
    """What the sweep learns from and is measured on, in a sentence."""
    rows = (
        f"{len(splits.train):,} rows to train on, {len(splits.validation):,} to validate, {len(splits.test):,} to test"
    )
    return f"{rows}; labels {', '.join(splits.labels)}"


def epochs_on(screen: Screen, sweep: Sweep) -> Callable[[Report], None]:
    """Shows the teacher's epochs on the screen."""
    epochs = sweep.teacher.training.epochs if sweep.teacher.training else 0
    quality = sweep.task.metric_names(2)[0]

    def show(report: Report) -> None:
        screen.progress(f"epochs of the teacher ({quality} {report[quality]:.4f})", report["epoch"], epochs)

    return show


def different(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, as `name: was A, now B`."""
    sentences = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            sentences += different(old, new, f"{prefix}{name}.")
        elif old != new:
            sentences.append(f"{prefix}{name}: was {old}, now {new}")
    return sentences
