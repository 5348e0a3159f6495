"""The settings of inner terms: which terms they ask for, what the controls leave out, and what is written."""

from typing import Any

import pytest

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.losses.inner_settings import InnerSettings
from kdray.losses.inner_terms import INNER_TERMS
from kdray.settings import identifying_values


def test_terms_with_a_weight_at_some_time_are_the_inner_terms() -> None:
    assert not Distillation().inner_terms
    assert list(Distillation(relations=0.1, hidden_mse=1.0).inner_terms) == ["hidden_mse", "relations"]
    later = {"embeddings_end": 1.0, "hidden_mse": 0.0, "hidden_cosine": 1.0, "hidden_cosine_end": 0.0}
    assert list(Distillation(**later, schedule="linear").inner_terms) == ["hidden_cosine", "embeddings"]
    assert list(Distillation(**later).inner_terms) == ["hidden_cosine"]


EVERYTHING = {
    **dict.fromkeys(INNER_TERMS, 2.0),
    **{f"{name}_end": 1.0 for name in INNER_TERMS},
    "relation_heads": 4,
    "layer_map": "1:2",
    "inner_first": 0.3,
}


def test_these_are_all_settings_of_inner_terms() -> None:
    assert EVERYTHING.keys() == InnerSettings.model_fields.keys()


@pytest.mark.parametrize(
    ("kept", "schedule"),
    [
        ({"soft": "jsd", "alpha": 0.7}, {"schedule": "linear", "schedule_from": 0.1, "schedule_to": 0.9}),
        ({"logit_mse": 0.2, "trust": 0.5}, {"schedule": "cosine"}),
    ],
)
def test_logits_only_leaves_out_all_inner_terms_and_nothing_else(
    kept: dict[str, Any], schedule: dict[str, Any]
) -> None:
    everything = Distillation(**EVERYTHING, **kept, **schedule)
    assert everything.logits_only() == Distillation(**kept)
    ends = {"alpha_end": 0.1}
    assert everything.with_dotted(ends).logits_only() == Distillation(**kept, **schedule, **ends)
    assert not everything.logits_only().inner_terms
    assert identifying_values(everything.logits_only()) == identifying_values(Distillation(**kept))
    assert Distillation(**kept, **schedule, **ends).logits_only() == Distillation(**kept, **schedule, **ends)


def test_labels_only_has_no_inner_term() -> None:
    everything = Distillation(**EVERYTHING, schedule="linear", temperature=3.0)
    assert everything.labels_only() == Distillation(temperature=3.0, alpha=0.0)
    assert not everything.labels_only().inner_terms


def test_inner_terms_are_written_and_the_default_is_not() -> None:
    assert identifying_values(Distillation(**dict.fromkeys(INNER_TERMS, 0.0))) == identifying_values(Distillation())
    everything = Distillation(**EVERYTHING)
    assert Distillation(**identifying_values(everything)) == everything


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_mse": -1},
        {"relations": float("inf")},
        {"value_relation_end": -0.1},
        {"relation_heads": 0},
        {"relation_heads": 2.5},
        {"inner_first": 1.0},
        {"inner_first": -0.1},
    ],
)
def test_values_outside_the_limits_are_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(SpecError, match=rf"Distillation\.{name}: got"):
        Distillation(**values)
