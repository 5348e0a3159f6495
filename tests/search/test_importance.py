"""The importance of settings: high for the setting that decides the objective, and empty without enough evidence."""

from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution

from kdray.search.importance import setting_importances
from kdray.search.ledger import Ledger

DISTRIBUTIONS = {"matters": FloatDistribution(0, 1), "irrelevant": FloatDistribution(0, 1)}


def ledger_with(path: Path, accuracies: list[float]) -> Ledger:
    ledger = Ledger.open(path, "sweep", ("accuracy",))
    for number, accuracy in enumerate(accuracies):
        ledger.add({"matters": accuracy, "irrelevant": (number * 0.37) % 1}, DISTRIBUTIONS, {}, {})
        ledger.add_evaluation(number, {"accuracy": accuracy, "step": 1})
        ledger.finish(number, "completed")
    return ledger


def test_the_setting_that_decides_the_objective_has_nearly_all_importance(tmp_path: Path) -> None:
    shares = setting_importances(ledger_with(tmp_path / "journal.log", [number / 20 for number in range(20)]))
    assert shares["matters"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == setting_importances(Ledger.read(tmp_path / "journal.log", "sweep"))


@pytest.mark.parametrize("accuracies", [[0.1, 0.9], [0.5] * 8])
def test_too_few_or_equal_trials_give_no_importances(tmp_path: Path, accuracies: list[float]) -> None:
    assert setting_importances(ledger_with(tmp_path / "journal.log", accuracies)) == {}
