"""The students that are trained outside the search: candidates with other seeds, and controls.

Each of them is identified by its recipe and seed, and is trained at most once, whatever rule is applied later. What the
logits mean for the choice is computed in `verdict`.

Letters: A answers, C outputs.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from pydantic import Field

from kdray.errors import JobError
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.settings import Settings, identifying_values, later_field
from kdray.slots.job import NOTE, Report, Worker
from kdray.slots.pool import SlotPool
from kdray.storage.files import fingerprint, replace_file
from kdray.storage.mirror import delete, fetch
from kdray.tasks.task import Outputs, Task
from kdray.training.trial import Recipe, Trial, read_reports, reports_file

Role: TypeAlias = Literal["candidate", "labels only", "labelled rows", "logits alone", "default distillation"]
"""A candidate, or one of its controls. Its lead over "labels only" is due to distillation, its lead over "labelled
rows" is due to more text, its lead over "logits alone" is due to the inner terms of the loss, and its lead over
"default distillation" is due to the search."""
CONTROLS: tuple[Role, ...] = tuple(role for role in get_args(Role) if role != "candidate")
"""The roles of controls, in the order in which they are trained and shown."""

ANSWERS_FILE = "test.npy"
"""The file with the logits for the test rows, beside the folder of the student's weights."""
THRESHOLDS_FILE = "thresholds.npy"
"""The file with the thresholds of the student's labels, for a task that has them. It is written first."""


def role_name(role: Role, task: Task) -> str:
    """What a report calls a rerun with this role: a language model, for example, has no labels."""
    return task.control_name if role == "labels only" else role


class Confirm(Settings):
    """Which students are trained again before one of them is chosen."""

    candidates: int = Field(3, ge=0)
    """The largest number of candidates: members of the front that satisfy the rule. 0: the search alone decides."""
    seeds: int = Field(3, ge=1)
    """How many times each candidate is trained again, each time with a seed that the search did not use."""
    controls: bool = True
    """Train the controls: for each architecture of the front with the seed of the search, and for the chosen candidate
    with the seeds of the confirmation. They are the same student on labels only, with default distillation, and, where
    the trial has more text or inner terms, without these."""
    race: bool = later_field(True)
    """Train a candidate with a further seed only while it can still be chosen (see `choice.race`), and the controls of
    the chosen one only. False: train all candidates and all their controls with all seeds."""


@dataclass(frozen=True)
class ControlsOf:
    """The controls of a recipe: what they leave out shows what it brings."""

    untuned: Recipe
    """The recipe in which nothing was searched."""
    has_more_text: Callable[[Recipe], bool]
    """A function that says whether a student with this recipe sees more text than the labelled rows."""

    def __call__(self, tuned: Recipe) -> dict[Role, Recipe]:
        """The controls of a tuned recipe: the same student, trained in as many steps.

        "labels only" keeps the other tuned settings, and sees the labelled rows alone. "labelled rows" has the tuned
        distillation, but sees the labelled rows alone; without more text it would be the trial itself. "logits alone"
        has the tuned distillation without its inner terms; where there are none, it would be the trial itself.
        "default distillation" has the default losses and training settings, in which nothing was searched.
        """
        training = self.untuned.training.model_copy(update={"epochs": tuned.training.epochs})
        fewer_rows = {"learn_from": "labelled rows"} if self.has_more_text(tuned) else {}
        labels_only = {"distillation": tuned.distillation.labels_only(), **fewer_rows}
        logits_alone = {"distillation": tuned.distillation.logits_only()}
        default = tuned.model_copy(update={"distillation": Distillation(), "training": training})
        controls: dict[Role, Recipe] = {"labels only": tuned.model_copy(update=labels_only)}
        if fewer_rows:
            controls["labelled rows"] = tuned.model_copy(update=fewer_rows)
        if tuned.distillation.inner_terms:
            controls["logits alone"] = tuned.model_copy(update=logits_alone)
        controls["default distillation"] = default
        return controls


@dataclass(frozen=True)
class Rerun:
    """A trial of the search, or a control of it, that is to be trained with this seed."""

    trial: int
    """The number of the trial; for a control, the number of the trial that it is compared with."""
    role: Role
    seed: int
    recipe: Recipe

    @property
    def key(self) -> str:
        """The fingerprint of recipe and seed. Reruns with the same key are one training."""
        return fingerprint(identifying_values(self.recipe), self.seed)

    def title(self, task: Task) -> str:
        """The trial, the role as a report calls it, and the seed."""
        role = "" if self.role == "candidate" else f", {role_name(self.role, task)}"
        return f"trial {self.trial:03d}{role}, seed {self.seed}"


