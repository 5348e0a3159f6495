"""Claim: a confirmation in which the candidates race makes the same choice with at most half of the trainings.

Without options, confirmations are simulated: a search over three architectures (each with `TRIALS` trials, whose
settings and seeds make them better or worse), whose candidates are trained again with three seeds and two controls, on
1,800 test rows. A row is right with a probability that depends on its own difficulty and on the student, so students
of equal quality have other rows right; a seed makes a student better or worse on all rows. Rule, choice and race are
kdray's own. The whole confirmation is simulated first; then the race reads of it what it would train. For each rule:
`same` is the share of confirmations in which both choose the same trial, `trainings` the race's trainings / all of
them, `controls_only` what would remain if every candidate had all seeds and only the chosen one its controls, and
`lost` the mean quality of the race's choice minus that of the whole confirmation, in points, for a rule by quality
(a loss is negative). The ratio is the largest `trainings` of a rule.

With `--sweep`, a finished sweep that was confirmed with `--set confirm.race=no` is copied and chosen from again, with
and without the race. Nothing is trained, because all outputs are stored.

    python bench/confirmation_race.py [--repeats 300] [--seed-points 0.4]                          (about 5 minutes)
    python bench/confirmation_race.py --sweep STORAGE/NAME                                         (about 1 minute)
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, print_result

from kdray import Choose, Confirm, Distillation, Training, TransformerStudent
from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.race import Race
from kdray.choice.reruns import ControlsOf, Rerun, planned_reruns
from kdray.choice.rule import candidates
from kdray.choice.verdict import Verdict, confirmed_choice
from kdray.evaluation.trial_record import TrialRecord
from kdray.run import RunOptions, run
from kdray.stages.choosing_again import read_finished_sweep
from kdray.storage.paths import SweepPaths
from kdray.tasks.task import Outputs
from kdray.tasks.text_classification import TextClassification
from kdray.training.trial import Recipe

TEST_ROWS, VALIDATION_ROWS = 1800, 870
TRIALS = 8
LOGITS_A_POINT = 0.24
"""How much a student's logit changes for one point of accuracy, near 90 %."""
ARCHITECTURES = ((1, 1.0, -3.5), (2, 2.0, -1.8), (3, 3.0, -0.6))
"""Depth, latency in ms, and points of accuracy against the teacher, on average over sweeps."""
SPREAD = {"architecture": 1.2, "settings": 0.6}
"""Standard deviations in points: of an architecture from sweep to sweep, of a trial with other settings."""
RULES = {
    "smallest that keeps 97 %": Choose(best="accuracy"),
    "smallest that keeps 98.5 %": Choose(best="accuracy", retention=0.985),
    "best within 5 ms": Choose(best="accuracy", at_most={"latency_ms": 5.0}),
    "knee": Choose(best="accuracy", knee=True),
    "knee that keeps 97 %": Choose(best="accuracy", knee=True, retention=0.97),
    "smallest that keeps 99 %, else none": Choose(best="accuracy", retention=0.99, otherwise="none"),
}
RECIPE = Recipe(student=TransformerStudent(), distillation=Distillation(), training=Training())


class SimulatedRows:
    """Rows of two labels, each with its own difficulty, as the task and the metrics read them."""

    labels = ("no", "yes")

    def __init__(self, random: np.random.Generator, rows: int) -> None:
        self.gold = random.integers(2, size=rows)
        self.example_starts = np.arange(rows + 1)
        # Most rows are easy for every model; the others are right with any probability.
        self._ease = np.where(random.random(rows) < 0.6, 6.0, random.normal(2.2, 3.0, rows))
        self._random = random

    def __len__(self) -> int:
        return len(self.gold)

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        return len(indices), len(indices)

    def outputs(self, points: float) -> Outputs:
        """The outputs of a model that is better than an average one by so many points of accuracy."""
        chance = 1 / (1 + np.exp(-(self._ease + LOGITS_A_POINT * points)))
        right = self._random.random(len(self.gold)) < chance
        return Outputs(np.eye(2, dtype=np.float32)[np.where(right, self.gold, 1 - self.gold)])

    def accuracy(self, outputs: Outputs) -> float:
        return float((outputs.logits_AxC.argmax(axis=1) == self.gold).mean())


