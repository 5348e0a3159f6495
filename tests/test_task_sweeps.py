"""A sweep of each task beside text classification, from generated rows to the chosen student, on slots in this process.

`test_run` has what does not depend on the task.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, load_splits
from kdray.evaluation.measuring import Latency
from kdray.models.fresh import FreshTransformer
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.stages.shipping import Outcome
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Outputs, Task
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import Teacher
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training

ROWS = {"train_rows": 600, "validation_rows": 120, "test_rows": 100}
TASKS: dict[str, tuple[Task, Any]] = {
    "tags": (TokenClassification(max_length=16), GeneratedMentions(**ROWS)),
    "labels": (MultiLabel(label="labels", max_length=32), GeneratedMoods(**ROWS)),
    "numbers": (Regression(pair="pair", label="score", max_length=48), GeneratedPairs(**ROWS)),
}
"""The name of a sweep -> its task, and where its rows come from."""
CLOCK_METRICS = ("examples_per_s", "train_seconds", "eval_seconds")

every_task = pytest.mark.parametrize("name", TASKS)


class InterruptedScreen(NullScreen):
    """A screen that raises KeyboardInterrupt when it is to show the trials for the fourth time."""

    def __init__(self) -> None:
        self._shown = 0

    def trials(self, *arguments: Any) -> None:
        """Count the calls."""
        self._shown += 1
        if self._shown == 4:
            raise KeyboardInterrupt


def make_sweep(name: str) -> Sweep:
    task, source = TASKS[name]
    training = Training(epochs=4, batch_size=32, learning_rate=5e-3, precision="fp32", checkpoint_evaluations=1)
    return Sweep(
        name=name,
        task=task,
        data=Data(source=source),
        teacher=Teacher(
            model=FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=300),
            above_chance=0.0,
            training=training,
        ),
        training=training.model_copy(update={"epochs": 2}),
        space={"student.depth": [1, 2], "distillation.alpha": [0.3, 0.7]},
        search=Search(trials=3, stopping=None),
        latency=Latency(length=16, warmup=1, repeats=9),
        confirm=Confirm(candidates=2, seeds=1, controls=False),
        slots=SlotSettings(cpus=1),
        tracking=Tracking(enabled=False),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """A function that gives the outcome of the finished sweep of this name, in `TASKS`. Read it only."""

    @cache
    def outcome_of(name: str) -> Outcome:
        paths = SweepPaths(tmp_path_factory.mktemp(name), name)
        return run(make_sweep(name), paths, RunOptions(local=True))

    return outcome_of


def table(outcome: Outcome) -> list[Any]:
    """The rows of the table, without the values that depend on the clock."""
    return [
        (
            record.number,
            record.params,
            record.state,
            [{name: value for name, value in row.items() if name not in CLOCK_METRICS} for row in record.history],
        )
        for record in outcome.figures.records
    ]


def outputs_of(outcome: Outcome, name: str, split: str) -> tuple[Outputs, Any]:
    """The outputs of the chosen student for a split, by plain transformers, and the rows' gold as `GoldRows`."""
    task, source = TASKS[name]
    splits = load_splits(Data(source=source), task)
    folder = outcome.paths.chosen
    load = AutoModelForTokenClassification if name == "tags" else AutoModelForSequenceClassification
    model, tokenizer = load.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    columns = splits.columns(split)
    encoded = task.encode(tokenizer, {key: list(columns[key]) for key in ("text", "pair") if key in columns})
    logits = []
    with torch.inference_mode():
        for row in range(len(encoded.inputs["input_ids"])):
            row_logits = model(**{key: torch.tensor([ids[row]]) for key, ids in encoded.inputs.items()}).logits[0]
            logits.append(row_logits[list(encoded.places[row])] if encoded.places else row_logits[None])
    config = AutoConfig.from_pretrained(folder)
    thresholds = getattr(config, "thresholds", None)
    outputs = Outputs(torch.cat(logits).numpy(), None if thresholds is None else np.array(thresholds))
    return outputs, _GoldOf(columns["label"][:], splits.labels)


