"""Confirmation: who is trained again, what their answers come to, and that luck and noise are called so."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from kdray.choice.controls import controls_of_front
from kdray.choice.reruns import (
    Confirm,
    Rerun,
    RerunResult,
    TrainAndTest,
    control_recipes,
    planned_reruns,
    read_answers,
    run_reruns,
)
from kdray.choice.rule import Choose, candidates
from kdray.choice.verdict import ConfirmationAnswers, reach_verdict
from kdray.data.rows import Rows
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.trial_record import TrialRecord
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotSettings
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.tracking.settings import Tracking
from kdray.training.trial import Recipe, Trial, TrialInputs

COSTS = {"latency_ms": 1.0, "speedup": 2.0}
ROWS, RIGHT = 400, 0.9


def found(number: int, accuracy: float, **costs: float) -> TrialRecord:
    metrics = {"step": 9, "accuracy": accuracy, "retention": accuracy / RIGHT}
    return TrialRecord(number, {"student.depth": number}, "completed", (metrics,), COSTS | costs)


class Planted:
    """Rows with a teacher that is right on nine in ten, and students that are right as often as they are told to be."""

    def __init__(self, rows: int = ROWS) -> None:
        self.random = np.random.default_rng(0)
        self.labels = self.random.integers(2, size=rows)
        self.taught = self.answers(RIGHT)

    def __len__(self) -> int:
        return len(self.labels)

    def teacher_logits(self, indices: np.ndarray) -> np.ndarray:
        return self.taught[indices]

    def answers(self, accuracy: float) -> np.ndarray:
        """Logits with exactly this accuracy."""
        wrong = self.random.permutation(len(self.labels)) >= round(accuracy * len(self.labels))
        return np.eye(2, dtype=np.float32)[np.where(wrong, 1 - self.labels, self.labels)]

    def judge(
        self, accuracies: dict[tuple[int, str], Sequence[float]], candidates: list[TrialRecord], rule: Choose
    ) -> Any:
        answers = {
            Rerun(trial, role, seed, Recipe()): self.answers(accuracy)  # type: ignore[arg-type]
            for (trial, role), each in accuracies.items()
            for seed, accuracy in enumerate(each, start=1)
        }
        given = ConfirmationAnswers(answers, {}, self, TextClassification())  # type: ignore[arg-type]
        return reach_verdict(given, candidates, rule, {"latency_ms": 2.0})


@pytest.fixture
def planted() -> Planted:
    return Planted()


def test_a_lucky_seed_is_not_chosen(planted: Planted) -> None:
    """Trial 1 looked best when it was found; over other seeds trial 2 keeps enough, and it does not."""
    lucky, steady = found(1, 0.93, latency_ms=1.0), found(2, 0.90, latency_ms=1.5)
    verdict = planted.judge(
        {(1, "candidate"): (0.80, 0.82, 0.81), (2, "candidate"): (0.90, 0.89, 0.90)}, [lucky, steady], Choose()
    )
    assert verdict.chosen == 2
    assert verdict.satisfied
    assert verdict.confirmed[0].misses == ["keeps 90.0% of the teacher (97% asked for)"]
    assert verdict.confirmed[0].metric.estimate == pytest.approx(0.81)
    assert verdict.confirmed[0].metric.low < 0.81 < verdict.confirmed[0].metric.high
    assert verdict.flattered == pytest.approx(0.90 - 0.8967, abs=1e-3)


def test_a_search_without_use_is_told_so(planted: Planted) -> None:
    same = (0.88, 0.90, 0.89)
    verdict = planted.judge(
        {(1, "candidate"): same, (1, "labels only"): same, (1, "default distillation"): same}, [found(1, 0.9)], Choose()
    )
    assert all(gain.difference.low < 0 < gain.difference.high for gain in verdict.gains)
    told = " ".join(verdict.sentences)
    assert told.count("no gain is shown") == 2
    assert "Due to distillation: +0.0 points (95%: -" in told


def test_a_gain_is_told_with_its_interval(planted: Planted) -> None:
    verdict = planted.judge(
        {(1, "candidate"): (0.95, 0.95, 0.95), (1, "labels only"): (0.80, 0.81, 0.79)}, [found(1, 0.9)], Choose()
    )
    (gain,) = verdict.gains
    assert gain.difference.estimate == pytest.approx(0.15)
    assert gain.difference.low > 0.1
    assert "over the same student trained on labels alone." in verdict.sentences[2]


def test_none_that_satisfies_the_rule_on_confirmed_figures(planted: Planted) -> None:
    runs: dict[tuple[int, str], Sequence[float]] = {(1, "candidate"): (0.8,), (2, "candidate"): (0.82,)}
    candidates = [found(1, 0.9), found(2, 0.9)]
    best = planted.judge(runs, candidates, Choose())
    assert (best.chosen, best.satisfied) == (2, False)
    none = planted.judge(runs, candidates, Choose(otherwise="none"))
    assert none.chosen is None
    assert "The nearest: trial 2 keeps 91.1% of the teacher (97% asked for); trial 1 keeps" in none.sentences[0]


def test_the_knee_is_the_whole_fronts_and_not_that_of_a_few_candidates(planted: Planted) -> None:
    """The example is one in which three candidates alone would bend at trial 2."""
    rule = Choose(knee=True)
    points = ((1.0, 0.70), (2.0, 0.90), (3.0, 0.9115), (4.0, 0.92), (20.0, 0.93))
    front = [found(number, accuracy, latency_ms=ms) for number, (ms, accuracy) in enumerate(points)]
    able = candidates(front, rule, 3)
    assert [record.number for record in able] == [1, 2, 3]
    accuracies: dict[tuple[int, str], Sequence[float]] = {(r.number, "candidate"): (points[r.number][1],) for r in able}
    assert planted.judge(accuracies, able, rule).chosen == 1
    asked = Choose(knee=True, retention=0.97)
    assert planted.judge(accuracies | {(1, "candidate"): (0.8,)}, able, asked).chosen == 2


def test_the_next_candidate_is_tested_against(planted: Planted) -> None:
    verdict = planted.judge(
        {(1, "candidate"): (0.9,), (2, "candidate"): (0.9,)},
        [found(1, 0.9, latency_ms=1.0), found(2, 0.9, latency_ms=2.0)],
        Choose(),
    )
    assert verdict.against.trial == 2
    assert verdict.against.only_chosen == verdict.against.only_other
    assert verdict.against.p == pytest.approx(1.0)


def test_few_rows_are_said_to_be_few() -> None:
    verdict = Planted(rows=60).judge({(1, "candidate"): (0.9,)}, [found(1, 0.9)], Choose())
    assert "With 60 test rows the intervals are wide" in verdict.sentences[-1]


def test_without_one_candidate_trained_again_the_search_decides_and_that_is_said(planted: Planted) -> None:
    verdict = planted.judge({(1, "labels only"): (0.9,)}, [found(1, 0.9), found(2, 0.8)], Choose())
    assert (verdict.chosen, verdict.winner) == (1, None)
    assert verdict.sentences[0].startswith("Trial 1 was chosen: 1 of 2 candidates keeps at least 97%")
    assert verdict.sentences[1].startswith("This could not be confirmed: no candidate could be trained again")


def test_who_is_trained_again(recipe: Recipe) -> None:
    base = recipe.with_dotted({"distillation.temperature": 7.0})
    runs = planned_reruns(Confirm(seeds=2), [found(2, 0.9)], base.with_dotted, seed=5)
    assert {run.seed for run in runs} == {6, 7}
    by_role = {run.role: run.recipe for run in runs}
    assert by_role["candidate"].distillation.temperature == 7.0
    assert by_role["labels only"].distillation.alpha == 0.0
    assert by_role["default distillation"].distillation == Distillation()
    assert {recipe.student.depth for recipe in by_role.values()} == {2}
    assert len({run.key for run in runs}) == 6
    alone = planned_reruns(Confirm(seeds=2, controls=False), [found(2, 0.9)], base.with_dotted, seed=5)
    assert [run.key for run in alone] == [run.key for run in runs if run.role == "candidate"]


def test_controls_differ_in_nothing_but_distillation_and_what_was_searched(recipe: Recipe) -> None:
    untuned = recipe.with_dotted({"training.epochs": 9, "training.learning_rate": 3e-3})
    tuned = untuned.with_dotted({"student.depth": 2, "training.epochs": 4, "training.learning_rate": 1e-4})
    controls = control_recipes(
        tuned.with_dotted({"distillation.temperature": 7.0, "distillation.logit_mse": 1.0}), untuned
    )
    assert {control.training.epochs for control in controls.values()} == {4}
    assert {control.student for control in controls.values()} == {tuned.student}
    assert controls["labels only"].training == tuned.training
    assert (controls["labels only"].distillation.alpha, controls["labels only"].distillation.logit_mse) == (0.0, 0.0)
    assert controls["default distillation"].training.learning_rate == 3e-3
    assert controls["default distillation"].distillation == Distillation()


def test_each_architecture_of_the_front_has_its_controls(recipe: Recipe) -> None:
    """Trials 1 and 3 have two layers, and 3 is the better one; 4 is not on the front; 5 never ended."""
    records = [
        found(1, 0.90, latency_ms=2.0, agreement=0.9),
        found(2, 0.80, latency_ms=1.0, agreement=0.8),
        found(3, 0.91, latency_ms=2.0, agreement=0.8),
        found(4, 0.70, latency_ms=3.0, agreement=0.7),
        replace(found(5, 0.99, latency_ms=4.0, agreement=0.9), state="stopped"),
    ]
    records = [replace(r, params={"student.depth": 1 if r.number == 2 else 2}) for r in records]
    runs = controls_of_front(records, ("accuracy", "latency_ms", "agreement"), recipe.with_dotted, seed=5)
    assert [(run.trial, run.role, run.seed, run.recipe.student.depth) for run in runs] == [
        (3, "labels only", 5, 2),
        (3, "default distillation", 5, 2),
        (2, "labels only", 5, 1),
        (2, "default distillation", 5, 1),
    ]
    assert controls_of_front([records[4]], ("accuracy",), recipe.with_dotted, seed=5) == []


def test_the_answers_are_the_trained_students(recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path) -> None:
    trial = Trial(recipe, trial_inputs, 1, tmp_path / "run" / "student")
    with LocalSlots() as slots:
        reports = list(slots.run(TrainAndTest(trial), "again"))
    assert [report["epoch"] for report in reports] == [1, 2]
    rows: Rows = trial_inputs.rows("test", Worker())
    logits = compute_logits(Pretrained(trial.target, "").model(), rows, 128, Worker(), None)
    answers = read_answers(trial.target)
    assert answers is not None
    assert np.array_equal(answers, logits)


def test_of_a_control_the_answers_are_kept_and_it_is_trained_again_as_a_candidate(
    recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    control, candidate = (Rerun(1, role, 1, recipe) for role in ("labels only", "candidate"))  # type: ignore[arg-type]
    trial = Trial(recipe, trial_inputs, 1, tmp_path / "run" / "student")
    told: list[tuple[str, int, str | None]] = []

    def on_end(run: Rerun, retrained: RerunResult) -> None:
        told.append((run.role, len(retrained.reports), retrained.error))

    with LocalSlots() as slots:
        run_reruns({control: trial}, slots, on_end)
        assert sorted(path.name for path in trial.target.parent.iterdir()) == ["ended.json", "test.npy"]
        run_reruns({control: trial}, slots, on_end)
        before = read_answers(trial.target)
        run_reruns({candidate: trial, control: trial}, slots, on_end)
    assert told == [("labels only", 2, None)] * 2 + [("candidate", 2, None)]
    assert (trial.target / "model.safetensors").exists()
    assert np.array_equal(read_answers(trial.target), before)  # type: ignore[arg-type]


def test_one_that_was_stopped_before_it_had_answered_is_trained_again(
    recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    """What a control leaves that is stopped between its end and its answers: reports alone."""
    control = Rerun(1, "labels only", 1, recipe)
    trial = Trial(recipe, trial_inputs, 1, tmp_path / "run" / "student")
    with LocalSlots() as slots:
        run_reruns({control: trial}, slots, lambda run, retrained: None)
        before = read_answers(trial.target)
        (tmp_path / "run" / "test.npy").unlink()
        run_reruns({control: trial}, slots, lambda run, retrained: None)
    assert np.array_equal(read_answers(trial.target), before)  # type: ignore[arg-type]


class Counting(NullScreen):
    def __init__(self) -> None:
        self.again: list[tuple[float, float]] = []
        self.controls: list[tuple[float, float]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keeps it."""
        self.notes.append(text)

    def progress(self, text: str, done: float, total: float) -> None:
        """Counts the students that are trained again, and the controls."""
        counted = {"students trained again": self.again, "controls trained": self.controls}
        if text in counted:
            counted[text].append((done, total))