@dataclass(frozen=True)
class Simulation:
    """A sweep after its search: the rows, the trials, and how good each recipe is on average over seeds."""

    random: np.random.Generator
    test: SimulatedRows
    validation: SimulatedRows
    teacher: Outputs
    records: Sequence[TrialRecord]
    points: Mapping[int, float]
    """Number of a trial -> its points of accuracy against an average model."""
    seed_points: float
    """The standard deviation of the effect of a seed, in points."""

    @classmethod
    def draw(cls, number: int, seed_points: float) -> "Simulation":
        random = np.random.default_rng(number)
        test, validation = SimulatedRows(random, TEST_ROWS), SimulatedRows(random, VALIDATION_ROWS)
        of_teacher = validation.accuracy(validation.outputs(0.0))
        records, points = list[TrialRecord](), dict[int, float]()
        for depth, latency, average in ARCHITECTURES:
            architecture = random.normal(average, SPREAD["architecture"])
            for _ in range(TRIALS):
                trial = len(records)
                points[trial] = random.normal(architecture, SPREAD["settings"])
                accuracy = validation.accuracy(validation.outputs(random.normal(points[trial], seed_points)))
                metrics = {"step": 1.0, "accuracy": accuracy, "retention": accuracy / of_teacher}
                params = {"student.depth": depth, "distillation.temperature": 1.0 + trial}
                costs = {"latency_ms": latency, "speedup": 6 / latency}
                records.append(TrialRecord(trial, params, "completed", (metrics,), costs))
        return cls(random, test, validation, test.outputs(0.0), records, points, seed_points)

    def confirm(self, rule: Choose, confirm: Confirm) -> tuple[list[Rerun], list[TrialRecord], ConfirmationAnswers]:
        """The plan of the confirmation, its candidates, and the answers of the whole plan."""
        chosen_from = candidates(self.records, rule, confirm.candidates)
        recipes = {record.number: RECIPE.with_dotted(record.params) for record in chosen_from}
        plan = planned_reruns(confirm, recipes, ControlsOf(RECIPE, has_more_text=lambda recipe: False), seed=0)
        of_teacher = self.records[0].metrics["accuracy"] / self.records[0].metrics["retention"]
        outputs, validation = dict[Rerun, Outputs](), dict[Rerun, dict[str, float]]()
        for rerun in plan:
            points = self.random.normal(self.points[rerun.trial], self.seed_points)
            outputs[rerun] = self.test.outputs(points)
            accuracy = self.validation.accuracy(self.validation.outputs(points))
            validation[rerun] = {"accuracy": accuracy, "retention": accuracy / of_teacher}
        rows: Any = self.test
        answers = ConfirmationAnswers(
            outputs=outputs,
            failed={},
            teacher=self.teacher,
            rows=rows,
            task=TextClassification(),
            validation=validation,
        )
        return plan, chosen_from, answers


def part_of(answers: ConfirmationAnswers, runs: Sequence[Rerun]) -> ConfirmationAnswers:
    """The answers of these reruns only."""
    return ConfirmationAnswers(
        outputs={each: answers.outputs[each] for each in runs},
        failed={},
        teacher=answers.teacher,
        rows=answers.rows,
        task=answers.task,
        validation={each: answers.validation[each] for each in runs},
    )


@dataclass(frozen=True)
class Comparison:
    """One confirmation with the race, and without it."""

    is_same: bool
    trainings: int
    all_trainings: int
    controls_only: int
    lost: float
    """Points of the race's choice minus those of the other, on the test rows."""
    rounds: int