class _GoldOf:
    """The gold of a split as a task reads it."""

    def __init__(self, cells: list[Any], labels: tuple[str, ...]) -> None:
        self.labels = labels
        lengths = [1] * len(cells)
        if labels and isinstance(cells[0], list) and "O" in labels:
            lengths = [len(cell) for cell in cells]
            self.gold = np.concatenate([np.array(cell) for cell in cells])
        elif labels:
            self.gold = np.array([[int(number in cell) for number in range(len(labels))] for cell in cells])
        else:
            self.gold = np.array(cells, np.float64)
        self.example_starts = np.cumsum([0, *lengths])


@every_task
def test_a_sweep_of_each_task_chooses_a_student(finished: Callable[[str], Outcome], name: str) -> None:
    outcome, (task, _) = finished(name), TASKS[name]
    assert outcome.exit_code == 0
    figures, quality = outcome.figures, task.quality.name
    assert [record.state for record in figures.records] == ["completed"] * 3
    metrics = {*task.metric_names(None), "loss", "agreement", "retention"}
    for record in figures.records:
        assert metrics <= set(record.metrics)
        assert all(np.isfinite(record.metrics[metric]) for metric in metrics)
    assert {*task.metric_names(None)} <= set(figures.teacher)
    assert figures.chosen in {record.number for record in figures.records}
    # It is better than answers that do not depend on the text, so the training has an effect.
    assert max(record.metrics[quality] for record in figures.records) > 0.15


@every_task
def test_the_chosen_student_is_confirmed_with_the_quality_of_the_task(
    finished: Callable[[str], Outcome], name: str
) -> None:
    outcome, (task, _) = finished(name), TASKS[name]
    verdict = json.loads(outcome.paths.choice.read_text())["confirmation"]
    assert verdict["metric"] == task.quality.name
    assert verdict["rows"] == 100
    winner = next(each for each in verdict["confirmed"] if each["trial"] == verdict["chosen"])
    assert winner["metric"]["low"] <= winner["metric"]["estimate"] <= winner["metric"]["high"]
    assert winner["metrics"][task.quality.name] == pytest.approx(winner["metric"]["estimate"], abs=1e-6)


@every_task
def test_plain_transformers_gives_the_recorded_figures(finished: Callable[[str], Outcome], name: str) -> None:
    """On both splits: numbers are in the units of the data, and labels have the thresholds in config.json."""
    outcome, (task, _) = finished(name), TASKS[name]
    measured = json.loads(outcome.paths.choice.read_text())["measured"]
    for split in ("validation", "test"):
        outputs, rows = outputs_of(outcome, name, split)
        values = task.values(outputs, rows)
        for metric in task.metric_names(None):
            assert values[metric] == pytest.approx(measured[split][metric], rel=1e-4, abs=1e-5), (split, metric)


def test_the_figures_of_several_labels_use_the_thresholds_of_validation_rows(
    finished: Callable[[str], Outcome],
) -> None:
    outcome = finished("labels")
    config = json.loads((outcome.paths.chosen / "config.json").read_text())
    thresholds = np.array(config["thresholds"])
    assert len(thresholds) == len(config["id2label"])
    assert ((thresholds > 0) & (thresholds < 1)).all()
    task = TASKS["labels"][0]
    outputs, rows = outputs_of(outcome, "labels", "validation")
    best = task.choose_thresholds(outputs.logits_AxC, rows)
    assert best is not None
    np.testing.assert_allclose(thresholds, best, atol=1e-3)
    measured = json.loads(outcome.paths.choice.read_text())["measured"]["test"]["macro_f1"]
    on_test, test_rows = outputs_of(outcome, "labels", "test")
    without = task.values(Outputs(on_test.logits_AxC), test_rows)["macro_f1"]
    assert abs(without - measured) > 1e-6  # 0.5 everywhere gives other figures


def test_a_sweep_of_tags_that_is_cut_off_gives_the_same_table(
    finished: Callable[[str], Outcome], tmp_path: Path
) -> None:
    expected = finished("tags")
    paths = SweepPaths(tmp_path, "tags")
    with pytest.raises(KeyboardInterrupt):
        run(make_sweep("tags"), paths, RunOptions(local=True), InterruptedScreen())
    assert paths.settings.exists()
    assert not paths.choice.exists()
    continued = run(make_sweep("tags"), paths, RunOptions(local=True))
    assert table(continued) == table(expected)
    assert continued.figures.chosen == expected.figures.chosen
    files = [(outcome.paths.chosen / "model.safetensors").read_bytes() for outcome in (expected, continued)]
    assert files[0] == files[1]
