"""The rule picks what it says, says what it picked, and never picks a student whose weights were dropped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.choice.rule import Choose, apply_rule, candidates, front_trials
from kdray.errors import SpecError
from kdray.evaluation.trial_record import State, TrialRecord

TEACHER = {"accuracy": 0.9, "macro_f1": 0.89, "latency_ms": 8.0}


def record(number: int, accuracy: float, latency: float, state: State = "completed", **more: float) -> TrialRecord:
    metrics = {"epoch": 1, "step": 1, "accuracy": accuracy, "retention": accuracy / 0.9} | more
    costs = {"latency_ms": latency, "speedup": 8.0 / latency}
    return TrialRecord(number, {}, state, (metrics,), costs)


RECORDS = [
    record(0, 0.89, 6.0),
    record(1, 0.88, 4.0),
    record(2, 0.80, 1.0),
    record(3, 0.95, 0.5, "failed"),
    record(4, 0.95, 0.5, "stopped"),
    record(5, 0.87, 4.0),
]


def test_the_smallest_that_keeps_enough() -> None:
    choice = apply_rule(RECORDS, Choose(), TEACHER)
    assert (choice.number, choice.satisfied) == (1, True)
    assert choice.sentence == (
        "Trial 1 was chosen: 2 of 4 finished students keep at least 97% of the teacher, and it has the smallest "
        "latency of them (4.00 ms): accuracy 0.8800 against the teacher's 0.9000 (keeps 97.8%), 2.0 times faster."
    )


def test_the_best_without_a_smallest() -> None:
    choice = apply_rule(RECORDS, Choose(smallest=None), TEACHER)
    assert choice.number == 0
    assert "it has the best accuracy" in choice.sentence


def test_none_keeps_enough() -> None:
    best = apply_rule(RECORDS, Choose(retention=0.995), TEACHER)
    assert (best.number, best.satisfied) == (0, False)
    assert best.sentence.startswith("No student keeps 99.5% of the teacher, so the best accuracy was taken: trial 0")
    none = apply_rule(RECORDS, Choose(retention=0.995, otherwise="none"), TEACHER)
    assert (none.number, none.satisfied) == (None, False)
    assert none.sentence.startswith(
        "No student keeps 99.5% of the teacher. The nearest: trial 0 keeps 98.9% of the teacher (99.5% asked for); "
        "trial 1 keeps 97.8%"
    )


def test_none_ran_to_its_end() -> None:
    assert apply_rule(RECORDS[3:5], Choose(), TEACHER).number is None


def test_equals_are_told_apart_by_the_best_then_by_number() -> None:
    equals = [record(7, 0.88, 4.0), record(3, 0.89, 4.0), record(5, 0.89, 4.0)]
    assert apply_rule(equals, Choose(), TEACHER).number == 3


def test_the_best_may_be_the_smallest_of_something() -> None:
    some = [record(0, 0.89, 4.0, loss=0.4), record(1, 0.88, 4.0, loss=0.3)]
    assert apply_rule(some, Choose(smallest=None, best="loss"), TEACHER).number == 1


def test_a_rule_that_cannot_be_applied_is_refused() -> None:
    with pytest.raises(SpecError, match=r"choose: no metric 'mcc'; there are accuracy, epoch"):
        apply_rule(RECORDS, Choose(best="mcc"), TEACHER)
    with pytest.raises(
        SpecError, match=r"Choose\.smallest: accuracy is nothing of which less is better; Allowed: cpu_latency_ms, "
    ):
        Choose(smallest="accuracy")
    for wrong in ({"retention": 0}, {"otherwise": "best?"}, {"retension": 1}):
        with pytest.raises(SpecError, match="Choose"):
            Choose(**wrong)


def test_the_front_has_completed_trials_alone() -> None:
    assert front_trials(RECORDS, ("accuracy", "latency_ms")) == {0, 1, 2}


RECORD = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@given(st.lists(RECORD, min_size=1, max_size=8), st.sampled_from(["latency_ms", None]), st.sampled_from([0.5, 2.5, 9]))
def test_who_is_chosen_is_among_those_whose_weights_are_kept(
    rows: list[tuple[int, int, int]], smallest: str | None, retention: float
) -> None:
    """However many are equal in what the rule looks at."""
    records = [record(n, a, t, macro_f1=f, retention=a) for n, (a, t, f) in enumerate(rows)]
    rule = Choose(smallest=smallest, best="macro_f1", retention=retention)
    choice = apply_rule(records, rule, TEACHER)
    assert choice.number in front_trials(records, rule.compared)
    assert choice.satisfied == any(a >= retention for a, _, _ in rows)


def test_the_best_within_limits() -> None:
    rule = Choose(best="accuracy", at_most={"latency_ms": 4})
    assert (rule.smallest, rule.retention) == (None, None)
    choice = apply_rule(RECORDS, rule, TEACHER)
    assert (choice.number, choice.satisfied) == (1, True)
    assert choice.sentence.startswith(
        "Trial 1 was chosen: 3 of 4 finished students have at most 4.00 ms latency, and it has the best accuracy: "
    )
    none = apply_rule(RECORDS, rule.with_dotted({"at_most.latency_ms": 0.5, "otherwise": "none"}), TEACHER)
    assert none.number is None
    assert "trial 0 has 6.00 ms latency (at most 0.50 ms asked for)" in none.sentence


def test_limits_and_a_bar_together() -> None:
    rule = Choose(best="accuracy", at_most={"latency_ms": 5}, retention=0.97)
    assert [r.number for r in rule.ranked(RECORDS)] == [1]
    assert rule.misses(RECORDS[2].metrics) == ["keeps 88.9% of the teacher (97% asked for)"]


def test_the_knee_is_where_the_front_bends() -> None:
    bent = [record(0, 0.60, 1.0), record(1, 0.86, 2.0), record(2, 0.88, 5.0), record(3, 0.90, 9.0), record(4, 0.5, 9.0)]
    choice = apply_rule(bent, Choose(knee=True), TEACHER)
    assert choice.number == 1
    assert "lies nearest to where the front of accuracy over latency bends" in choice.sentence


@pytest.mark.parametrize("wrong", [{"smallest": "accuracy"}, {"at_most": {"accuracy": 0.9}}])
def test_a_rule_that_asks_for_little_of_a_good_thing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="is nothing of which less is better"):
        Choose(**wrong)


def test_candidates_are_on_the_front_and_satisfy_the_rule_or_are_the_nearest() -> None:
    assert [r.number for r in candidates(RECORDS, Choose(), 3)] == [1, 0]
    assert [r.number for r in candidates(RECORDS, Choose(), 1)] == [1]
    assert [r.number for r in candidates(RECORDS, Choose(retention=0.995), 3)] == [0]


RULES = [
    Choose(),
    Choose(smallest=None),
    Choose(best="accuracy", at_most={"latency_ms": 4.0}),
    Choose(knee=True),
    Choose(smallest="latency_ms", at_most={"latency_ms": 3.0}, retention=0.9),
]


@given(
    st.lists(st.tuples(st.integers(50, 99), st.integers(1, 9)), min_size=1, max_size=12),
    st.sampled_from(RULES),
)
def test_whoever_a_rule_chooses_satisfies_it_and_can_be_shipped(points: list[tuple[int, int]], rule: Choose) -> None:
    records = [record(number, a / 100, float(latency)) for number, (a, latency) in enumerate(points)]
    choice = apply_rule(records, rule, TEACHER)
    assert choice.number in front_trials(records, rule.compared)
    assert choice.satisfied == any(not rule.misses(r.metrics) for r in records)
    if choice.satisfied:
        assert not rule.misses(records[choice.number].metrics)
        assert candidates(records, rule, 99)[0].number == choice.number
