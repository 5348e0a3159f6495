"""Schedules of the settings of the loss: their values during a training, and what is refused."""

from typing import Any

import pytest
import torch

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation, Targets
from kdray.losses.schedule import SCHEDULES, value_between
from kdray.losses.softmax import SOFTMAX
from kdray.settings import identifying_values

COOLING = Distillation(temperature=4.0, temperature_end=1.0, alpha=0.5, alpha_end=0.9, schedule="linear")


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_schedule_goes_one_way_from_its_start(name: str) -> None:
    shares = [SCHEDULES[name](step / 20) for step in range(21)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == ((0, 0) if name == "constant" else (0, 1))


@pytest.mark.parametrize(
    ("changes", "progress", "temperature"),
    [
        ({}, 0.0, 4.0),
        ({}, 0.5, 2.5),
        ({}, 1.0, 1.0),
        ({"schedule": "cosine"}, 0.0, 4.0),
        ({"schedule": "cosine"}, 0.5, 2.5),
        ({"schedule": "cosine"}, 0.25, 4.0 - 3.0 * 0.1464466),
        ({"schedule": "cosine"}, 1.0, 1.0),
        ({"schedule": "constant"}, 0.7, 4.0),
        ({"schedule_from": 0.4, "schedule_to": 0.8}, 0.4, 4.0),
        ({"schedule_from": 0.4, "schedule_to": 0.8}, 0.6, 2.5),
        ({"schedule_from": 0.4, "schedule_to": 0.8}, 0.9, 1.0),
    ],
)
def test_the_value_at_a_share_of_the_training(changes: dict[str, Any], progress: float, temperature: float) -> None:
    assert COOLING.with_dotted(changes).at(progress).temperature == pytest.approx(temperature)


def test_settings_without_an_end_value_stay_as_they_are() -> None:
    halfway = COOLING.with_dotted({"logit_mse": 0.1}).at(0.5)
    assert (halfway.temperature, halfway.alpha, halfway.logit_mse) == (2.5, 0.7, 0.1)
    assert Distillation(temperature=3).at(0.5) == Distillation(temperature=3)


@pytest.mark.parametrize("start", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("end", [0.0, 0.7, 1.0])
def test_start_and_end_are_reached_to_the_last_digit(start: float, end: float) -> None:
    assert (value_between(start, end, 0.0), value_between(start, end, 1.0)) == (start, end)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_settings_at_that_time(progress: float) -> None:
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    gold = torch.tensor([0, 1, 2, -1, 0])
    loss = COOLING.loss(student, Targets(gold, teacher, progress=progress), SOFTMAX)
    fixed = Distillation(temperature=4.0 - 3.0 * progress, alpha=0.5 + 0.4 * progress)
    torch.testing.assert_close(loss.total_A, fixed.loss(student, Targets(gold, teacher), SOFTMAX).total_A)


def test_a_term_that_begins_later_needs_the_teacher_from_the_beginning() -> None:
    later = Distillation(alpha=0.0, alpha_end=0.5, schedule="linear")
    assert later.needs_teacher
    assert not Distillation(alpha=0.0, alpha_end=0.5).needs_teacher
    with pytest.raises(SpecError, match=r"alpha 0 to 0\.5 and logit_mse 0 need the teacher's logits"):
        later.loss(torch.zeros(2, 2), Targets(torch.tensor([0, 1])), SOFTMAX)
    first = later.loss(torch.zeros(2, 2), Targets(torch.tensor([0, 1]), torch.ones(2, 2)), SOFTMAX)
    assert set(first.terms) == {"hard"}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"schedule": "linaer"}, "Distillation.schedule: got 'linaer'; did you mean 'linear'?"),
        ({"schedule_from": 1.0}, "Distillation.schedule_from: got 1.0; input should be less than 1"),
        ({"schedule_from": -0.1}, "Distillation.schedule_from: got -0.1"),
        ({"schedule_to": 1.5}, "Distillation.schedule_to: got 1.5; input should be less than or equal to 1"),
        ({"schedule_from": 0.8, "schedule_to": 0.5}, "got 0.8, which is not before the end of the schedule; "),
        ({"temperature_end": 0}, "Distillation.temperature_end: got 0"),
        ({"alpha_end": 1.1}, "Distillation.alpha_end: got 1.1"),
        ({"logit_mse_end": -1}, "Distillation.logit_mse_end: got -1"),
    ],
)
def test_a_schedule_outside_of_the_training_is_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        Distillation(**values)
    assert part in str(caught.value)


def test_an_error_names_the_setting_as_it_is_given_on_the_command_line() -> None:
    with pytest.raises(SpecError, match=r"^schedule_from: got 0\.9, "):
        Distillation().with_dotted({"schedule_from": 0.9, "schedule_to": 0.2})


def test_a_schedule_is_written_and_the_default_is_not() -> None:
    assert identifying_values(Distillation(schedule="constant", schedule_to=1.0)) == identifying_values(Distillation())
    assert Distillation(**identifying_values(COOLING)) == COOLING
