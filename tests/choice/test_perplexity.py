"""The choice where less of the quality is better and the quality is no share: perplexity."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.champion import ChampionComparison, RegisteredFigures
from kdray.choice.reruns import Rerun, Role
from kdray.choice.rule import Choose, apply_rule, candidates
from kdray.choice.verdict import ExchangeTest, Verdict, reach_verdict
from kdray.evaluation.pareto import direction, dominates, knee_distances, pareto_front
from kdray.evaluation.trial_record import TrialRecord
from kdray.losses.top_k import TopK
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.task import Outputs
from kdray.tasks.text_classification import TextClassification
from kdray.training.trial import Recipe

VOCABULARY = 40
TEACHER = {"perplexity": 10.0, "latency_ms": 8.0}


def record(number: int, perplexity: float, latency: float) -> TrialRecord:
    metrics = {"epoch": 1, "step": 1, "perplexity": perplexity, "retention": 10.0 / perplexity}
    costs = {"latency_ms": latency, "speedup": 8.0 / latency}
    return TrialRecord(number=number, params={}, state="completed", history=(metrics,), costs=costs)


RECORDS = [record(0, 10.2, 6.0), record(1, 11.0, 4.0), record(2, 40.0, 1.0), record(3, 11.5, 4.0)]


def by_perplexity(**settings: Any) -> Choose:
    return Choose(**{"best": "perplexity"} | settings)


def test_less_is_better() -> None:
    assert direction("perplexity") == direction("loss") == "minimize"
    assert direction("token_accuracy") == direction("top5_accuracy") == "maximize"
    points = [record.metrics for record in RECORDS]
    objectives = ("perplexity", "latency_ms")
    assert dominates(points[1], points[3], objectives)
    assert pareto_front(points, objectives) == [0, 1, 2]
    # The second point costs two thirds of the first one, and is nearly as good.
    assert int(np.argmax(knee_distances(points, "perplexity", "latency_ms"))) == 1


@pytest.mark.parametrize(
    ("rule", "chosen", "is_satisfied", "words"),
    [
        (by_perplexity(retention=0.9), 1, True, "perplexity is 11.00 (teacher: 10.00)"),
        (by_perplexity(retention=0.97), 0, True, "keeps 98.0% of the teacher's quality"),
        (by_perplexity(retention=0.99), 0, False, "the student with the best perplexity was chosen"),
        (by_perplexity(at_most={"latency_ms": 5.0}), 1, True, "has the best perplexity"),
        (by_perplexity(at_most={"perplexity": 12.0}, smallest="latency_ms"), 1, True, "perplexity of at most 12.00"),
        (by_perplexity(smallest="perplexity", retention=0.5), 0, True, "the smallest perplexity of these (10.20)"),
        (by_perplexity(knee=True), 1, True, "closest to the knee of the front of perplexity over latency"),
    ],
    ids=["retention", "more", "too much", "limit", "limit of perplexity", "smallest", "knee"],
)
def test_the_rule(rule: Choose, chosen: int, is_satisfied: bool, words: str) -> None:
    choice = apply_rule(RECORDS, rule, TEACHER)
    assert (choice.number, choice.satisfied) == (chosen, is_satisfied)
    assert words in choice.sentence
    assert candidates(RECORDS, rule, 3)[0].number == chosen


def registered(perplexity: float, teacher: float = 10.0, latency: float = 4.0) -> RegisteredFigures:
    return RegisteredFigures(
        metric="perplexity",
        student={"perplexity": perplexity, "latency_ms": latency, "retention": teacher / perplexity},
        teacher={"perplexity": teacher, "latency_ms": 8.0},
        teacher_weights="w",
        test_rows="r",
        measured="m",
    )


def test_the_champion_is_the_one_with_less() -> None:
    rule = by_perplexity(smallest=None, retention=None)
    better = ChampionComparison(rule=rule, newcomer=registered(11.0), champion=registered(12.0))
    assert better.objection() is None
    worse = ChampionComparison(rule=rule, newcomer=registered(12.0), champion=registered(11.0))
    assert "perplexity 12.00" in str(worse.objection())
    # Against the newer teacher, the champion keeps less than the rule requires.
    strict = by_perplexity(retention=0.9)
    newcomer, champion = registered(11.0), registered(12.0, teacher=12.0, latency=1.0)
    assert champion.student["retention"] == 1
    assert ChampionComparison(rule=strict, newcomer=newcomer, champion=champion).objection() is None


class FakeDocuments:
    """Test documents with known gold; a model's outputs know it the better the greater their scale is."""

    labels: tuple[str, ...] = ()

    def __init__(self, sizes: list[int], seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.example_starts = np.concatenate(([0], np.cumsum(sizes)))
        self.gold = draw.integers(VOCABULARY, size=sum(sizes))

    def __len__(self) -> int:
        return len(self.example_starts) - 1

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        return len(self.gold), len(self.gold)

    def outputs(self, scale: float, seed: int) -> Outputs:
        logits_AxV = np.random.default_rng(seed).normal(size=(len(self.gold), VOCABULARY)).astype(np.float32)
        logits_AxV[np.arange(len(self.gold)), self.gold] += scale
        kept = TopK.of_logits(torch.from_numpy(logits_AxV), torch.from_numpy(self.gold), 16)
        return Outputs(kept.rows().numpy())


def verdict_of(task: MaskedLM | CausalLM, scales: Mapping[tuple[int, Role], float], rule: Choose) -> Verdict:
    rows: Any = FakeDocuments([3, 9, 1, 20, 5] * 60)
    outputs = {
        Rerun(trial=trial, role=role, seed=seed, recipe=Recipe()): rows.outputs(scale, 10 * trial + seed)
        for (trial, role), scale in scales.items()
        for seed in (1, 2)
    }
    answers = ConfirmationAnswers(outputs=outputs, failed={}, teacher=rows.outputs(3.0, 0), rows=rows, task=task)
    chosen_from = [record(number, 5.0, 4.0) for number in sorted({trial for trial, _ in scales})]
    return reach_verdict(answers, chosen_from, rule, {"latency_ms": 8.0})


@pytest.mark.parametrize("task", [MaskedLM(), CausalLM()], ids=["masked", "causal"])
def test_the_verdict(task: MaskedLM | CausalLM) -> None:
    rule = by_perplexity(smallest=None, retention=0.1)
    scales: dict[tuple[int, Role], float] = {(1, "candidate"): 1.5, (2, "candidate"): 2.5, (2, "labels only"): 1.0}
    verdict = verdict_of(task, scales, rule)
    assert verdict.metric == "perplexity"
    assert verdict.chosen == 2
    winner = verdict.winner
    assert winner is not None
    assert winner.metric.low < winner.metric.estimate < winner.metric.high
    assert winner.metric.estimate == pytest.approx(winner.metrics["perplexity"])
    assert winner.retention.high < 1
    assert winner.retention.estimate == pytest.approx(winner.metrics["retention"], rel=0.02)
    (gain,) = verdict.gains
    assert gain.difference.high < 0
    # A document has no single answer that is right, so the test exchanges the outputs of documents.
    assert isinstance(verdict.against, ExchangeTest)
    assert verdict.against.difference < 0
    assert verdict.against.p < 0.01
    sentences = " ".join(verdict.sentences)
    assert "perplexity of the chosen student is" in sentences
    assert "lower (approximate randomisation test" in sentences
    assert "Due to distillation: perplexity lower by " in sentences
    assert "the best of many trials is overestimated" in sentences


def test_a_student_whose_outputs_are_no_numbers_is_not_chosen() -> None:
    scales: dict[tuple[int, Role], float] = {(1, "candidate"): float("nan"), (2, "candidate"): 2.5}
    for rule in (by_perplexity(retention=0.1), by_perplexity(at_most={"perplexity": 1e6})):
        verdict = verdict_of(MaskedLM(), scales, rule)
        assert verdict.chosen == 2


def test_the_title_of_a_control_says_what_a_language_model_is_trained_without() -> None:
    control = Rerun(trial=4, role="labels only", seed=2, recipe=Recipe())
    assert control.title(MaskedLM()) == "trial 004, without the teacher, seed 2"
    assert control.title(TextClassification()) == "trial 004, labels only, seed 2"
