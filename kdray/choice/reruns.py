"""What is trained outside the search, and how: candidates again, and controls, each known by its recipe and seed.

One that is done is never done again, whatever the rule asks later. What the answers are worth is `verdict`'s.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field

from kdray.errors import JobError
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.trial_record import TrialRecord
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.settings import Settings, identifying_values
from kdray.slots.job import NOTE, Report, Worker
from kdray.slots.pool import SlotPool
from kdray.storage.files import fingerprint, replace_file
from kdray.storage.mirror import fetch, remove
from kdray.training.trial import Recipe, Trial, read_reports, reports_file

Role: TypeAlias = Literal["candidate", "labels only", "default distillation"]
"""The controls answer two questions: what the teacher's outputs are good for, and what the search is."""

ANSWERS_FILE = "test.npy"
TEST_BATCH_SIZE = 128


class Confirm(Settings):
    """Which students are trained again before one of them is chosen."""

    candidates: int = Field(3, ge=0)
    """At most so many members of the front that satisfy the rule. 0: the search alone decides."""
    seeds: int = Field(3, ge=1)
    """How often each is trained again, each time with another seed than the search's."""
    controls: bool = True
    """Train each architecture of the front on labels alone, and with distillation as it comes: once as the search
    trained it, and those of candidates over the same seeds as these."""


@dataclass(frozen=True)
class Rerun:
    """A trial of the search, or a control of it, that is to be trained with this seed."""

    trial: int
    """Its number in the search, or that of the trial that it is a control of."""
    role: Role
    seed: int
    recipe: Recipe

    @property
    def key(self) -> str:
        """The same for all that would be trained alike."""
        return fingerprint(identifying_values(self.recipe), self.seed)

    def __str__(self) -> str:
        return f"trial {self.trial:03d}{'' if self.role == 'candidate' else f', {self.role}'}, seed {self.seed}"


def planned_reruns(
    confirm: Confirm, candidates: Sequence[TrialRecord], recipe_of: Callable[[Mapping[str, object]], Recipe], seed: int
) -> list[Rerun]:
    """All that must be trained for these candidates; `recipe_of` tells what searched settings come to."""
    runs = []
    for record in candidates:
        tuned = recipe_of(record.params)
        recipes: dict[Role, Recipe] = {"candidate": tuned}
        if confirm.controls:
            recipes |= control_recipes(tuned, recipe_of({}))
        seeds = range(seed + 1, seed + 1 + confirm.seeds)
        runs += [Rerun(record.number, role, each, recipe) for each in seeds for role, recipe in recipes.items()]
    return runs


def control_recipes(tuned: Recipe, untuned: Recipe) -> dict[Role, Recipe]:
    """The same student on labels alone, and with distillation as it comes and settings that nothing has searched; for
    as many epochs."""
    training = untuned.training.model_copy(update={"epochs": tuned.training.epochs})
    return {
        "labels only": tuned.model_copy(update={"distillation": tuned.distillation.labels_only()}),
        "default distillation": Recipe(student=tuned.student, distillation=Distillation(), training=training),
    }


@dataclass(frozen=True)
class RerunResult:
    """What came of a rerun."""

    reports: tuple[Report, ...] = ()
    """All of its training, whichever session that was in."""
    host: str = ""
    """Where it ran in this session; empty where it was done before."""
    error: str | None = None


@dataclass(frozen=True)
class TrainAndTest:
    """The job that trains a student and lets it answer the test rows, in fp32; the logits lie beside it (N x C)."""

    trial: Trial

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield from self.trial(worker)
        student = self.trial.target
        if not worker.broadcast(fetch(student).exists()):
            return  # it was suspended
        rows = self.trial.inputs.rows("test", worker)
        logits_NxC = compute_logits(
            Pretrained(student, "").model().to(worker.device), rows, TEST_BATCH_SIZE, worker, None
        )
        if worker.rank == 0:
            with replace_file(student.with_name(ANSWERS_FILE)) as temporary, temporary.open("wb") as file:
                np.save(file, logits_NxC, allow_pickle=False)


def run_reruns(trials: Mapping[Rerun, Trial], pool: SlotPool, on_end: Callable[[Rerun, RerunResult], None]) -> None:
    """Train all of these that are not done, as many at a time as there are slots.

    Of controls the reports and answers are kept, and no weights. `on_end` hears of each, from this thread. Raises what
    ends the sweep as a whole.
    """
    alike = {run.key: run for run in reversed(list(trials))}
    candidates = {run.key for run in trials if run.role == "candidate"}
    stopped = threading.Event()

    def train(key: str) -> RerunResult:
        student = trials[alike[key]].target
        if fetch(reports_file(student)).exists():
            kept = fetch(student).exists()
            if read_answers(student) is not None and (kept or key not in candidates):
                return RerunResult(read_reports(student))
            if not kept:  # a control, which may be a candidate now, or one that was stopped before it had answered
                remove(student.with_name(ANSWERS_FILE))
                remove(reports_file(student))
        if stopped.is_set():
            return RerunResult()
        job = pool.run(TrainAndTest(trials[alike[key]]), f"confirm-{key}")
        if stopped.is_set():
            pool.suspend(f"confirm-{key}")
        reports: list[Report] = []
        try:
            reports += (report for report in job if NOTE not in report)
        except JobError as error:
            return RerunResult(tuple(reports), job.host, str(error))
        if key not in candidates and read_answers(student) is not None:
            remove(student)
        return RerunResult(tuple(reports), job.host)

    with ThreadPoolExecutor(pool.count) as threads:
        try:
            keys = {threads.submit(train, key): key for key in alike}
            for done in as_completed(keys):
                on_end(alike[keys[done]], done.result())
        except BaseException:
            stopped.set()
            for key in alike:
                pool.suspend(f"confirm-{key}")
            raise


def read_answers(student: Path) -> np.ndarray | None:
    """The logits (N x C) that a student gave for the test rows; None where there are none yet."""
    file = fetch(student.with_name(ANSWERS_FILE))
    answers: np.ndarray | None = np.load(file, allow_pickle=False) if file.exists() else None
    return answers