def planned_reruns(
    confirm: Confirm, candidates: Mapping[int, Recipe], controls_of: ControlsOf | None, seed: int
) -> list[Rerun]:
    """The reruns that confirm these candidates (number of a trial -> its recipe).

    `controls_of` None: without controls. `seed` is the seed of the search; the reruns have the seeds after it.
    """
    runs = []
    for number, tuned in candidates.items():
        recipes: dict[Role, Recipe] = {"candidate": tuned}
        if confirm.controls and controls_of is not None:
            recipes |= controls_of(tuned)
        for rerun_seed in range(seed + 1, seed + 1 + confirm.seeds):
            for role, recipe in recipes.items():
                runs.append(Rerun(trial=number, role=role, seed=rerun_seed, recipe=recipe))
    return runs


@dataclass(frozen=True)
class RerunResult:
    """The outcome of a rerun."""

    reports: tuple[Report, ...] = ()
    """All reports of its training, also those of earlier sessions."""
    host: str = ""
    """The machine that it ran on in this session; empty if an earlier session completed it."""
    error: str | None = None


@dataclass(frozen=True)
class RerunJob:
    """The job that trains a student, and stores its outputs for the test rows in fp32 beside its weights."""

    trial: Trial

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield from self.trial(worker)
        student = self.trial.target
        # A suspended training has no weights yet. Rank 0 decides, because all ranks must compute the logits together.
        if not worker.broadcast(fetch(student).exists()):
            return
        model = Pretrained(student, "").model().to(worker.device)
        outputs = self.trial.inputs.student_outputs(model, "test", worker)
        if worker.rank == 0:
            if outputs.thresholds_C is not None:
                _save(student.with_name(THRESHOLDS_FILE), outputs.thresholds_C)
            _save(student.with_name(ANSWERS_FILE), outputs.logits_AxC)


def run_reruns(trials: Mapping[Rerun, Trial], pool: SlotPool, on_end: Callable[[Rerun, RerunResult], None]) -> None:
    """Train the reruns that are not complete, at most as many at the same time as there are slots.

    A control keeps its reports and logits, but no weights. `on_end` is called in this thread for each key that has
    ended. Raises the errors that end the whole sweep; an error of one job is in its result.
    """
    run_of_key: dict[str, Rerun] = {}
    for run in trials:
        run_of_key.setdefault(run.key, run)  # of several reruns with one key, the first one represents them
    candidate_keys = {run.key for run in trials if run.role == "candidate"}
    stopping = threading.Event()

    def train(key: str) -> RerunResult:
        student = trials[run_of_key[key]].target
        if fetch(reports_file(student)).exists():
            has_weights = fetch(student).exists()
            if read_answers(student) is not None and (has_weights or key not in candidate_keys):
                return RerunResult(read_reports(student))
            # Without weights, this is a control that is now a candidate, or a rerun that was stopped before its logits
            # were stored. `Trial` trains nothing while the reports exist, so both files are removed.
            if not has_weights:
                delete(student.with_name(ANSWERS_FILE))
                delete(reports_file(student))
        if stopping.is_set():
            return RerunResult()
        job_run = pool.run(RerunJob(trials[run_of_key[key]]), f"confirm-{key}")
        # The loop that suspends all jobs may have passed this key before the pool knew the job.
        if stopping.is_set():
            pool.suspend(f"confirm-{key}")
        reports: list[Report] = []
        try:
            reports += (report for report in job_run if NOTE not in report)
        except JobError as error:
            return RerunResult(tuple(reports), job_run.host, str(error))
        if key not in candidate_keys and read_answers(student) is not None:
            delete(student)
        return RerunResult(tuple(reports), job_run.host)

    with ThreadPoolExecutor(pool.count) as threads:
        try:
            key_of_future = {threads.submit(train, key): key for key in run_of_key}
            for future in as_completed(key_of_future):
                on_end(run_of_key[key_of_future[future]], future.result())
        except BaseException:
            # Without this, leaving the executor would wait until every job has ended.
            stopping.set()
            for key in run_of_key:
                pool.suspend(f"confirm-{key}")
            raise


def read_answers(student: Path) -> Outputs | None:
    """The outputs of a student for the test rows; None if they are not stored yet."""
    file = fetch(student.with_name(ANSWERS_FILE))
    if not file.exists():
        return None
    thresholds = fetch(student.with_name(THRESHOLDS_FILE))
    return Outputs(
        np.load(file, allow_pickle=False), np.load(thresholds, allow_pickle=False) if thresholds.exists() else None
    )


def _save(path: Path, values: np.ndarray) -> None:
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)
