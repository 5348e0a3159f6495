"""Choose and apply_rule: the choice, its sentence, the candidates, and that the chosen student has weights."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.choice.rule import Choose, apply_rule, candidates, front_trials
from kdray.errors import SpecError
from kdray.evaluation.trial_record import State, TrialRecord


def by_accuracy(**settings: Any) -> Choose:
    """A rule in which the quality is the accuracy."""
    return Choose(**{"best": "accuracy"} | settings)


TEACHER = {"accuracy": 0.9, "macro_f1": 0.89, "latency_ms": 8.0}


def record(number: int, accuracy: float, latency: float, state: State = "completed", **more: float) -> TrialRecord:
    metrics = {"epoch": 1, "step": 1, "accuracy": accuracy, "retention": accuracy / 0.9} | more
    costs = {"latency_ms": latency, "speedup": 8.0 / latency}
    return TrialRecord(number=number, params={}, state=state, history=(metrics,), costs=costs)


RECORDS = [
    record(0, 0.89, 6.0),
    record(1, 0.88, 4.0),
    record(2, 0.80, 1.0),
    record(3, 0.95, 0.5, "failed"),
    record(4, 0.95, 0.5, "stopped"),
    record(5, 0.87, 4.0),
]


def test_default_rule_chooses_the_smallest_latency_above_the_retention() -> None:
    choice = apply_rule(RECORDS, by_accuracy(), TEACHER)
    assert (choice.number, choice.satisfied) == (1, True)
    assert choice.sentence == (
        "Trial 1 was chosen: 2 of 4 finished students keep at least 97% of the teacher's quality, and trial 1 has the "
        "smallest latency of these (4.00 ms). Its accuracy is 0.8800 (teacher: 0.9000); it keeps 97.8% of the "
        "teacher's quality and is 2.0 times as fast as the teacher."
    )


def test_the_sentence_compares_the_forms_that_were_measured() -> None:
    in_int8 = {"int8_latency_ms": 0.5, "int8_speedup": 4.8, "int8_size_mb": 3.0}
    records = [replace(each, costs=each.costs | in_int8) for each in RECORDS[:2]]
    rule = by_accuracy(smallest="int8_latency_ms", retention=0.98)
    choice = apply_rule(records, rule, {**TEACHER, "int8_latency_ms": 2.4})
    assert "and trial 0 has the smallest int8 latency of these (0.50 ms)" in choice.sentence
    assert choice.sentence.endswith(
        "it keeps 98.9% of the teacher's quality and is 1.3 times as fast as the teacher; in int8 it has latency "
        "0.50 ms (teacher in int8: 2.40 ms) and is 4.8 times as fast as the teacher."
    )
    del in_int8["int8_speedup"]  # the teacher has no graph
    alone = apply_rule([replace(each, costs=each.costs | in_int8) for each in RECORDS[:2]], rule, TEACHER)
    assert alone.sentence.endswith("is 1.3 times as fast as the teacher; in int8 it has latency 0.50 ms.")
    limited = by_accuracy(at_most={"int8_size_mb": 2.0}, otherwise="none")
    assert "has int8 size 3.00 MB (the rule allows at most 2.00 MB)" in apply_rule(records, limited, TEACHER).sentence


def test_rule_without_smallest_chooses_the_best() -> None:
    choice = apply_rule(RECORDS, by_accuracy(smallest=None), TEACHER)
    assert choice.number == 0
    assert "and trial 0 has the best accuracy" in choice.sentence


def test_sentence_of_a_rule_without_requirements() -> None:
    fastest = apply_rule(RECORDS, by_accuracy(smallest=None, retention=None, best="speedup"), TEACHER)
    assert fastest.sentence == (
        "Trial 2 was chosen: of 4 finished students, trial 2 has the best speed-up. It keeps 88.9% of the teacher's "
        "quality and is 8.0 times as fast as the teacher."
    )
    only = apply_rule(RECORDS[:1], by_accuracy(smallest=None, retention=None), TEACHER)
    assert "of 1 finished student, trial 0 has the best accuracy. Its accuracy is" in only.sentence


def test_rule_that_no_student_satisfies() -> None:
    best = apply_rule(RECORDS, by_accuracy(retention=0.995), TEACHER)
    assert (best.number, best.satisfied) == (0, False)
    assert best.sentence.startswith(
        "No student keeps at least 99.5% of the teacher's quality, so the student with the best accuracy was chosen: "
        "trial 0. Its accuracy is 0.8900"
    )
    none = apply_rule(RECORDS, by_accuracy(retention=0.995, otherwise="none"), TEACHER)
    assert (none.number, none.satisfied) == (None, False)
    assert none.sentence.startswith(
        "No student keeps at least 99.5% of the teacher's quality. Closest to the rule: trial 0 keeps 98.9% of the "
        "teacher's quality (the rule requires 99.5%); trial 1 keeps 97.8%"
    )


def test_without_a_completed_trial_none_is_chosen() -> None:
    assert apply_rule(RECORDS[3:5], by_accuracy(), TEACHER).number is None


def test_ties_are_broken_by_the_best_then_by_number() -> None:
    equals = [record(7, 0.88, 4.0), record(3, 0.89, 4.0), record(5, 0.89, 4.0)]
    assert apply_rule(equals, by_accuracy(), TEACHER).number == 3


def test_best_may_be_a_metric_to_minimize() -> None:
    some = [record(0, 0.89, 4.0, loss=0.4), record(1, 0.88, 4.0, loss=0.3)]
    assert apply_rule(some, by_accuracy(smallest=None, best="loss"), TEACHER).number == 1


def test_rule_that_cannot_be_applied_is_refused() -> None:
    with pytest.raises(SpecError, match=r"choose: the trials have no metric 'mcc'; .*Allowed: accuracy, epoch"):
        apply_rule(RECORDS, by_accuracy(best="mcc"), TEACHER)
    with pytest.raises(
        SpecError, match=r"Choose\.smallest: accuracy is not a metric to minimize; Allowed: cpu_latency_ms, "
    ):
        Choose(smallest="accuracy")
    for wrong in ({"retention": 0}, {"otherwise": "best?"}, {"retension": 1}):
        with pytest.raises(SpecError, match="Choose"):
            Choose(**wrong)


def test_front_has_only_completed_trials() -> None:
    assert front_trials(RECORDS, ("accuracy", "latency_ms")) == {0, 1, 2}


RECORD = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@given(st.lists(RECORD, min_size=1, max_size=8), st.sampled_from(["latency_ms", None]), st.sampled_from([0.5, 2.5, 9]))
def test_chosen_trial_is_on_the_front_whose_weights_are_kept(
    rows: list[tuple[int, int, int]], smallest: str | None, retention: float
) -> None:
    """This holds also when many trials are equal in the metrics of the rule."""
    records = [record(n, a, t, macro_f1=f, retention=a) for n, (a, t, f) in enumerate(rows)]
    rule = by_accuracy(smallest=smallest, best="macro_f1", retention=retention)
    choice = apply_rule(records, rule, TEACHER)
    assert choice.number in front_trials(records, rule.compared)
    assert choice.satisfied == any(a >= retention for a, _, _ in rows)


def test_rule_with_limits() -> None:
    rule = by_accuracy(at_most={"latency_ms": 4})
    assert (rule.smallest, rule.retention) == (None, None)
    choice = apply_rule(RECORDS, rule, TEACHER)
    assert (choice.number, choice.satisfied) == (1, True)
    assert choice.sentence.startswith(
        "Trial 1 was chosen: 3 of 4 finished students have latency of at most 4.00 ms, and trial 1 has the best "
        "accuracy. Its accuracy is"
    )
    none = apply_rule(RECORDS, rule.with_dotted({"at_most.latency_ms": 0.5, "otherwise": "none"}), TEACHER)
    assert none.number is None
    assert "trial 0 has latency 6.00 ms (the rule allows at most 0.50 ms)" in none.sentence
    best = apply_rule(RECORDS, rule.with_dotted({"at_most.latency_ms": 0.5}), TEACHER)
    assert (
        "the student with the best accuracy of those that exceed the fewest limits was chosen: trial 0."
        in best.sentence
    )


def test_rule_with_limits_and_retention() -> None:
    rule = by_accuracy(at_most={"latency_ms": 5}, retention=0.97)
    assert [r.number for r in rule.rank(RECORDS)] == [1]
    assert rule.misses(RECORDS[2].metrics) == ["keeps 88.9% of the teacher's quality (the rule requires 97%)"]


def test_rule_chooses_the_knee() -> None:
    bent = [record(0, 0.60, 1.0), record(1, 0.86, 2.0), record(2, 0.88, 5.0), record(3, 0.90, 9.0), record(4, 0.5, 9.0)]
    choice = apply_rule(bent, by_accuracy(knee=True), TEACHER)
    assert choice.number == 1
    assert "trial 1 is the closest to the knee of the front of accuracy over latency" in choice.sentence


@pytest.mark.parametrize("wrong", [{"smallest": "accuracy"}, {"at_most": {"accuracy": 0.9}}])
def test_rule_that_minimizes_a_quality_metric_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="is not a metric to minimize"):
        Choose(**wrong)


def test_candidates_satisfy_the_rule_or_are_the_closest_to_it() -> None:
    assert [r.number for r in candidates(RECORDS, by_accuracy(), 3)] == [1, 0]
    assert [r.number for r in candidates(RECORDS, by_accuracy(), 1)] == [1]
    assert [r.number for r in candidates(RECORDS, by_accuracy(retention=0.995), 3)] == [0]


RULES = [
    by_accuracy(),
    by_accuracy(smallest=None),
    by_accuracy(at_most={"latency_ms": 4.0}),
    by_accuracy(knee=True),
    by_accuracy(smallest="latency_ms", at_most={"latency_ms": 3.0}, retention=0.9),
]


@given(
    st.lists(st.tuples(st.integers(50, 99), st.integers(1, 9)), min_size=1, max_size=12),
    st.sampled_from(RULES),
)
def test_chosen_trial_satisfies_the_rule_and_has_weights(points: list[tuple[int, int]], rule: Choose) -> None:
    records = [record(number, a / 100, float(latency)) for number, (a, latency) in enumerate(points)]
    choice = apply_rule(records, rule, TEACHER)
    assert choice.number in front_trials(records, rule.compared)
    assert choice.satisfied == any(not rule.misses(r.metrics) for r in records)
    if choice.satisfied:
        assert not rule.misses(records[choice.number].metrics)
        assert candidates(records, rule, 99)[0].number == choice.number


def test_a_student_whose_outputs_are_not_numbers_is_never_good_enough() -> None:
    nan = float("nan")
    broken, weak = record(0, nan, 1.0), record(1, 0.5, 6.0)
    for rule in (by_accuracy(), by_accuracy(at_most={"latency_ms": 5.0}), by_accuracy(smallest=None, retention=None)):
        assert rule.misses(broken.metrics) == ["has outputs that are not numbers"]
        assert apply_rule([broken, weak], rule, TEACHER).number == 1
        assert rule.rank_by_limits([broken, weak])[-1] is broken
