"""The settings of the loss that a sweep is refused for, before anything starts or when the labels are known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray import tune

from kdray.data.splits import Splits
from kdray.errors import SpecError
from kdray.losses.checks import LossSettings
from kdray.losses.distillation import Distillation
from kdray.losses.inner_terms import INNER_TERMS
from kdray.losses.soft_terms import SOFT_TERMS
from kdray.losses.vocabulary import VOCABULARY
from kdray.sweep import Sweep
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.token_classification import TokenClassification

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

INNER = {
    "hidden_mse": 1.0,
    "embeddings": 0.5,
    "relations": 2.0,
    "relations_end": 1.0,
    "schedule": "linear",
    "relation_heads": 4,
    "layer_map": "last",
    "inner_first": 0.5,
}


@pytest.mark.parametrize(("name", "value"), HAS_NO_MEANING.items())
@pytest.mark.parametrize("is_searched", [False, True])
def test_a_regression_has_no_probabilities(make_sweep: MakeSweep, name: str, value: Any, is_searched: bool) -> None:
    fields = {"space": {f"distillation.{name}": [value]}} if is_searched else {"distillation": {name: value}}
    with pytest.raises(SpecError) as caught:
        make_sweep(task=Regression(), **fields)
    where = f"space 'distillation.{name}': it" if is_searched else f"distillation.{name}: got {value!r}; it"
    assert str(caught.value).startswith(f"{where} has no meaning for regression. Leave it out; with a meaning: ")


NEEDS_EVERY_LOGIT = {
    "soft": ("dkd", "dist", "mse"),
    "standardize": (True,),
    "logit_mse": (0.1,),
    "logit_mse_end": (0.1,),
    "dkd_alpha": (2.0,),
    "dist_gamma": (0.5,),
}


@pytest.mark.parametrize("task", [MaskedLM(), CausalLM()])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, all in NEEDS_EVERY_LOGIT.items() for value in all])
@pytest.mark.parametrize("is_searched", [False, True])
def test_of_a_vocabulary_only_the_largest_logits_are_kept(task: Any, name: str, value: Any, is_searched: bool) -> None:
    """Of a search one such value is enough."""
    searched = {name: ("kl", value) if name == "soft" else (value,)} if is_searched else {}
    settings = LossSettings(Distillation(**({} if is_searched else {name: value})), searched)
    with pytest.raises(SpecError) as caught:
        settings.check(task.distribution(np.zeros(1)), task.name)
    message = str(caught.value)
    assert message.startswith(f"space 'distillation.{name}': " if is_searched else f"distillation.{name}: got ")
    if name == "soft":
        assert message.endswith(f"got {value!r}; {VOCABULARY.problem_of_term(SOFT_TERMS[value])}")
        assert "it needs every logit of the teacher, but of a vocabulary only the largest are kept" in message
    else:
        assert f"it has no meaning for {task.name}. Leave it out; with a meaning: distillation.alpha, " in message


@pytest.mark.parametrize("task", [MaskedLM(), CausalLM()])
@pytest.mark.parametrize(
    "fields",
    [
        {"soft": "reverse_kl", "trust": 0.5},
        {"soft": "jsd", "jsd_beta": 0.3},
        {"soft": "tvd", "schedule": "linear", "temperature_end": 1.0, "alpha_end": 0.9},
        INNER,
    ],
)
def test_divergences_and_inner_terms_have_a_meaning_for_a_vocabulary(task: Any, fields: dict[str, Any]) -> None:
    LossSettings(Distillation(**fields), {}).check(task.distribution(np.zeros(1)), task.name)
    LossSettings(Distillation(**fields), {}).check_outputs(len(task.order_labels([], None).labels))


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
            "distillation.schedule: got 'linear'; it has no effect without an end value. Set distillation.alpha_end, ",
        ),
        ({"space": {"distillation.schedule": ["constant", "cosine"]}}, "space 'distillation.schedule': it has no eff"),
    ],
)
def test_a_setting_that_no_trial_reads_is_refused(make_sweep: MakeSweep, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(**fields)
    assert str(caught.value).startswith(part)


LINEAR = {"schedule": "linear"}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"distillation": {"relation_heads": 4, "hidden_mse": 1.0}},
            "distillation.relation_heads: got 4; only distillation.relations and distillation.value_relation read it, "
            "and their weights are 0. Leave it out, or give one of them a weight.",
        ),
        (
            {"space": {"distillation.relation_heads": [4, 12], "distillation.relations": [0.0]}},
            "space 'distillation.relation_heads': only distillation.relations and distillation.value_relation read it",
        ),
        (
            {"distillation": {"layer_map": "last"}},
            "distillation.layer_map: got 'last'; only distillation.hidden_mse, distillation.hidden_cosine, ",
        ),
        (
            {"distillation": {"embeddings": 1.0}, "space": {"distillation.layer_map": ["last", "first"]}},
            "space 'distillation.layer_map': only distillation.hidden_mse, distillation.hidden_cosine, ",
        ),
        (
            {"distillation": {"inner_first": 0.5}},
            "distillation.inner_first: got 0.5; it has no effect without an inner term, and the weights of all of them "
            "are 0. Leave it out, or give a weight to distillation.hidden_mse, distillation.hidden_cosine, ",
        ),
        (
            {"distillation": {"hidden_mse": 0.0}, "space": {"distillation.inner_first": tune.uniform(0, 0.5)}},
            "space 'distillation.inner_first': it has no effect without an inner term",
        ),
        (
            {"distillation": {"hidden_mse": 1.0, "hidden_mse_end": 0.0}},
            "distillation.hidden_mse_end: got 0; it has no effect, because distillation.schedule is constant.",
        ),
        (
            {"distillation": {"hidden_mse_end": 1.0, "layer_map": "last"}},
            "distillation.layer_map: got 'last'; only distillation.hidden_mse, ",
        ),
        (
            {"distillation": {"hidden_mse": 1.0, **LINEAR}},
            "distillation.schedule: got 'linear'; it has no effect without an end value. Set distillation.alpha_end, "
            "distillation.logit_mse_end, distillation.temperature_end or distillation.hidden_mse_end, or leave it out.",
        ),
        (
            {
                "distillation": {"relations": 1.0, "relations_end": 0.0, "schedule_from": 0.5, **LINEAR},
                "space": {"distillation.inner_first": [0.25, 0.5]},
            },
            "distillation.relations_end: got 0; it has no effect, because the inner terms end at "
            "distillation.inner_first=0.5, and the schedule begins at distillation.schedule_from=0.5. Leave",
        ),
        (
            {
                "distillation": {"relations": 1.0, "alpha_end": 0.9, "inner_first": 0.5, **LINEAR},
                "space": {"distillation.schedule_to": tune.uniform(0.2, 0.4)},
            },
            "distillation.alpha_end: got 0.9; distillation.alpha itself has no effect, because the schedule ends at "
            "distillation.schedule_to=0.4, and before distillation.inner_first=0.5 there are inner terms alone. Set ",
        ),
        (
            {"distillation": {"soft": "dkd", "dkd_alpha": 0.0, "dkd_beta": 0.0}},
            "distillation.soft: got 'dkd'; distillation.dkd_alpha and distillation.dkd_beta are 0, so this term is ",
        ),
        (
            {"distillation": {"dist_beta": 0.0, "dist_gamma": 0.0}, "space": {"distillation.soft": ["kl", "dist"]}},
            "space 'distillation.soft': got 'dist'; distillation.dist_beta and distillation.dist_gamma are 0, so this",
        ),
    ],
)
def test_settings_of_inner_terms_that_no_trial_reads_are_refused(
    make_sweep: MakeSweep, fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(**fields)
    assert str(caught.value).startswith(part)


@pytest.mark.parametrize(
    "fields",
    [
        {"distillation": dict.fromkeys(INNER_TERMS, 0.0)},
        {"space": {"distillation.hidden_mse": [0.0]}},
        {"distillation": {"embeddings": 1.0}},
        {"distillation": {"value_relation": 1.0, "relation_heads": 4, "layer_map": "final"}},
        {"distillation": {"relations_end": 1.0, "relation_heads": 4, "inner_first": 0.5, **LINEAR}},
        {"distillation": {"relation_heads": 4}, "space": {"distillation.relations": [0.0, 1.0]}},
        {
            "distillation": {"hidden_mse": 1.0, "hidden_mse_end": 0.0, "schedule_from": 0.5, **LINEAR},
            "space": {"distillation.inner_first": [0.0, 0.5]},
        },
        {
            "distillation": {"hidden_mse": 1.0, "alpha_end": 0.9, "schedule_to": 0.5, **LINEAR},
            "space": {"distillation.inner_first": [0.0, 0.5]},
        },
        {"distillation": {"soft": "dkd", "dkd_alpha": 0.0}, "space": {"distillation.dkd_beta": tune.uniform(0, 8)}},
    ],
)
def test_settings_that_some_trial_reads_are_accepted(make_sweep: MakeSweep, fields: dict[str, Any]) -> None:
    make_sweep(**fields)


@pytest.mark.parametrize("other", [Regression(), MultiLabel(), TokenClassification()], ids=lambda task: task.kind)
def test_inner_terms_have_a_meaning_for_every_task(make_sweep: MakeSweep, other: Any) -> None:
    make_sweep(task=other, distillation=Distillation(**INNER))
    space = {f"distillation.{name}": [value] for name, value in INNER.items()}
    sweep = make_sweep(task=other, space=space)
    assert sweep.recipe_of({name: values[0] for name, values in space.items()}).distillation == Distillation(**INNER)


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
