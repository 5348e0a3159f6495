"""The race of the candidates: which are trained with a further seed, which are dropped and why, and the choice.

Letters: N rows, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.race import Race, Step, step_without_race
from kdray.choice.reruns import Confirm, ControlsOf, Rerun, Role, planned_reruns
from kdray.choice.rule import Choice, Choose
from kdray.choice.verdict import confirmed_choice, reach_verdict
from kdray.evaluation.trial_record import TrialRecord
from kdray.tasks.task import Outputs, Task
from kdray.tasks.text_classification import TextClassification
from kdray.training.trial import Recipe
from tests.choice.test_confirmation import TEACHER_ACCURACY, FakeTestRows, by_accuracy, searched

CONTROL_ACCURACY = 0.7
SEEDS = 3
TEACHER = {"latency_ms": 9.0}


class RaceOfAccuracies:
    """A race whose candidates have given accuracies with their seeds; nan: the training with this seed failed."""

    task: Task = TextClassification()

    def __init__(
        self,
        records: Sequence[TrialRecord],
        accuracies: Mapping[int, Sequence[float]],
        rule: Choose,
        rows: int = 2000,
        noise: float = 0.002,
    ) -> None:
        """`noise`: how far a seed's accuracy on the validation rows is from that of the search."""
        self.rows: Any = FakeTestRows(rows)
        self.records, self.rule, self.noise = records, rule, noise
        recipe = Recipe()
        recipes = {r.number: recipe.with_dotted({"distillation.temperature": 2.5 + r.number}) for r in records}
        controls_of = ControlsOf(recipe, has_more_text=lambda recipe: False)
        self.plan = planned_reruns(Confirm(seeds=SEEDS), recipes, controls_of, seed=0)
        self.race = Race(self.plan, records, rule)
        self.of_runs = {run: self._accuracy(run, accuracies) for run in self.plan}
        self.logits = {run: self.rows.logits(each) for run, each in self.of_runs.items() if each == each}

    @staticmethod
    def _accuracy(run: Rerun, accuracies: Mapping[int, Sequence[float]]) -> float:
        return accuracies[run.trial][run.seed - 1] if run.role == "candidate" else CONTROL_ACCURACY

    def answers(self, runs: Sequence[Rerun]) -> ConfirmationAnswers:
        """The answers of these reruns."""
        searched_metrics = {record.number: record.metrics for record in self.records}
        return ConfirmationAnswers(
            outputs={run: Outputs(self.logits[run]) for run in runs if run in self.logits},
            failed={run: "out of luck" for run in runs if run not in self.logits},
            teacher=Outputs(self.rows.teacher_NxC),
            rows=self.rows,
            task=self.task,
            validation={
                run: {
                    name: searched_metrics[run.trial][name] + self.noise * (-1) ** run.seed
                    for name in ("accuracy", "retention")
                }
                for run in runs
            },
        )

    def run(self) -> tuple[list[list[tuple[int, Role, int]]], Step, list[Rerun]]:
        """Race to the end. Returns what each round trained, the last step, and all reruns."""
        rounds, done = list[list[tuple[int, Role, int]]](), list[Rerun]()
        while (step := self.race.step(self.answers(done))).runs:
            rounds.append([(run.trial, run.role, run.seed) for run in step.runs])
            done += step.runs
        return rounds, step, done

    def choices(self) -> tuple[Choice, Choice]:
        """The choice of the race, and that of the whole confirmation."""
        _, step, done = self.run()
        raced = confirmed_choice(self.answers(done), self.records, self.rule, TEACHER, step.dropped)
        return raced, confirmed_choice(self.answers(self.plan), self.records, self.rule, TEACHER)


def candidate_seeds(*seeds_of_trials: tuple[int, int]) -> list[tuple[int, Role, int]]:
    return [(trial, "candidate", seed) for trial, seed in seeds_of_trials]


def controls(trial: int) -> list[tuple[int, Role, int]]:
    roles: tuple[Role, ...] = ("labels only", "default distillation")
    return [(trial, role, seed) for seed in range(1, SEEDS + 1) for role in roles]


BY_COST = [searched(number, 0.9, latency_ms=float(number)) for number in (1, 2, 3)]


