"""Sweep: its checks when it is built, changes by dotted name, and its identity."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray import tune

from kdray.augmentation.settings import Augmentation
from kdray.choice.rule import Choose
from kdray.data.splits import Splits
from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.models.fresh import FreshTransformer
from kdray.search.settings import Search, at_least, at_most
from kdray.sweep import Sweep
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training

MakeSweep = Callable[..., Sweep]


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ({"student.dept": [1]}, ["space['student.dept']: no such setting; did you mean 'student.depth'?"]),
        ({"search.trials": [1]}, ["space['search.trials']: no such setting"]),
        ({"distillation.alpha": tune.uniform(0.3, 1.2)}, ["space['distillation.alpha']: 1.2", "less than or equal"]),
        ({"distillation.temperature": tune.uniform(0, 8)}, ["space['distillation.temperature']: 0.0", "greater than"]),
        ({"student.depth": tune.randint(0, 3)}, ["space['student.depth']: 0", "greater than or equal to 1"]),
        ({"training.learning_rate": [0, 1e-4]}, ["space['training.learning_rate']: 0", "greater than 0"]),
        ({"training.learning_rate": tune.uniform(-1e-3, 1e-3)}, ["space['training.learning_rate']: -0.001"]),
        ({"training.precision": ["fp16"]}, ["space['training.precision']: 'fp16'", "bf16"]),
        ({"student.revision": ["v1", "v2"]}, ["all students of a sweep are built from one revision of a checkpoint"]),
        ({"training.epochs": 3}, ["space['training.epochs']: got 3", "A fixed value is a setting of the sweep"]),
        ({}, ["space"]),
    ],
)
def test_bad_space_is_refused(make_sweep: MakeSweep, space: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(space=space)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"search": Search(objectives=("acuracy", "latency_ms"))}, ["'acuracy'", "did you mean 'accuracy'?"]),
        ({"search": Search(objectives=("accuracy", "latency"))}, ["search.objectives 'latency'", "'latency_ms'"]),
        (
            {"search": Search(objectives=("latency_ms",))},
            ["search.objectives: the first objective must be a quality metric"],
        ),
        ({"search": Search(constraints={"latencyms": at_most(5)})}, ["search.constraints 'latencyms'", "'latency_ms'"]),
        ({"search": Search(constraints={"accuracy": at_least(0.9)})}, ["search.constraints 'accuracy'", "latency_ms"]),
        ({"training": Training(quantised_from=0.2)}, ["training.quantised_from: it has no effect", "quantised=int8"]),
        ({"choose": Choose(best="bleu")}, ["choose 'bleu'", "text classification does not measure this metric"]),
        ({"name": "../other"}, ["Sweep.name: got '../other'"]),
        ({"seed": -1}, ["Sweep.seed: got -1"]),
        ({"tacher": 1}, ["Sweep.tacher: no such setting; did you mean 'teacher'?"]),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    make_sweep: MakeSweep, fields: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(**fields)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_metric_of_two_labels_is_refused_for_three(make_sweep: MakeSweep, splits: Splits) -> None:
    sweep = make_sweep(search=Search(objectives=("mcc", "latency_ms")))
    sweep.check_classes(splits)
    with pytest.raises(SpecError, match=r"search\.objectives 'mcc': .* does not measure this metric with 3 labels"):
        sweep.check_classes(replace(splits, labels=("a", "b", "c")))


def test_any_setting_can_be_changed(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    changed = sweep.with_changes(
        {
            "distillation.temperature": 4,
            "teacher.above_chance": 0.1,
            "search.constraints.latency_ms": {"at_most": 5},
            "search.objectives": "accuracy,parameters",
            "data.columns": "text,label",
        }
    )
    assert changed.recipe.distillation.temperature == 4
    assert changed.search.objectives == ("accuracy", "parameters")
    assert changed.search.constraints["latency_ms"].at_most == 5
    assert changed.data.columns == ("text", "label")
    assert sweep == make_sweep()


def test_searched_setting_that_gets_a_value_leaves_the_space(make_sweep: MakeSweep) -> None:
    fixed = make_sweep().with_changes({"student.depth": 1})
    assert set(fixed.space) == {"training.learning_rate"}
    assert fixed.recipe_of({"training.learning_rate": 1e-4}).student.depth == 1
    wider = make_sweep().with_changes({"space.student.depth": [1, 2, 3]})
    assert [student.depth for student in wider.students] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"student.dept": 1}, "student.dept: no such setting; did you mean 'student.depth'?"),
        ({"distilation.alpha": 1}, "distilation.alpha: no such setting; did you mean 'distillation.alpha'?"),
        ({"distillation.alpha": 1.2}, "distillation.alpha: got 1.2"),
        ({"space.student.depth": [0]}, "space['student.depth']: 0"),
        ({"space.student.dept": [1]}, "space['student.dept']: no such setting"),
        ({"data.source": 7}, "data.source"),
        ({"space": {"student.depth": [1]}}, "space: give each domain by its own name, such as --set space.student"),
        ({"search.constraints.latency_ms": 5}, "search"),
    ],
)
def test_bad_change_is_refused(make_sweep: MakeSweep, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep().with_changes(changes)
    assert part in str(caught.value)
    assert "Sweep." not in str(caught.value)


def test_smoke_copy_is_the_same_sweep_but_small(make_sweep: MakeSweep) -> None:
    small = make_sweep().smoke_copy()
    assert (small.name, small.data.max_rows, small.training.epochs, small.search.trials) == ("tiny-smoke", 64, 1, 2)
    assert small.space == make_sweep().space
    with pytest.raises(SpecError, match=r"training\.epoch: no such setting"):
        make_sweep(smoke={"training.epoch": 1}).smoke_copy()


@pytest.mark.parametrize(
    "changes",
    [
        {"search.trials": 50},
        {"search.hours": 2},
        {"slots.count": 3},
        {"tracking.uri": "http://127.0.0.1:5000"},
        {"choose.retention": 0.5},
    ],
)
def test_settings_that_may_change_are_not_in_the_identity(make_sweep: MakeSweep, changes: dict[str, Any]) -> None:
    assert make_sweep().with_changes(changes).identity() == make_sweep().identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"training.epochs": 5},
        {"space.student.depth": [1, 2, 3]},
        {"seed": 1},
        {"search.sampler": "random"},
        {"task.max_length": 12},
        {"data.max_rows": 50},
    ],
)
def test_settings_that_identify_the_sweep(make_sweep: MakeSweep, changes: dict[str, Any]) -> None:
    assert make_sweep().with_changes(changes).identity() != make_sweep().identity()


def test_identity_survives_json(make_sweep: MakeSweep) -> None:
    identity = make_sweep(search=Search(constraints={"latency_ms": at_most(5)})).identity()
    assert json.loads(json.dumps(identity)) == identity


def test_params_have_every_setting_and_domain(make_sweep: MakeSweep) -> None:
    params = make_sweep(space={"student.depth": [1, 2], "distillation.alpha": tune.uniform(0, 1)}).as_params()
    assert params["space.student.depth"] == [1, 2]
    assert "0" in str(params["space.distillation.alpha"])
    assert {"training.learning_rate", "distillation.temperature", "teacher.above_chance", "seed"} <= set(params)


# Augmentation ---------------------------------------------------------------------------------------------------------

WAYS = Augmentation(ways=("mask", "ngrams"))


def test_sweeps_without_copies_keep_their_identity(make_sweep: MakeSweep) -> None:
    assert "augmentation" not in make_sweep().identity()
    assert make_sweep(augmentation=WAYS).identity() != make_sweep().identity()


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 0),
        ({"augmentation": WAYS.model_copy(update={"copies": 4})}, 4),
        ({"augmentation": WAYS, "space": {"augmentation.copies": [0, 8, 4]}}, 8),
        ({"augmentation": WAYS, "space": {"augmentation.copies": tune.randint(0, 5)}}, 4),
    ],
)
def test_as_many_copies_are_written_as_a_trial_can_need(make_sweep: MakeSweep, fields: Any, most: int) -> None:
    assert make_sweep(**fields).most_copies == most


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"space": {"augmentation.copies": [0, 2]}}, "2 copies of each text are requested, but no way to change them"),
        ({"space": {"augmentation.copys": [0, 2]}}, "did you mean 'augmentation.copies'?"),
        ({"space": {"augmentation.copies": [0, -1]}, "augmentation": WAYS}, "augmentation.copies"),
        (
            {"space": {"augmentation.seed": [0, 1]}, "augmentation": WAYS},
            "space 'augmentation.seed': all trials of a sweep learn from the same copies",
        ),
        (
            {"task": TokenClassification(), "augmentation": WAYS},
            "augmentation.ways: got ngrams, which changes the number or the order of the words",
        ),
        (
            {"teacher": Teacher(outputs="answers.csv"), "augmentation": WAYS.model_copy(update={"copies": 1})},
            "augmentation.copies: the teacher is a file (teacher.outputs), which has no answers for changed texts.",
        ),
        (
            {
                "teacher": Teacher(model=FreshTransformer(), training=Training()),
                "augmentation": Augmentation(copies=1, ways=("neighbours",)),
            },
            "augmentation.ways: neighbours needs the embeddings of a pretrained model",
        ),
    ],
)
def test_wrong_augmentation_is_refused(make_sweep: MakeSweep, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(**fields)
    assert part in str(caught.value)


# Tasks ----------------------------------------------------------------------------------------------------------------

OTHER_TASKS = {
    "token_classification": ("span_f1", "tokens"),
    "multi_label": ("macro_f1", "text"),
    "regression": ("pearson", "text"),
}
"""Kind -> the quality metric of the task, and the default of its setting `text`."""


@pytest.mark.parametrize("kind", OTHER_TASKS)
@pytest.mark.parametrize("whole", [False, True])
def test_the_task_can_be_changed(make_sweep: MakeSweep, kind: str, whole: bool) -> None:
    """Objectives and rule then have its quality, settings that both tasks have stay, and others have their defaults."""
    changes = {"task": {"kind": kind, "max_length": 16}} if whole else {"task.kind": kind}
    quality, text = OTHER_TASKS[kind]
    sweep = make_sweep().with_changes(changes)
    assert (sweep.task.kind, sweep.task.text, sweep.task.max_length) == (kind, text, 16)
    assert sweep.search.objectives == (quality, "latency_ms")
    assert sweep.choose.best == quality
    back = sweep.with_changes({"task.kind": "text_classification", "task.text": "text", "task.label": "label"})
    assert back.identity() == make_sweep().identity()


def test_defaults_of_the_first_task_stay_defaults_after_any_change(make_sweep: MakeSweep) -> None:
    changed = make_sweep().with_changes({"task.max_length": 32}).with_changes({"task.kind": "token_classification"})
    assert (changed.task.text, changed.task.max_length) == ("tokens", 32)
    given = make_sweep().with_changes({"task.text": "body"}).with_changes({"task.kind": "token_classification"})
    assert given.task.text == "body"


def test_plain_tags_have_another_quality(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(task=TokenClassification()).with_changes({"task.scheme": "plain"})
    assert sweep.search.objectives == ("token_accuracy", "latency_ms")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"task.kind": "regresion"}, "task.kind: got 'regresion'; did you mean 'regression'? Allowed: causal_lm"),
        ({"task.kind": ["regression"]}, "task.kind: got ['regression']"),
        ({"task": {"kind": {}}}, "task.kind: got {}; Allowed: causal_lm, masked_lm, multi_label, regression"),
        ({"task": 3}, "task: got 3"),
        ({"task.kind": "regression", "task.labels": "a,b"}, "task.labels: no such setting; did you mean 'task.label'?"),
        ({"task.separator": ","}, "task.separator: no such setting"),
        ({"task.kind": "regression", "task.range": [5, 0]}, "task.range: got (5.0, 0.0); give the smallest"),
        ({"task.kind": "multi_label", "task.label": "[a]"}, "task.label: got one column, 'a'"),
        ({"task.kind": "multi_label", "task.label": "[a,b]", "task.separator": ";"}, "task.label: the names of its"),
        ({"task.kind": "token_classification", "task.scheme": "IOE"}, "task.scheme: got 'IOE'"),
        ({"task.kind": "token_classification", "task.pair": "b"}, "task.pair: the words of single texts are tagged"),
        ({"task.kind": "regression", "task.pair": "label"}, "text, pair and label must be different columns"),
    ],
)
def test_settings_of_tasks_are_checked(make_sweep: MakeSweep, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep().with_changes(changes)
    assert part in str(caught.value)


def test_columns_of_labels_are_named_in_brackets(make_sweep: MakeSweep) -> None:
    """`--set task.label=[sad,glad]` is no JSON."""
    for value in ("[sad, glad]", ["sad", "glad"]):
        sweep = make_sweep().with_changes({"task.kind": "multi_label", "task.label": value})
        assert isinstance(sweep.task, MultiLabel)
        assert sweep.task.label == ("sad", "glad")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"search": Search(objectives=("accuracy", "latency_ms"))},
            ["search.objectives 'accuracy': regression does not measure this metric", "pearson", "spearman"],
        ),
        ({"choose": Choose(best="macro_f1")}, ["choose 'macro_f1': regression does not measure", "pearson"]),
        (
            {"search": Search(constraints={"mse": at_most(1)})},
            ["search.constraints 'mse': it is known only after the training", "latency_ms"],
        ),
        ({"space": {"distillation.temperature": [1.0, 2.0]}}, ["space 'distillation.temperature': it has no meaning"]),
        ({"space": {"distillation.logit_mse": [0.0, 0.1]}}, ["no meaning for regression", "distillation.alpha,"]),
        ({"distillation": Distillation(temperature=3)}, ["distillation.temperature: got 3; it has no meaning"]),
        ({"distillation": Distillation(logit_mse=0.1)}, ["distillation.logit_mse: got 0.1; it has no meaning"]),
    ],
)
def test_what_a_regression_does_not_have_is_refused(
    make_sweep: MakeSweep, fields: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(task=Regression(), **fields)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("other", [TokenClassification(), MultiLabel()])
def test_metrics_of_another_task_are_refused_with_the_own_ones(make_sweep: MakeSweep, other: Any) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(task=other, search=Search(objectives=("accuracy", "latency_ms")))
    assert all(name in str(caught.value) for name in other.metric_names(None))
    with pytest.raises(SpecError, match=r"choose 'pearson': .* does not measure this metric"):
        make_sweep(task=other, choose=Choose(best="pearson"))
    # Both have probabilities, which a temperature softens.
    make_sweep(task=other, space={"distillation.temperature": [1.0, 2.0], "distillation.logit_mse": [0.0, 0.1]})


def test_a_searched_temperature_can_be_fixed_for_a_regression(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(space={"distillation.temperature": [1.0, 2.0], "student.depth": [1, 2]})
    changed = sweep.with_changes({"task.kind": "regression", "distillation.temperature": 2})
    assert set(changed.space) == {"student.depth"}


def test_a_task_survives_json(make_sweep: MakeSweep) -> None:
    for task in (TokenClassification(scheme="BIOES"), MultiLabel(label=("a", "b")), Regression(range=(0, 5))):
        identity = json.loads(json.dumps(make_sweep(task=task).identity()))
        sweep = Sweep.from_identity(identity)
        assert sweep.task == task
        assert sweep.identity() == identity


def test_a_sweep_of_text_classification_has_the_identity_that_it_had_before_other_tasks(make_sweep: MakeSweep) -> None:
    """Its folder has no kind, and such a sweep goes on."""
    identity = make_sweep().identity()
    assert identity["task"] == {"text": "text", "pair": None, "max_length": 16, "label": "label", "labels": None}
    assert identity["search"]["objectives"] == ["accuracy", "latency_ms"]
    assert Sweep.from_identity(identity).task == TextClassification(max_length=16)
