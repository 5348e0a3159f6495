"""Confirmation: which students are trained again, the verdict on their logits, and its sentences.

Letters: N rows, C classes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from ray import tune

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.controls import controls_of_front
from kdray.choice.reruns import (
    Confirm,
    ControlsOf,
    Rerun,
    RerunJob,
    RerunResult,
    planned_reruns,
    read_answers,
    run_reruns,
)
from kdray.choice.rule import Choose, candidates
from kdray.choice.verdict import reach_verdict
from kdray.data.rows import Rows
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.trial_record import TrialRecord
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotSettings
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.regression import MSE, Regression
from kdray.tasks.task import Outputs, Task
from kdray.tasks.text_classification import TextClassification
from kdray.tracking.settings import Tracking
from kdray.training.trial import Recipe, Trial, TrialInputs


def by_accuracy(**settings: Any) -> Choose:
    """A rule in which the quality is the accuracy."""
    return Choose(**{"best": "accuracy"} | settings)


RunSweep = Callable[..., tuple[SweepPaths, "RecordingScreen"]]

COSTS = {"latency_ms": 1.0, "speedup": 2.0}
ROWS = 400
TEACHER_ACCURACY = 0.9


def searched(number: int, accuracy: float, **costs: float) -> TrialRecord:
    """A completed trial of the search with this accuracy on the validation rows."""
    metrics = {"step": 9, "accuracy": accuracy, "retention": accuracy / TEACHER_ACCURACY}
    return TrialRecord(
        number=number,
        params={"student.depth": number},
        state="completed",
        history=(metrics,),
        costs=COSTS | costs,
    )


class FakeTestRows:
    """Test rows with a teacher that is right on nine of ten, and students of any given accuracy."""

    task: Task = TextClassification()

    def __init__(self, rows: int = ROWS) -> None:
        self.random = np.random.default_rng(0)
        self.gold = self.random.integers(2, size=rows)
        self.labels = ("no", "yes")
        self.example_starts = np.arange(rows + 1)
        self.teacher_NxC = self.logits(TEACHER_ACCURACY)

    def __len__(self) -> int:
        return len(self.gold)

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        return len(indices), len(indices)

    def logits(self, accuracy: float) -> np.ndarray:
        """Logits (N x C) with exactly this accuracy."""
        wrong = self.random.permutation(len(self.gold)) >= round(accuracy * len(self.gold))
        return np.eye(2, dtype=np.float32)[np.where(wrong, 1 - self.gold, self.gold)]

    def verdict(
        self, accuracies: dict[tuple[int, str], Sequence[float]], candidates: list[TrialRecord], rule: Choose
    ) -> Any:
        """The verdict on reruns with these accuracies; (trial, role) -> the accuracy of each seed."""
        outputs = {
            Rerun(trial=trial, role=role, seed=seed, recipe=Recipe()): Outputs(self.logits(accuracy))  # type: ignore[arg-type]
            for (trial, role), of_seeds in accuracies.items()
            for seed, accuracy in enumerate(of_seeds, start=1)
        }
        answers = ConfirmationAnswers(
            outputs=outputs,
            failed={},
            teacher=Outputs(self.teacher_NxC),
            rows=self,  # type: ignore[arg-type]
            task=self.task,
        )
        return reach_verdict(answers, candidates, rule, {"latency_ms": 2.0})


class FakeNumberRows(FakeTestRows):
    """Test rows with numbers. Students and teacher differ from them by noise with a given standard deviation."""

    task = Regression()

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.gold, self.labels = self.random.normal(size=ROWS), ()
        self.example_starts = np.arange(ROWS + 1)
        self.teacher_NxC = self.logits(0.3)

    def logits(self, accuracy: float) -> np.ndarray:
        """Numbers (N x 1) with noise of this standard deviation."""
        return (self.gold + accuracy * self.random.normal(size=ROWS))[:, None].astype(np.float32)


def searched_number(number: int, pearson: float, mse: float, **costs: float) -> TrialRecord:
    """A completed trial of a search with these metrics on the validation rows."""
    metrics = {"step": 9, "pearson": pearson, "mse": mse, "retention": 1.0}
    return replace(searched(number, 0.9, **costs), history=(metrics,))


@pytest.fixture
def fake_rows() -> FakeTestRows:
    return FakeTestRows()


def test_trial_with_a_lucky_seed_is_not_chosen(fake_rows: FakeTestRows) -> None:
    """Trial 1 was the best in the search. With other seeds only trial 2 satisfies the rule."""
    lucky, steady = searched(1, 0.93, latency_ms=1.0), searched(2, 0.90, latency_ms=1.5)
    verdict = fake_rows.verdict(
        {(1, "candidate"): (0.80, 0.82, 0.81), (2, "candidate"): (0.90, 0.89, 0.90)}, [lucky, steady], by_accuracy()
    )
    assert verdict.chosen == 2
    assert verdict.satisfied
    assert verdict.confirmed[0].misses == ["keeps 90.0% of the teacher's quality (the rule requires 97%)"]
    assert verdict.confirmed[0].metric.estimate == pytest.approx(0.81)
    assert verdict.confirmed[0].metric.low < 0.81 < verdict.confirmed[0].metric.high
    assert verdict.flattered == pytest.approx(0.90 - 0.8967, abs=1e-3)


def test_search_without_gain_is_reported(fake_rows: FakeTestRows) -> None:
    same = (0.88, 0.90, 0.89)
    verdict = fake_rows.verdict(
        {(1, "candidate"): same, (1, "labels only"): same, (1, "default distillation"): same},
        [searched(1, 0.9)],
        by_accuracy(),
    )
    assert all(gain.difference.low < 0 < gain.difference.high for gain in verdict.gains)
    text = " ".join(verdict.sentences)
    assert text.count("no gain is shown") == 2
    assert "Due to distillation: accuracy +0.0 points (95%: -" in text


def test_gain_is_reported_with_its_interval(fake_rows: FakeTestRows) -> None:
    verdict = fake_rows.verdict(
        {(1, "candidate"): (0.95, 0.95, 0.95), (1, "labels only"): (0.80, 0.81, 0.79)},
        [searched(1, 0.9)],
        by_accuracy(),
    )
    (gain,) = verdict.gains
    assert gain.difference.estimate == pytest.approx(0.15)
    assert gain.difference.low > 0.1
    assert "over the same student trained on labels only." in verdict.sentences[2]


def test_a_teacher_that_students_without_a_teacher_surpass_is_called_weak(fake_rows: FakeTestRows) -> None:
    def sentences(labels_only: float) -> list[str]:
        accuracies = {(1, "candidate"): (0.97, 0.97), (1, "labels only"): (labels_only, labels_only)}
        sentences: list[str] = fake_rows.verdict(accuracies, [searched(1, 0.9)], by_accuracy()).sentences
        return [sentence for sentence in sentences if sentence.startswith("The teacher is weak")]

    (sentence,) = sentences(0.96)
    assert "the same student trained on labels only is better (accuracy 0.9600 (95%: 0.9" in sentence
    assert sentences(TEACHER_ACCURACY) == []


def test_loss_against_a_control_is_reported(fake_rows: FakeTestRows) -> None:
    verdict = fake_rows.verdict(
        {(1, "candidate"): (0.80, 0.81, 0.79), (1, "default distillation"): (0.95, 0.95, 0.95)},
        [searched(1, 0.9)],
        by_accuracy(),
    )
    assert verdict.sentences[2].startswith("Due to the search: accuracy -15.0 points (95%: -")
    assert verdict.sentences[2].endswith(
        "over the same student with default distillation; the chosen student is worse."
    )


def test_no_student_satisfies_the_rule_with_confirmed_figures(fake_rows: FakeTestRows) -> None:
    runs: dict[tuple[int, str], Sequence[float]] = {(1, "candidate"): (0.8,), (2, "candidate"): (0.82,)}
    candidates = [searched(1, 0.9), searched(2, 0.9)]
    best = fake_rows.verdict(runs, candidates, by_accuracy())
    assert (best.chosen, best.satisfied) == (2, False)
    none = fake_rows.verdict(runs, candidates, by_accuracy(otherwise="none"))
    assert none.chosen is None
    assert (
        "Closest to the rule: trial 2 keeps 91.1% of the teacher's quality (the rule requires 97%); trial 1 keeps"
        in none.sentences[0]
    )


def test_knee_is_the_one_of_the_whole_front(fake_rows: FakeTestRows) -> None:
    """In this example, the front of the three candidates alone has its knee at trial 2."""
    rule = by_accuracy(knee=True)
    points = ((1.0, 0.70), (2.0, 0.90), (3.0, 0.9115), (4.0, 0.92), (20.0, 0.93))
    front = [searched(number, accuracy, latency_ms=ms) for number, (ms, accuracy) in enumerate(points)]
    chosen_from = candidates(front, rule, 3)
    assert [record.number for record in chosen_from] == [1, 2, 3]
    accuracies: dict[tuple[int, str], Sequence[float]] = {
        (record.number, "candidate"): (points[record.number][1],) for record in chosen_from
    }
    assert fake_rows.verdict(accuracies, chosen_from, rule).chosen == 1
    demanding = by_accuracy(knee=True, retention=0.97)
    assert fake_rows.verdict(accuracies | {(1, "candidate"): (0.8,)}, chosen_from, demanding).chosen == 2


def test_chosen_student_is_compared_with_the_next_candidate(fake_rows: FakeTestRows) -> None:
    verdict = fake_rows.verdict(
        {(1, "candidate"): (0.9,), (2, "candidate"): (0.9,)},
        [searched(1, 0.9, latency_ms=1.0), searched(2, 0.9, latency_ms=2.0)],
        by_accuracy(),
    )
    assert verdict.against.trial == 2
    assert verdict.against.only_chosen == verdict.against.only_other
    assert verdict.against.p == pytest.approx(1.0)


def test_the_sentences_of_numbers_are_about_their_correlation() -> None:
    verdict = FakeNumberRows().verdict(
        {(1, "candidate"): (0.4, 0.4), (2, "candidate"): (0.8, 0.8), (1, "labels only"): (0.8, 0.8)},
        [searched_number(1, 0.95, 0.15), searched_number(2, 0.9, 0.15)],
        Choose(best="pearson", retention=0.5),
    )
    assert verdict.metric == "pearson"
    chosen, confirmed, gain, excess, against = verdict.sentences
    assert "Its Pearson correlation is 0.9" in chosen
    assert "which the search did not use: Pearson correlation 0.9" in confirmed
    assert gain.startswith("Due to distillation: Pearson correlation +1")
    assert " points (95%: +" in gain
    assert "the Pearson correlation of trial 1 was " in excess
    assert re.search(
        r"the Pearson correlation of the chosen student is \d+\.\d points higher \(approximate random", against
    )


def test_less_of_a_minimized_quality_is_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regression, "quality", MSE)
    verdict = FakeNumberRows().verdict(
        {(1, "candidate"): (0.5, 0.5), (2, "candidate"): (0.8, 0.8), (1, "labels only"): (0.8, 0.8)},
        [searched_number(1, 0.9, 0.2), searched_number(2, 0.9, 0.5)],
        Choose(best="mse", retention=0.1),
    )
    (student, control, _) = verdict.confirmed
    assert student.metric.estimate == pytest.approx(0.25, rel=0.1)
    # The teacher's error over the student's: more than 1 would mean that the student is better.
    assert student.retention.estimate == pytest.approx(student.metrics["retention"], rel=0.05)
    assert 0.1 < control.retention.high < student.retention.low < 1
    assert verdict.gains[0].difference.high < 0
    assert re.fullmatch(
        r"Due to distillation: MSE lower by 0\.\d+ \(95%: 0\.\d+ to 0\.\d+\) than for the same student trained on "
        r"labels only, \d\d\.\d% less\.",
        verdict.sentences[2],
    )
    assert re.search(r"the MSE of trial 1 was 0\.0\d+ lower: the best of many trials is over", verdict.sentences[3])
    assert re.search(r"the MSE of the chosen student is 0\.\d+ lower \(approximate", verdict.sentences[4])


def test_small_number_of_test_rows_is_reported() -> None:
    verdict = FakeTestRows(rows=60).verdict({(1, "candidate"): (0.9,)}, [searched(1, 0.9)], by_accuracy())
    assert "With 60 test rows the intervals are wide" in verdict.sentences[-1]


def test_without_a_confirmed_candidate_the_search_decides(fake_rows: FakeTestRows) -> None:
    verdict = fake_rows.verdict({(1, "labels only"): (0.9,)}, [searched(1, 0.9), searched(2, 0.8)], by_accuracy())
    assert (verdict.chosen, verdict.winner) == (1, None)
    assert verdict.sentences[0].startswith("Trial 1 was chosen: 1 of 2 candidates keeps at least 97%")
    assert verdict.sentences[1].startswith(
        "The choice could not be confirmed, because no candidate could be trained again."
    )


def no_more_text(untuned: Recipe) -> ControlsOf:
    return ControlsOf(untuned, has_more_text=lambda recipe: False)


def test_planned_reruns(recipe: Recipe) -> None:
    base = recipe.with_dotted({"distillation.temperature": 7.0})
    candidates = {2: base.with_dotted({"student.depth": 2})}
    runs = planned_reruns(Confirm(seeds=2), candidates, no_more_text(base), seed=5)
    assert {run.seed for run in runs} == {6, 7}
    by_role = {run.role: run.recipe for run in runs}
    assert by_role["candidate"].distillation.temperature == 7.0
    assert by_role["labels only"].distillation.alpha == 0.0
    assert by_role["default distillation"].distillation == Distillation()
    assert {recipe.student.depth for recipe in by_role.values()} == {2}
    assert len({run.key for run in runs}) == 6
    expected = [run.key for run in runs if run.role == "candidate"]
    for confirm, controls in ((Confirm(seeds=2, controls=False), no_more_text(base)), (Confirm(seeds=2), None)):
        assert [run.key for run in planned_reruns(confirm, candidates, controls, seed=5)] == expected


def test_recipes_of_controls(recipe: Recipe) -> None:
    untuned = recipe.with_dotted({"training.epochs": 9, "training.learning_rate": 3e-3})
    tuned = untuned.with_dotted({"student.depth": 2, "training.epochs": 4, "training.learning_rate": 1e-4})
    tuned = tuned.with_dotted({"distillation.temperature": 7.0, "distillation.logit_mse": 1.0})
    controls = no_more_text(untuned)(tuned)
    assert list(controls) == ["labels only", "default distillation"]
    assert {control.training.epochs for control in controls.values()} == {4}
    assert {control.student for control in controls.values()} == {tuned.student}
    assert controls["labels only"].training == tuned.training
    assert (controls["labels only"].distillation.alpha, controls["labels only"].distillation.logit_mse) == (0.0, 0.0)
    assert controls["default distillation"].training.learning_rate == 3e-3
    assert controls["default distillation"].distillation == Distillation()
    assert {control.learn_from for control in controls.values()} == {"all text"}


def test_with_more_text_two_controls_see_the_labelled_rows_alone(recipe: Recipe) -> None:
    tuned = recipe.with_dotted({"distillation.temperature": 7.0})
    controls = ControlsOf(recipe, has_more_text=lambda recipe: True)(tuned)
    assert {role: control.learn_from for role, control in controls.items()} == {
        "labels only": "labelled rows",
        "labelled rows": "labelled rows",
        "default distillation": "all text",
    }
    assert controls["labelled rows"].distillation == tuned.distillation
    assert {control.training.epochs for control in controls.values()} == {tuned.training.epochs}


def test_each_architecture_of_the_front_has_two_controls(recipe: Recipe) -> None:
    """Trials 1 and 3 have two layers, and 3 is the better one; 4 is not on the front; 5 was stopped early."""
    records = [
        searched(1, 0.90, latency_ms=2.0, agreement=0.9),
        searched(2, 0.80, latency_ms=1.0, agreement=0.8),
        searched(3, 0.91, latency_ms=2.0, agreement=0.8),
        searched(4, 0.70, latency_ms=3.0, agreement=0.7),
        replace(searched(5, 0.99, latency_ms=4.0, agreement=0.9), state="stopped"),
    ]
    records = [replace(r, params={"student.depth": 1 if r.number == 2 else 2}) for r in records]
    controls_of = no_more_text(recipe)
    runs = controls_of_front(records, ("accuracy", "latency_ms", "agreement"), recipe.with_dotted, controls_of, seed=5)
    assert [(run.trial, run.role, run.seed, run.recipe.student.depth) for run in runs] == [
        (3, "labels only", 5, 2),
        (3, "default distillation", 5, 2),
        (2, "labels only", 5, 1),
        (2, "default distillation", 5, 1),
    ]
    assert controls_of_front([records[4]], ("accuracy",), recipe.with_dotted, controls_of, seed=5) == []


def test_of_a_minimized_metric_the_smaller_value_has_the_controls(recipe: Recipe) -> None:
    """Both trials have two layers; the third objective keeps them both on the front."""
    records = [
        replace(searched_number(number, pearson, mse), params={"student.depth": 2})
        for number, pearson, mse in ((1, 0.9, 0.5), (2, 0.8, 0.4))
    ]
    metrics = ("mse", "latency_ms", "pearson")
    runs = controls_of_front(records, metrics, recipe.with_dotted, no_more_text(recipe), seed=5)
    assert [run.trial for run in runs] == [2, 2]


def test_stored_logits_are_those_of_the_trained_student(
    recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    trial = Trial(recipe=recipe, inputs=trial_inputs, seed=1, target=tmp_path / "run" / "student")
    with LocalSlots() as slots:
        reports = list(slots.run(RerunJob(trial), "rerun"))
    assert [report["epoch"] for report in reports] == [1, 2]
    rows: Rows = trial_inputs.rows("test", Worker())
    expected_NxC = compute_logits(Pretrained(trial.target, "").model(), rows, 128, Worker(), None)
    stored = read_answers(trial.target)
    assert stored is not None
    assert np.array_equal(stored.logits_AxC, expected_NxC)
    assert stored.thresholds_C is None


def test_control_keeps_its_logits_and_is_trained_again_as_a_candidate(
    recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    control = Rerun(trial=1, role="labels only", seed=1, recipe=recipe)
    candidate = replace(control, role="candidate")
    trial = Trial(recipe=recipe, inputs=trial_inputs, seed=1, target=tmp_path / "run" / "student")
    results: list[tuple[str, int, str | None]] = []

    def on_end(run: Rerun, result: RerunResult) -> None:
        results.append((run.role, len(result.reports), result.error))

    with LocalSlots() as slots:
        run_reruns({control: trial}, slots, on_end)
        assert sorted(path.name for path in trial.target.parent.iterdir()) == ["ended.json", "test.npy"]
        run_reruns({control: trial}, slots, on_end)
        before = read_answers(trial.target)
        run_reruns({candidate: trial, control: trial}, slots, on_end)
    assert results == [("labels only", 2, None)] * 2 + [("candidate", 2, None)]
    assert (trial.target / "model.safetensors").exists()
    assert np.array_equal(read_answers(trial.target).logits_AxC, before.logits_AxC)  # type: ignore[union-attr]


def test_control_without_weights_and_logits_is_trained_again(
    recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    """A control that is stopped between the end of its training and the end of its job leaves only its reports."""
    control = Rerun(trial=1, role="labels only", seed=1, recipe=recipe)
    trial = Trial(recipe=recipe, inputs=trial_inputs, seed=1, target=tmp_path / "run" / "student")
    with LocalSlots() as slots:
        run_reruns({control: trial}, slots, lambda run, result: None)
        before = read_answers(trial.target)
        (tmp_path / "run" / "test.npy").unlink()
        run_reruns({control: trial}, slots, lambda run, result: None)
    assert np.array_equal(read_answers(trial.target).logits_AxC, before.logits_AxC)  # type: ignore[union-attr]


class RecordingScreen(NullScreen):
    """A screen that records its notes, and the progress of reruns and controls as (done, total)."""

    def __init__(self) -> None:
        self.reruns: list[tuple[float, float]] = []
        self.controls: list[tuple[float, float]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Record the note."""
        self.notes.append(text)

    def progress(self, text: str, done: float, total: float) -> None:
        """Record the progress of reruns and controls."""
        recorded = {"students trained again": self.reruns, "controls trained": self.controls}
        if text in recorded:
            recorded[text].append((done, total))