def test_dearer_candidates_are_not_trained_further_when_the_cheapest_satisfies_the_rule() -> None:
    """0.875 is just above 97 % of 0.9: the first seed does not yet show that the cheapest satisfies the rule."""
    race = RaceOfAccuracies(BY_COST, {1: (0.875, 0.876, 0.875), 2: (0.89,) * 3, 3: (0.9,) * 3}, by_accuracy())
    rounds, step, _ = race.run()
    assert rounds == [candidate_seeds((1, 1), (2, 1), (3, 1)), candidate_seeds((1, 2), (1, 3)), controls(1)]
    assert [(each.trial, each.seeds, each.planned) for each in step.dropped] == [(2, 1, 3), (3, 1, 3)]
    assert str(step.dropped[0]) == (
        "Trial 2 was dropped after 1 of 3 seeds: trial 1 satisfies the rule and has the smaller latency (1.00 ms "
        "instead of 2.00 ms)"
    )


def test_what_is_certain_after_the_first_seed_is_trained_together_with_its_controls() -> None:
    race = RaceOfAccuracies(BY_COST, {1: (0.95,) * 3, 2: (0.89,) * 3, 3: (0.9,) * 3}, by_accuracy())
    rounds, _, _ = race.run()
    assert rounds[1:] == [candidate_seeds((1, 2), (1, 3)) + controls(1)]


def test_a_candidate_far_below_the_limit_is_out_after_one_seed() -> None:
    race = RaceOfAccuracies(BY_COST, {1: (0.7,) * 3, 2: (0.875, 0.876, 0.877), 3: (0.9,) * 3}, by_accuracy())
    rounds, step, _ = race.run()
    assert rounds[1:] == [candidate_seeds((2, 2), (2, 3)), controls(2)]
    first, last = step.dropped
    assert (first.trial, last.trial) == (1, 3)
    assert first.reason.startswith("its retention is 77.8% (with all seeds, 98%: 7")
    assert first.reason.endswith("%), and the rule requires 97%")


def test_the_next_candidate_follows_when_the_cheapest_fails_with_all_its_seeds() -> None:
    race = RaceOfAccuracies(BY_COST, {1: (0.875, 0.872, 0.87), 2: (0.875, 0.876, 0.877), 3: (0.9,) * 3}, by_accuracy())
    rounds, step, _ = race.run()
    assert rounds[1:] == [candidate_seeds((1, 2), (1, 3)), candidate_seeds((2, 2), (2, 3)), controls(2)]
    assert [each.trial for each in step.dropped] == [3]


def test_by_quality_all_that_may_be_the_best_are_trained_round_by_round() -> None:
    rule = by_accuracy(at_most={"latency_ms": 9.0})
    race = RaceOfAccuracies(BY_COST, {1: (0.80,) * 3, 2: (0.895, 0.901, 0.902), 3: (0.9, 0.897, 0.898)}, rule)
    rounds, step, _ = race.run()
    assert rounds[1:] == [candidate_seeds((2, 2), (3, 2)), candidate_seeds((2, 3), (3, 3)), controls(2)]
    (dropped,) = step.dropped
    assert (dropped.trial, dropped.seeds) == (1, 1)
    assert dropped.reason.startswith("trial 2 satisfies the rule and has the better accuracy with all seeds: +9.")
    assert "points (98%: +" in dropped.reason


def test_more_noise_between_seeds_drops_fewer_candidates() -> None:
    """The rows alone would separate the candidates after one seed."""
    rule = by_accuracy(at_most={"latency_ms": 9.0})
    accuracies = {1: (0.87,) * 3, 2: (0.90, 0.90, 0.90), 3: (0.80,) * 3}
    quiet, noisy = (RaceOfAccuracies(BY_COST, accuracies, rule, noise=noise).run()[0] for noise in (0.0005, 0.05))
    assert quiet[1] == candidate_seeds((2, 2), (2, 3)) + controls(2)
    assert noisy[1] == candidate_seeds((1, 2), (2, 2), (3, 2))


def test_without_a_satisfying_candidate_the_best_of_all_is_found_or_none_is_trained_further() -> None:
    accuracies = {1: (0.7,) * 3, 2: (0.75,) * 3, 3: (0.8,) * 3}
    race = RaceOfAccuracies(BY_COST, accuracies, by_accuracy())
    rounds, step, _ = race.run()
    assert rounds[1:] == [candidate_seeds((3, 2), (3, 3)) + controls(3)]
    assert step.dropped[0].reason.startswith("no candidate satisfies the rule, and trial 3 has the better accuracy")
    none = RaceOfAccuracies(BY_COST, accuracies, by_accuracy(otherwise="none"))
    assert len(none.run()[0]) == 1
    raced, whole = none.choices()
    assert raced.number is whole.number is None
    assert raced.sentence == "No student keeps at least 97% of the teacher's quality. Closest to the rule: " + (
        "trial 3 keeps 88.9% of the teacher's quality (the rule requires 97%); trial 2 keeps 83.3% of the teacher's "
        "quality (the rule requires 97%); trial 1 keeps 77.8% of the teacher's quality (the rule requires 97%)."
    )


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_the_knee_is_confirmed_alone(order: Sequence[int]) -> None:
    records = [BY_COST[number - 1] for number in order]
    race = RaceOfAccuracies(records, dict.fromkeys((1, 2, 3), (0.9, 0.89, 0.9)), by_accuracy(knee=True))
    rounds, step, _ = race.run()
    first = order[0]
    assert len(rounds) == 2
    assert rounds[1] == candidate_seeds((first, 2), (first, 3)) + controls(first)
    assert step.dropped[0].reason == f"trial {first} satisfies the rule and is closer to the knee of the front"


