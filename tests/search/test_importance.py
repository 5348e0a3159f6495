"""Which setting matters: found where it is planted, and nothing said where nothing can be."""

from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution

from kdray.search.importance import setting_importances
from kdray.search.ledger import Ledger

DISTRIBUTIONS = {"matters": FloatDistribution(0, 1), "idle": FloatDistribution(0, 1)}


def ledger_with(path: Path, accuracies: list[float]) -> Ledger:
    ledger = Ledger.open(path, "planted", ("accuracy",))
    for number, accuracy in enumerate(accuracies):
        ledger.add({"matters": accuracy, "idle": (number * 0.37) % 1}, DISTRIBUTIONS, {}, {})
        ledger.add_evaluation(number, {"accuracy": accuracy, "step": 1})
        ledger.finish(number, "completed")
    return ledger


def test_the_setting_that_was_planted_explains_nearly_all(tmp_path: Path) -> None:
    found = setting_importances(ledger_with(tmp_path / "journal.log", [number / 20 for number in range(20)]))
    assert found["matters"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert found == setting_importances(Ledger.read(tmp_path / "journal.log", "planted"))


@pytest.mark.parametrize("accuracies", [[0.1, 0.9], [0.5] * 8])
def test_nothing_is_said_of_too_few_trials_or_equal_ones(tmp_path: Path, accuracies: list[float]) -> None:
    assert setting_importances(ledger_with(tmp_path / "journal.log", accuracies)) == {}
