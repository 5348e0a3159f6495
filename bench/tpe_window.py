"""Claim: TPE that reads a window of the trials finds students as good as TPE that reads all of them.

Both draw the same trials until the window is full (1,000 trials). The search is invented: a student's quality depends
on its depth, alpha, temperature and learning rate; an evaluation adds noise. Four trials run at a time. `distance` is
how far the best students of each depth are below the best possible ones, without the noise, with two objectives
(quality and depth); with one objective (quality) it is that of the best student of all. `draw_s` is the processor time
of a draw after the first 1,000. The ratio is the mean distance with the window / that with all trials, with two
objectives.

    python bench/tpe_window.py [--trials 2000] [--seeds 20]                                     (an hour or more)
"""

import argparse
import copy
import math
import sys
import time
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import numpy as np
from machine import machine, print_result
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from kdray.search.sampling import TrialSampler
from kdray.search.tpe import WINDOW, Window, WindowStorage

DEPTHS = (1, 2, 3, 4, 6)
SPACE: dict[str, BaseDistribution] = {
    "depth": CategoricalDistribution(DEPTHS),
    "alpha": FloatDistribution(0.0, 1.0),
    "temperature": FloatDistribution(1.0, 10.0),
    "rate": FloatDistribution(1e-5, 1e-2, log=True),
}
NOISE = 0.003
AT_ONCE = 4


@dataclass(frozen=True)
class Found:
    """What a search has found, and what its draws cost."""

    distance: float
    """See `InventedSearch.distance`."""
    draw_s: float
    """Processor time of a draw, after the window is full."""


def best_quality(depth: int) -> float:
    """The quality of the best student with so many layers."""
    return 0.9 - 0.15 / depth


def quality(params: dict[str, Any]) -> float:
    """The quality of a student without noise. The best alpha and learning rate depend on the depth."""
    depth = params["depth"]
    return (
        best_quality(depth)
        - 0.10 * (params["alpha"] - 0.9 + 0.05 * depth) ** 2
        - 0.01 * ((params["temperature"] - 4) / 3) ** 2
        - 0.02 * (math.log10(params["rate"]) + 3 + 0.1 * depth) ** 2
    )


@dataclass
class InventedSearch:
    """A search whose trials are invented."""

    sampler: TrialSampler
    objectives: int
    noise: np.random.Generator
    drawn: list[dict[str, Any]] = field(default_factory=list)

    def run(self, trials: int) -> "InventedSearch":
        """Draw until there are so many trials."""
        while len(self.drawn) < trials:
            self.drawn.append(self.sampler.draw(lambda params: True, [{}]).params)
            ended = len(self.drawn) - AT_ONCE
            if ended >= 0:
                params = self.drawn[ended]
                values = [quality(params) + self.noise.normal(0, NOISE), float(params["depth"])]
                self.sampler.report_outcome(ended, TrialState.COMPLETE, values[: self.objectives])
        return self

    def distance(self) -> float:
        """How far the best students are below the best possible ones."""
        if self.objectives == 1:
            return max(map(best_quality, DEPTHS)) - max(map(quality, self.drawn))
        best = {
            depth: max((quality(each) for each in self.drawn if each["depth"] == depth), default=0.0)
            for depth in DEPTHS
        }
        return mean(best_quality(depth) - best[depth] for depth in DEPTHS)


def search(seed: int, objectives: int, trials: int) -> dict[str, Found]:
    """What one search finds with the window, and with all trials. Until the window is full, both draw the same."""
    sampler = TrialSampler("tpe", seed, ("accuracy", "latency_ms")[:objectives], SPACE)
    window = InventedSearch(sampler, objectives, np.random.default_rng(seed)).run(min(trials, WINDOW.most))
    everything = copy.deepcopy(window)
    storage = everything.sampler._storage
    assert isinstance(storage, WindowStorage)
    storage._window = Window(most=trials)
    found = {}
    for name, each in (("window", window), ("all", everything)):
        started = time.process_time()
        each.run(trials)
        late = max(1, trials - WINDOW.most)
        found[name] = Found(each.distance(), (time.process_time() - started) / late)
    return found


def compare(window: list[Found], everything: list[Found]) -> dict[str, float]:
    """The figures of the searches with the window and with all trials, of the same seeds."""
    differences = [a.distance - b.distance for a, b in zip(window, everything, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return {
        "distance_window": mean(each.distance for each in window),
        "distance_all": mean(each.distance for each in everything),
        "difference": mean(differences),
        "difference_standard_error": error,
        "draw_s_window": mean(each.draw_s for each in window),
        "draw_s_all": mean(each.draw_s for each in everything),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=20)
    options, on = parser.parse_args(), machine()
    found: dict[tuple[int, str], list[Found]] = {(count, name): [] for count in (1, 2) for name in ("window", "all")}
    for seed in range(options.seeds):
        for objectives in (1, 2):
            for name, each in search(seed, objectives, options.trials).items():
                found[objectives, name].append(each)
                print(f"seed {seed}, objectives {objectives}, {name}: {each}", file=sys.stderr)
    figures = {f"objectives_{count}": compare(found[count, "window"], found[count, "all"]) for count in (1, 2)}
    two = figures["objectives_2"]
    print_result(
        "what TPE finds when it reads a window of the trials, against all trials (distance from the best students)",
        two["distance_window"] / two["distance_all"],
        {**figures, "trials": options.trials, "seeds": options.seeds, "window": vars(WINDOW)},
        on,
    )


if __name__ == "__main__":
    main()