def test_one_candidate_is_trained_with_all_seeds_and_controls_at_once() -> None:
    race = RaceOfAccuracies(BY_COST[:1], {1: (0.8,) * 3}, by_accuracy())
    rounds, step, done = race.run()
    assert len(rounds) == 1
    assert set(done) == set(race.plan)
    assert step.dropped == []


def test_failed_trainings_are_no_seeds() -> None:
    nan = float("nan")
    race = RaceOfAccuracies(BY_COST, {1: (nan,) * 3, 2: (nan, 0.89, 0.89), 3: (0.9,) * 3}, by_accuracy())
    rounds, _, done = race.run()
    assert rounds[1:] == [candidate_seeds((1, 2), (1, 3)), candidate_seeds((2, 2), (2, 3)), controls(2)]
    assert len(race.answers(done).failed) == 4
    raced, whole = race.choices()
    assert raced.number == whole.number == 2
    every = RaceOfAccuracies(BY_COST, dict.fromkeys((1, 2, 3), (nan,) * 3), by_accuracy())
    assert {run.role for run in every.run()[2]} == {"candidate"}
    assert len(every.run()[2]) == 9


def test_outputs_that_are_no_numbers_are_out_after_one_seed() -> None:
    race = RaceOfAccuracies(BY_COST, {1: (0.9,) * 3, 2: (0.89,) * 3, 3: (0.9,) * 3}, by_accuracy())
    for run in race.logits:
        if run.trial == 1:
            race.logits[run] = np.full_like(race.logits[run], np.nan)
    rounds, step, _ = race.run()
    assert rounds[1][:2] == candidate_seeds((2, 2), (2, 3))
    assert step.dropped[0].reason == "it has outputs that are not numbers"


def test_the_verdict_shows_a_dropped_candidate_with_its_seeds_and_does_not_choose_it() -> None:
    """With one seed trial 2 looks better than trial 1 with all seeds, but the rule prefers the cheaper one."""
    accuracies = {1: (0.875, 0.8775, 0.8775), 2: (0.8975,) * 3, 3: (0.9,) * 3}
    race = RaceOfAccuracies(BY_COST, accuracies, by_accuracy(), rows=400)
    _, step, done = race.run()
    raced = reach_verdict(race.answers(done), race.records, race.rule, TEACHER, step.dropped)
    whole = reach_verdict(race.answers(race.plan), race.records, race.rule, TEACHER)
    assert (raced.chosen, raced.satisfied) == (whole.chosen, whole.satisfied) == (1, True)
    assert raced.winner == whole.winner
    assert raced.gains == whole.gains
    assert raced.against == whole.against
    assert [(each.trial, each.role, each.seeds) for each in raced.confirmed] == [
        (1, "candidate", 3),
        (1, "labels only", 3),
        (1, "default distillation", 3),
        (2, "candidate", 1),
        (3, "candidate", 1),
    ]
    dropped = [sentence for sentence in raced.sentences if "was dropped after" in sentence]
    assert [sentence[:40] for sentence in dropped] == [
        f"Trial {n} was dropped after 1 of 3 seeds: "[:40] for n in (2, 3)
    ]
    assert [each for each in raced.sentences[1:] if each not in dropped] == whole.sentences[1:]
    assert raced.teacher.estimate == TEACHER_ACCURACY


def test_without_the_race_everything_is_trained_at_once() -> None:
    race = RaceOfAccuracies(BY_COST, dict.fromkeys((1, 2, 3), (0.9,) * 3), by_accuracy())
    first = step_without_race(race.plan, race.answers([]))
    assert first.runs == race.plan
    assert step_without_race(race.plan, race.answers(race.plan)).runs == []


def test_the_race_is_the_default_and_records_of_earlier_sweeps_stay_equal() -> None:
    assert Confirm().race
    assert "race" not in Confirm().model_dump()
    assert Confirm(race=False).model_dump()["race"] is False
    assert not Confirm().with_dotted({"race": "no"}).race