@pytest.fixture
def go(make_sweep: Callable[..., Sweep], recipe: Recipe, tmp_path: Path) -> Callable[..., tuple[SweepPaths, Counting]]:
    untuned = recipe.training.model_copy(update={"learning_rate": 2e-3})  # which the space does not hold

    def run_it(**fields: Any) -> tuple[SweepPaths, Counting]:
        settings: dict[str, Any] = {"slots": SlotSettings(cpus=1), "tracking": Tracking(), "training": untuned}
        settings["confirm"] = Confirm(candidates=1, seeds=2)
        sweep = make_sweep(**settings | fields)
        paths, screen = SweepPaths(tmp_path, sweep.name), Counting()
        run(sweep, paths, RunOptions(local=True), screen=screen)
        return paths, screen

    return run_it


def test_a_whole_sweep_is_confirmed_and_its_choice_defended(go: Callable[..., tuple[SweepPaths, Counting]]) -> None:
    paths, screen = go()
    assert screen.again[-1] == (6, 6)
    figures = read_figures(paths)
    verdict = figures.verdict
    assert verdict is not None
    on_front = {(figures.records[number].params["student.depth"]) for number in figures.front}
    assert screen.controls[-1] == (2 * len(on_front), 2 * len(on_front))
    assert {control.trial for control in figures.controls} <= set(figures.front)
    assert all(0 < control.metrics["accuracy"] <= 1 for control in figures.controls)
    assert [(each.role, each.seeds) for each in verdict.confirmed] == [
        ("candidate", 2),
        ("labels only", 2),
        ("default distillation", 2),
    ]
    assert figures.chosen == verdict.chosen
    shipped = read_json(paths.choice)["measured"]["test"]["accuracy"]
    seeds = verdict.confirmed[0].metrics["accuracy"]
    assert (paths.chosen / "model.safetensors").exists()
    assert abs(shipped - seeds) < 0.2
    report = (paths.report / "report.md").read_text()
    assert "## Confirmed" in report
    assert "labels only" in report
    assert "## What distillation and the search bring at each size" in report
    client = MlflowClient(f"sqlite:///{paths.tracking_database}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "kdray")
    roles = [
        r.data.tags["kdray.role"] for r in client.search_runs([experiment.experiment_id]) if "kdray.role" in r.data.tags
    ]
    beside = ["labels only", "default distillation"] * len(on_front)
    assert sorted(roles) == sorted(["search"] * 3 + ["candidate", "labels only", "default distillation"] * 2 + beside)
    controls = client.search_runs([experiment.experiment_id], "tags.`kdray.role` = 'labels only'")
    assert {control.data.params["distillation.alpha"] for control in controls} == {"0.0"}
    assert all("test.accuracy" in control.data.metrics for control in controls)

    spans = spans_of(client, experiment.experiment_id)
    again, screen = go(choose=Choose(retention=0.5))
    assert spans_of(client, experiment.experiment_id) == spans
    assert all(total == 6 for _, total in screen.again)
    assert read_figures(again).controls == figures.controls
    assert read_json(again.choice)["confirmation"]["confirmed"][0]["trial"] in {0, 1, 2}
    kept = sorted(path.name for path in (paths.root / "confirmation").glob("*/student"))
    assert len(kept) >= 2


def spans_of(client: MlflowClient, experiment_id: str) -> dict[str, tuple[int, int]]:
    """When each run that stands beside the trials began and ended."""
    beside = client.search_runs([experiment_id], "tags.`kdray.role` != 'search'")
    return {run.info.run_id: (run.info.start_time, run.info.end_time) for run in beside}


def test_what_mlflow_was_not_told_of_when_it_was_trained_it_is_told_later(
    go: Callable[..., tuple[SweepPaths, Counting]],
) -> None:
    paths, screen = go(tracking=Tracking(enabled=False))
    began = {entry["number"]: entry["started"] for entry in read_json(paths.reruns).values()}
    go()
    client = MlflowClient(f"sqlite:///{paths.tracking_database}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "kdray")
    told = client.search_runs([experiment.experiment_id], "tags.`kdray.role` != 'search'")
    assert len(told) == 6 + screen.controls[-1][1] == len(began)
    assert {run.info.start_time for run in told} == {int(1000 * at) for at in began.values()}
    assert all("test.accuracy" in run.data.metrics for run in told)
    assert all(len(client.get_metric_history(run.info.run_id, "accuracy")) == 2 for run in told)


def test_when_nothing_can_be_trained_again_the_choice_is_the_searchs_and_says_so(
    go: Callable[..., tuple[SweepPaths, Counting]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: TrainAndTest, worker: Worker) -> Iterator[Report]:
        yield {"step": 1}
        raise RuntimeError("out of luck")

    monkeypatch.setattr(TrainAndTest, "__call__", broken)
    paths, screen = go()
    failed = [note for note in screen.notes if "seed" in note and "RuntimeError: out of luck" in note]
    assert len(failed) == 6 + screen.controls[-1][1]
    figures = read_figures(paths)
    assert figures.chosen is not None
    assert "This could not be confirmed" in figures.sentences[1]
    assert "6 of the runs that were to confirm it failed" in " ".join(figures.sentences)
    assert (paths.chosen / "model.safetensors").exists()
    assert all("out of luck" in (control.error or "") for control in figures.controls)
    report = (paths.report / "report.md").read_text()
    assert "out of luck" in report
    assert "| failed | failed |" in report
    assert "out of luck" in (paths.report / "report.html").read_text()
