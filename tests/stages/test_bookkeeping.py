"""The bookkeeper: which trial the screen calls the best so far."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution
from ray import tune

from kdray.data.splits import Data
from kdray.evaluation.trial_record import TrialRecord
from kdray.models.fresh import FreshTransformer
from kdray.report.screen import NullScreen, StageTimer
from kdray.search.ledger import Ledger
from kdray.search.settings import Search
from kdray.slots.local import LocalSlots
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.stages.bookkeeping import Bookkeeper
from kdray.stages.session import Session
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.regression import Regression
from kdray.teacher.teacher import Teacher
from kdray.tracking.tracker import NullTracker
from kdray.training.settings import Training


class BestScreen(NullScreen):
    """Stores the last call of `trials`: the number of the best trial, and the metric."""

    def __init__(self) -> None:
        self.best: tuple[int | None, str] | None = None

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        self.best = (None if best is None else best.number, quality)


@pytest.mark.parametrize(("objective", "best"), [("quality", 1), ("mse", 2)])
def test_the_screen_learns_the_metric_and_the_best_trial(tmp_path: Path, objective: str, best: int) -> None:
    """Trial 1 has the best correlation, trial 2 the smallest error, and trial 3 equals it but came later."""
    sweep = Sweep(
        name="pairs",
        task=Regression(pair="pair", label="score"),
        data=Data(source=GeneratedPairs()),
        teacher=Teacher(model=FreshTransformer(), training=Training()),
        space={"student.depth": tune.randint(1, 4)},
        search=Search(objectives=(objective, "latency_ms")),
    )
    quality = sweep.search.objectives[0]
    paths, screen = SweepPaths(tmp_path, sweep.name), BestScreen()
    ledger = Ledger.open(paths.journal, sweep.name, sweep.search.objectives)
    with LocalSlots() as slots:
        session = Session(
            sweep=sweep,
            paths=paths,
            ledger=ledger,
            screen=StageTimer(screen, paths.times),
            slots=slots,
            tracker=NullTracker(),
        )
        bookkeeper = Bookkeeper(session)
        assert screen.best == (None, quality)
        for pearson, mse in ((0.7, 0.9), (0.8, 0.6), (0.6, 0.5), (0.6, 0.5)):
            ledger.add({"student.depth": 1}, {"student.depth": IntDistribution(1, 3)}, {"latency_ms": 1.0}, {})
            number = len(ledger) - 1
            ledger.add_evaluation(number, {"epoch": 1.0, "step": 1.0, "pearson": pearson, "mse": mse, "retention": 0.9})
            bookkeeper.update(ledger.finish(number, "completed", None))
        assert screen.best == (best, quality)
        # A later session finds the same one.
        Bookkeeper(session)
        assert screen.best == (best, quality)
