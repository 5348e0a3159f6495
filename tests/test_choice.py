"""The rule picks what it says, says what it picked, and never picks a student whose weights were dropped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.choice import Choose, chosen, front_numbers
from kdray.errors import SpecError
from kdray.record import State, TrialRecord

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
    choice = chosen(RECORDS, Choose(), TEACHER)
    assert (choice.number, choice.satisfied) == (1, True)
    assert choice.sentence == (
        "Trial 1 was chosen: 2 of 4 finished students keep at least 97% of the teacher, and it has the smallest "
        "latency_ms of them (4): accuracy 0.8800 against the teacher's 0.9000 (keeps 97.8%), 2.0 times faster."
    )


def test_the_best_without_a_smallest() -> None:
    choice = chosen(RECORDS, Choose(smallest=None), TEACHER)
    assert choice.number == 0
    assert "it has the best accuracy" in choice.sentence


def test_none_keeps_enough() -> None:
    best = chosen(RECORDS, Choose(retention=0.995), TEACHER)
    assert (best.number, best.satisfied) == (0, False)
    assert best.sentence.startswith("No student keeps 99.5% of the teacher, so the best accuracy was taken: trial 0")
    none = chosen(RECORDS, Choose(retention=0.995, otherwise="none"), TEACHER)
    assert (none.number, none.satisfied) == (None, False)
    assert "the nearest is trial 0, which keeps 98.9%" in none.sentence


def test_none_ran_to_its_end() -> None:
    assert chosen(RECORDS[3:5], Choose(), TEACHER).number is None


def test_equals_are_told_apart_by_the_best_then_by_number() -> None:
    equals = [record(7, 0.88, 4.0), record(3, 0.89, 4.0), record(5, 0.89, 4.0)]
    assert chosen(equals, Choose(), TEACHER).number == 3


def test_the_best_may_be_the_smallest_of_something() -> None:
    some = [record(0, 0.89, 4.0, loss=0.4), record(1, 0.88, 4.0, loss=0.3)]
    assert chosen(some, Choose(smallest=None, best="loss"), TEACHER).number == 1


def test_a_rule_that_cannot_be_applied_is_refused() -> None:
    with pytest.raises(SpecError, match=r"choose: no metric 'mcc'; there are accuracy, epoch"):
        chosen(RECORDS, Choose(best="mcc"), TEACHER)
    with pytest.raises(SpecError, match=r"Choose\.smallest: more accuracy is better"):
        Choose(smallest="accuracy")
    for wrong in ({"retention": 0}, {"otherwise": "best?"}, {"retension": 1}):
        with pytest.raises(SpecError, match="Choose"):
            Choose(**wrong)


def test_the_front_has_completed_trials_alone() -> None:
    assert front_numbers(RECORDS, ("accuracy", "latency_ms")) == {0, 1, 2}


RECORD = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@given(st.lists(RECORD, min_size=1, max_size=8), st.sampled_from(["latency_ms", None]), st.sampled_from([0.5, 2.5, 9]))
def test_who_is_chosen_is_among_those_whose_weights_are_kept(
    rows: list[tuple[int, int, int]], smallest: str | None, retention: float
) -> None:
    """However many are equal in what the rule looks at."""
    records = [record(n, a, t, macro_f1=f, retention=a) for n, (a, t, f) in enumerate(rows)]
    rule = Choose(smallest=smallest, best="macro_f1", retention=retention)
    choice = chosen(records, rule, TEACHER)
    assert choice.number in front_numbers(records, rule.compared)
    assert choice.satisfied == any(a >= retention for a, _, _ in rows)