def compare(simulation: Simulation, rule: Choose, confirm: Confirm) -> Comparison:
    """Confirm the candidates of one simulated sweep in both ways."""
    plan, chosen_from, answers = simulation.confirm(rule, confirm)
    race, done, rounds = Race(plan, chosen_from, rule), list[Rerun](), 0
    while (step := race.step(part_of(answers, done))).runs:
        done += step.runs
        rounds += 1
    whole = confirmed_choice(answers, chosen_from, rule, {}).number
    raced = confirmed_choice(part_of(answers, done), chosen_from, rule, {}, step.dropped).number
    quality = {record.number: answers.test_record(record).metrics["accuracy"] for record in chosen_from}
    lost = 0.0
    if raced is not None and whole is not None and rule.smallest is None and not rule.knee:
        lost = 100 * (quality[raced] - quality[whole])
    return Comparison(
        is_same=whole == raced,
        trainings=len({run.key for run in done}),
        all_trainings=len({run.key for run in plan}),
        controls_only=len(
            {run.key for run in plan if run.role == "candidate" or run.trial == whole},
        ),
        lost=lost,
        rounds=rounds,
    )


def summary(found: Sequence[Comparison]) -> dict[str, Any]:
    """The means over the confirmations that had something to race for."""
    every = sum(each.all_trainings for each in found)
    return {
        "confirmations": len(found),
        "same": float(np.mean([each.is_same for each in found])),
        "trainings": sum(each.trainings for each in found) / every,
        "largest_share": max(each.trainings / each.all_trainings for each in found),
        "controls_only": sum(each.controls_only for each in found) / every,
        "lost": float(np.mean([each.lost for each in found])),
        "rounds": float(np.mean([each.rounds for each in found])),
    }


def simulate(repeats: int, seed_points: float, confirm: Confirm) -> dict[str, Any]:
    """The figures of each rule, of sweeps that have as many candidates as the confirmation allows."""
    found: dict[str, Any] = {}
    for name, rule in RULES.items():
        comparisons, number = list[Comparison](), 0
        while len(comparisons) < repeats and number < 20 * repeats:
            simulation = Simulation.draw(number, seed_points)
            if len(candidates(simulation.records, rule, confirm.candidates)) == confirm.candidates:
                comparisons.append(compare(simulation, rule, confirm))
            number += 1
        if comparisons:
            found[name] = summary(comparisons)
    return found


def trainings_of(verdict: Verdict) -> int:
    return sum(student.seeds for student in verdict.confirmed)


def replay(original: SweepPaths) -> dict[str, Any]:
    """Choose again from a copy of a finished sweep, without and with the race."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as folder:
        shutil.copytree(original.storage, folder, dirs_exist_ok=True)
        paths = SweepPaths(Path(folder), original.name)
        sweep = read_finished_sweep(paths, original)
        for name, is_race in (("whole", False), ("race", True)):
            changes = {"confirm.race": is_race, "tracking.enabled": False}
            verdict = run(sweep.with_changes(changes), paths, RunOptions(local=True)).figures.verdict
            if verdict is None:
                raise SystemExit(f"{original.root}: this sweep has no confirmation (confirm.candidates=0).")
            found[name] = {"chosen": verdict.chosen, "trainings": trainings_of(verdict)}
            found[name]["dropped"] = [str(each) for each in verdict.dropped]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="simulated confirmations for each rule")
    parser.add_argument("--seed-points", type=float, default=0.4, help="effect of a seed on all rows, in points")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sweep", type=Path, help="a finished sweep, confirmed without the race")
    options, on = parser.parse_args(), machine()
    claim = "trainings of a confirmation in which candidates race, against all of them (share)"
    if options.sweep is not None:
        found = replay(SweepPaths(options.sweep.parent, options.sweep.name))
        ratio = found["race"]["trainings"] / found["whole"]["trainings"]
        is_same = found["race"]["chosen"] == found["whole"]["chosen"]
        print_result(claim, ratio, {"goal": 0.5, "same": is_same, **found}, on)
        return
    confirm = Confirm(candidates=options.candidates, seeds=options.seeds)
    rules = simulate(options.repeats, options.seed_points, confirm)
    print_result(
        claim,
        max(each["trainings"] for each in rules.values()),
        {"goal": 0.5, "seed_points": options.seed_points, "rows": TEST_ROWS, **confirm.model_dump(), "rules": rules},
        on,
    )


if __name__ == "__main__":
    main()
