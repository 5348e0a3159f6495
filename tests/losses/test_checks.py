"""The settings of the loss that a sweep is refused for, before anything starts or when the labels are known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray import tune

from kdray.data.splits import Splits
from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.sweep import Sweep
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression

MakeSweep = Callable[..., Sweep]

HAS_NO_MEANING = {
    "trust": 0.5,
    "soft": "tvd",
    "standardize": True,
    "temperature_end": 1.5,
    "logit_mse_end": 0.1,
    "jsd_beta": 0.3,
    "dkd_beta": 2.5,
    "dist_gamma": 0.5,
}


@pytest.mark.parametrize(("name", "value"), HAS_NO_MEANING.items())
@pytest.mark.parametrize("is_searched", [False, True])
def test_a_regression_has_no_probabilities(make_sweep: MakeSweep, name: str, value: Any, is_searched: bool) -> None:
    fields = {"space": {f"distillation.{name}": [value]}} if is_searched else {"distillation": {name: value}}
    with pytest.raises(SpecError) as caught:
        make_sweep(task=Regression(), **fields)
    where = f"space 'distillation.{name}': it" if is_searched else f"distillation.{name}: got {value!r}; it"
    assert str(caught.value).startswith(f"{where} has no meaning for regression. Leave it out; with a meaning: ")


def test_the_alpha_of_a_regression_may_have_a_schedule(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(task=Regression(), distillation=Distillation(schedule="cosine", alpha_end=1.0))
    assert sweep.recipe.distillation.at(1.0).alpha == 1


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"distillation": {"soft": "dkd"}}, "distillation.soft: got 'dkd'; a label holds or does not hold: "),
        ({"space": {"distillation.soft": ["kl", "dkd"]}}, "space 'distillation.soft': got 'dkd'; a label holds"),
        ({"distillation": {"standardize": True}}, "distillation.standardize: got True; it has no meaning for"),
        ({"space": {"distillation.standardize": [True, False]}}, "space 'distillation.standardize': it has no meaning"),
    ],
)
def test_labels_have_no_target_and_their_logits_are_not_standardised(
    make_sweep: MakeSweep, fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(task=MultiLabel(), **fields)
    assert part in str(caught.value)


@pytest.mark.parametrize("other_task", [{}, {"task": MultiLabel()}])
@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"soft": "dist"}, "distillation.soft: got 'dist'; it needs at least 3 labels, and the data have 2: the corr"),
        ({"distillation.soft": ["kl", "dist"]}, "space 'distillation.soft': got 'dist'; it needs at least 3 labels"),
    ],
)
def test_relations_need_three_labels(
    make_sweep: MakeSweep, splits: Splits, other_task: Any, fields: dict[str, Any], part: str
) -> None:
    given = {"distillation": fields} if "soft" in fields else {"space": fields}
    sweep = make_sweep(**other_task, **given)
    sweep.check_classes(replace(splits, labels=("a", "b", "c")))
    with pytest.raises(SpecError) as caught:
        sweep.check_classes(splits)
    assert str(caught.value).startswith(part)
    assert str(caught.value).endswith("Allowed: kl, reverse_kl, jsd, tvd, mse.")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"distillation": {"soft": "dkd"}}, "distillation.soft: got 'dkd'; it needs at least 3 labels, and the data"),
        ({"distillation": {"standardize": True}}, "distillation.standardize: got True; it needs at least 3 labels"),
        (
            {"space": {"distillation.standardize": [False, True]}},
            "space 'distillation.standardize': got True; it needs at least 3 labels, and the data have 2: two stand",
        ),
    ],
)
def test_what_carries_nothing_at_two_classes_is_refused(
    make_sweep: MakeSweep, splits: Splits, fields: dict[str, Any], part: str
) -> None:
    sweep = make_sweep(**fields)
    sweep.check_classes(replace(splits, labels=("a", "b", "c")))
    with pytest.raises(SpecError) as caught:
        sweep.check_classes(splits)
    assert str(caught.value).startswith(part)


def test_a_regression_has_no_labels_to_count(make_sweep: MakeSweep, splits: Splits) -> None:
    make_sweep(task=Regression()).check_classes(replace(splits, labels=()))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"distillation": {"jsd_beta": 0.3}},
            "distillation.jsd_beta: got 0.3; only distillation.soft=jsd reads it, and it is kl here. Leave it out, or",
        ),
        (
            {"space": {"distillation.dkd_beta": [1.0, 8.0], "distillation.soft": ["kl", "dist"]}},
            "space 'distillation.dkd_beta': only distillation.soft=dkd reads it, and it is kl or dist here.",
        ),
        (
            {"distillation": {"alpha_end": 0.9}},
            "distillation.alpha_end: got 0.9; it has no effect, because distillation.schedule is constant.",
        ),
        (
            {"space": {"distillation.temperature_end": tune.uniform(0.5, 2)}},
            "space 'distillation.temperature_end': it has no effect, because distillation.schedule is constant.",
        ),
        ({"distillation": {"schedule_from": 0.5}}, "distillation.schedule_from: got 0.5; it has no effect, because"),
        (
            {"distillation": {"schedule": "linear"}},
            "distillation.schedule: got 'linear'; it has no effect without an end value. Set distillation.alpha_end or",
        ),
        ({"space": {"distillation.schedule": ["constant", "cosine"]}}, "space 'distillation.schedule': it has no eff"),
    ],
)
def test_a_setting_that_no_trial_reads_is_refused(make_sweep: MakeSweep, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(**fields)
    assert str(caught.value).startswith(part)


def test_terms_and_schedules_can_be_searched(make_sweep: MakeSweep) -> None:
    """A trial that draws another term, or a constant schedule, does not read some of its settings."""
    space = {
        "distillation.soft": ["kl", "dkd", "dist"],
        "distillation.dkd_beta": tune.uniform(0.5, 8.0),
        "distillation.standardize": [False, True],
        "distillation.schedule": ["constant", "linear"],
        "distillation.temperature_end": tune.uniform(1.0, 2.0),
        "distillation.schedule_to": [0.5, 1.0],
    }
    sweep = make_sweep(space=space)
    drawn = {"distillation.soft": "dkd", "distillation.dkd_beta": 2.0, "distillation.schedule": "linear"}
    distillation = sweep.recipe_of(drawn).distillation
    assert (distillation.soft_term.name, distillation.dkd_beta, distillation.schedule) == ("dkd", 2.0, "linear")
    assert Sweep.from_identity(sweep.identity()).identity() == sweep.identity()
    assert sweep.as_params()["distillation.dist_gamma"] == 1.0


@pytest.mark.parametrize(
    ("space", "part"),
    [
        ({"distillation.soft": ["kl", "dk"]}, "space['distillation.soft']: 'dk' is not allowed."),
        ({"distillation.schedule_to": [0.5, 1.5]}, "space['distillation.schedule_to']: 1.5 is not allowed."),
    ],
)
def test_values_that_are_not_allowed_are_no_part_of_a_space(
    make_sweep: MakeSweep, space: dict[str, Any], part: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(space=space)
    assert part in str(caught.value)


def test_settings_that_may_not_be_used_keep_no_other_sweep_from_its_identity(make_sweep: MakeSweep) -> None:
    assert set(make_sweep().identity()["distillation"]) == {"temperature", "alpha", "logit_mse"}