@pytest.fixture
def run_sweep(make_sweep: Callable[..., Sweep], recipe: Recipe, tmp_path: Path) -> RunSweep:
    # The space does not contain this learning rate, so no trial has the recipe of a control.
    untuned = recipe.training.model_copy(update={"learning_rate": 2e-3})

    def run_with(**fields: Any) -> tuple[SweepPaths, RecordingScreen]:
        settings: dict[str, Any] = {"slots": SlotSettings(cpus=1), "tracking": Tracking(), "training": untuned}
        settings["confirm"] = Confirm(candidates=1, seeds=2)
        sweep = make_sweep(**settings | fields)
        paths, screen = SweepPaths(tmp_path, sweep.name), RecordingScreen()
        run(sweep, paths, RunOptions(local=True), screen=screen)
        return paths, screen

    return run_with


def test_sweep_with_controls_and_confirmation(run_sweep: RunSweep) -> None:
    paths, screen = run_sweep()
    assert screen.reruns[-1] == (6, 6)
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
    mean_of_seeds = verdict.confirmed[0].metrics["accuracy"]
    assert (paths.chosen / "model.safetensors").exists()
    assert abs(shipped - mean_of_seeds) < 0.2
    report = (paths.report / "report.md").read_text()
    assert "## Confirmed" in report
    assert "labels only" in report
    assert "## The gain from distillation and from the search, for each architecture" in report
    client = MlflowClient(f"sqlite:///{paths.tracking_database}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "kdray")
    roles = [
        r.data.tags["kdray.role"] for r in client.search_runs([experiment.experiment_id]) if "kdray.role" in r.data.tags
    ]
    of_front = ["labels only", "default distillation"] * len(on_front)
    assert sorted(roles) == sorted(["search"] * 3 + ["candidate", "labels only", "default distillation"] * 2 + of_front)
    controls = client.search_runs([experiment.experiment_id], "tags.`kdray.role` = 'labels only'")
    assert {control.data.params["distillation.alpha"] for control in controls} == {"0.0"}
    assert all("test.accuracy" in control.data.metrics for control in controls)

    spans = rerun_spans(client, experiment.experiment_id)
    again, screen = run_sweep(choose=Choose(retention=0.5))
    assert rerun_spans(client, experiment.experiment_id) == spans
    assert all(total == 6 for _, total in screen.reruns)
    assert read_figures(again).controls == figures.controls
    assert read_json(again.choice)["confirmation"]["confirmed"][0]["trial"] in {0, 1, 2}
    weights = sorted(path.name for path in (paths.root / "confirmation").glob("*/student"))
    assert len(weights) >= 2


def test_candidates_race_in_a_sweep_and_the_rest_is_trained_without_the_race(
    run_sweep: RunSweep, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every student keeps a tenth of the teacher's quality, so trial 0, the cheapest candidate, is chosen."""

    def first_trials(records: Sequence[TrialRecord], rule: Choose, most: int) -> list[TrialRecord]:
        return [replace(r, costs=r.costs | {"latency_ms": 1.0 + r.number}) for r in records[:most]]

    monkeypatch.setattr("kdray.stages.retraining.candidates", first_trials)
    settings: dict[str, Any] = {
        "space": {"training.learning_rate": tune.loguniform(1e-3, 3e-3)},
        "training": recipe.training.model_copy(update={"epochs": 1}),
        "search": Search(trials=2, stopping=None),
        "choose": Choose(retention=0.1),
        "tracking": Tracking(enabled=False),
    }
    paths, screen = run_sweep(confirm=Confirm(candidates=2, seeds=2), **settings)
    raced, entries = read_figures(paths).verdict, read_json(paths.reruns)
    assert raced is not None
    (dropped,) = raced.dropped
    assert (raced.chosen, dropped.trial, dropped.seeds, dropped.planned) == (0, 1, 1, 2)
    # The first seed of both; the second one of the chosen candidate, and its two controls with both seeds.
    assert screen.reruns[-1] == (7, 7)
    assert [note for note in screen.notes if "dropped" in note] == [f"{dropped}."]
    assert f"{dropped}." in raced.sentences
    report = (paths.report / "report.md").read_text()
    assert "| 1 of 2 |" in report
    assert "why it was dropped" in report

    # A later session repeats the race from what is stored.
    run_sweep(confirm=Confirm(candidates=2, seeds=2), **settings)
    assert (read_figures(paths).verdict, read_json(paths.reruns)) == (raced, entries)
    _, screen = run_sweep(confirm=Confirm(candidates=2, seeds=2, race=False), **settings)
    whole = read_figures(paths).verdict
    assert whole is not None
    # Both candidates have the same control with default distillation.
    assert screen.reruns[-1] == (10, 10)
    assert (whole.chosen, whole.winner, whole.gains, whole.dropped) == (0, raced.winner, raced.gains, [])
    assert {(each.trial, each.seeds) for each in whole.confirmed} == {(0, 2), (1, 2)}


def rerun_spans(client: MlflowClient, experiment_id: str) -> dict[str, tuple[int, int]]:
    """Id of the MLflow run of each rerun -> its start and its end."""
    runs = client.search_runs([experiment_id], "tags.`kdray.role` != 'search'")
    return {run.info.run_id: (run.info.start_time, run.info.end_time) for run in runs}


def test_reruns_that_were_not_tracked_are_sent_to_mlflow_by_a_later_session(run_sweep: RunSweep) -> None:
    paths, screen = run_sweep(tracking=Tracking(enabled=False))
    starts = {entry["number"]: entry["started"] for entry in read_json(paths.reruns).values()}
    run_sweep()
    client = MlflowClient(f"sqlite:///{paths.tracking_database}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "kdray")
    runs = client.search_runs([experiment.experiment_id], "tags.`kdray.role` != 'search'")
    assert len(runs) == 6 + screen.controls[-1][1] == len(starts)
    assert {run.info.start_time for run in runs} == {int(1000 * start) for start in starts.values()}
    assert all("test.accuracy" in run.data.metrics for run in runs)
    assert all(len(client.get_metric_history(run.info.run_id, "accuracy")) == 2 for run in runs)


def test_choice_is_made_from_the_search_when_all_reruns_fail(
    run_sweep: RunSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: RerunJob, worker: Worker) -> Iterator[Report]:
        yield {"step": 1}
        raise RuntimeError("out of luck")

    monkeypatch.setattr(RerunJob, "__call__", fail)
    paths, screen = run_sweep()
    failed = [note for note in screen.notes if "seed" in note and "RuntimeError: out of luck" in note]
    assert len(failed) == 6 + screen.controls[-1][1]
    figures = read_figures(paths)
    assert figures.chosen is not None
    assert "The choice could not be confirmed" in figures.sentences[1]
    assert "6 of the runs of the confirmation failed" in " ".join(figures.sentences)
    assert (paths.chosen / "model.safetensors").exists()
    assert all("out of luck" in (control.error or "") for control in figures.controls)
    report = (paths.report / "report.md").read_text()
    assert "out of luck" in report
    assert "| failed | failed |" in report
    assert "out of luck" in (paths.report / "report.html").read_text()
