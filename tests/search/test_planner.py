"""The planner that drivers ask and tell, and the sequential driver over it."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from kdray.errors import DataError, JobError, ResourceError, SpecError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.search.planner import EARLIER_TRIALS, Planner
from kdray.search.sequential_driver import run_in_sequence
from kdray.search.settings import Search, at_least, at_most
from kdray.slots.job import Job, Worker
from kdray.slots.local import LocalSlots

SPACE = {
    "student.depth": [1, 2, 3, 4],
    "distillation.alpha": tune.uniform(0.0, 1.0),
    "training.learning_rate": tune.loguniform(1e-5, 1e-3),
}


def costs(params: dict[str, Any], noise: float = 0.0) -> dict[str, float]:
    return {"latency_ms": params["student.depth"] + noise, "speedup": 4.0 / params["student.depth"]}


def accuracy(params: dict[str, Any]) -> float:
    depth, alpha, rate = (params[name] for name in SPACE)
    return 0.5 + 0.05 * depth - 0.2 * (alpha - 0.6) ** 2 - 0.01 * abs(math.log10(rate) + 4)


def teaching(number: int, params: dict[str, Any]) -> Job:
    def job(worker: Worker) -> Iterator[dict[str, Any]]:
        for epoch in (1, 2, 3):
            if worker.must_stop():
                return
            yield {"accuracy": accuracy(params) * (1 - 0.5**epoch), "epoch": epoch, "step": 10 * epoch, "note": "text"}

    return job


def make_planner(
    folder: Path,
    *,
    noise: float = 0.0,
    space: dict[str, Any] = SPACE,
    earlier: list[Any] | None = None,
    **settings: Any,
) -> Planner:
    asked = Search(**({"trials": 12, "stopping": None} | settings))
    ledger = Ledger.open(asked.ledger or folder / "journal.log", "sweep", asked.objectives)
    if earlier is not None:
        ledger.set_attr(EARLIER_TRIALS, {"trials": earlier})
    return Planner(asked, space, ledger, lambda params: costs(params, noise), lambda params: 3)


def run(planner: Planner, make_job: Callable[[int, dict[str, Any]], Job] = teaching) -> list[TrialRecord]:
    with LocalSlots() as pool:
        run_in_sequence(pool, planner, make_job, lambda record: None)
    return planner.records()


def table(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [(record.number, record.params, record.state, record.history, record.error) for record in records]


def test_a_search_runs_its_trials_and_keeps_all_of_them(tmp_path: Path) -> None:
    seen: list[TrialRecord] = []
    with LocalSlots() as pool:
        run_in_sequence(pool, make_planner(tmp_path, trials=3), teaching, seen.append)
    assert [(record.number, record.state, len(record.history)) for record in seen] == [
        (number, state, evaluations)
        for number in range(3)
        for state, evaluations in (("running", 0), ("running", 1), ("running", 2), ("running", 3), ("completed", 3))
    ]
    assert seen[-1].metrics["accuracy"] == pytest.approx(accuracy(seen[-1].params) * 0.875)
    assert seen[-1].metrics["latency_ms"] == seen[-1].params["student.depth"]
    assert Ledger.read(tmp_path / "journal.log", "sweep").records()[2].history == seen[-1].history


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc"])
def test_the_same_seed_gives_the_same_table_also_with_a_noisy_clock(tmp_path: Path, sampler: str) -> None:
    tables = [
        table(run(make_planner(tmp_path / f"{noise}", sampler=sampler, trials=16, noise=noise, stopping={})))
        for noise in (0.0, 0.01)
    ]
    assert tables[0] == tables[1]
    other = table(run(make_planner(tmp_path / "other", sampler=sampler, trials=16, seed=1)))
    assert other != tables[0]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "qmc", "gp", "random"])
def test_a_search_in_two_sessions_is_the_search_in_one(tmp_path: Path, sampler: str) -> None:
    limits = {"latency_ms": at_most(3)}
    trials, stopping = (12, None) if sampler == "gp" else (16, {})  # a draw of gp takes a second
    whole = run(make_planner(tmp_path / "whole", sampler=sampler, trials=trials, stopping=stopping, constraints=limits))
    run(make_planner(tmp_path / "parts", sampler=sampler, trials=11, stopping=stopping, constraints=limits))
    parts = run(make_planner(tmp_path / "parts", sampler=sampler, trials=trials, stopping=stopping, constraints=limits))
    assert table(parts) == table(whole)


def test_one_objective_by_cmaes_in_two_sessions(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sampler": "cmaes", "objectives": ("accuracy",), "stopping": {}}
    whole = run(make_planner(tmp_path / "whole", trials=20, **settings))
    run(make_planner(tmp_path / "parts", trials=11, **settings))
    assert table(run(make_planner(tmp_path / "parts", trials=20, **settings))) == table(whole)
    assert "stopped" in {record.state for record in whole}


def test_the_sampler_learns(tmp_path: Path) -> None:
    one = {"student.depth": [2], "distillation.alpha": tune.uniform(0, 1), "training.learning_rate": [1e-4]}
    records = run(make_planner(tmp_path, space=one, trials=40, objectives=("accuracy",)))
    late = [abs(record.params["distillation.alpha"] - 0.6) for record in records[20:]]
    assert sum(late) / len(late) < 0.15


def test_a_broken_constraint_is_never_trained(tmp_path: Path) -> None:
    limits = {"latency_ms": at_most(3), "speedup": at_least(2)}
    records = run(make_planner(tmp_path, trials=20, constraints=limits, sampler="random"))
    assert {record.params["student.depth"] for record in records} == {1, 2}
    assert len(Ledger.read(tmp_path / "journal.log", "sweep")) == 20


def test_a_rare_architecture_is_found(tmp_path: Path) -> None:
    """Deep or wide is allowed, not both: what no range of one setting can say."""
    space = {"student.depth": [1, 8, 15], "student.heads": [1, 8, 15], "alpha": tune.uniform(0, 1)}
    settings = Search(trials=40, sampler="random", constraints={"latency_ms": at_most(15)}, stopping=None)
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", settings.objectives)
    size = lambda params: {"latency_ms": params["student.depth"] * params["student.heads"]}  # noqa: E731
    sweep = Planner(settings, space, ledger, size)
    drawn = {(asked.params["student.depth"], asked.params["student.heads"]) for asked in iter(sweep.next_trial, None)}
    assert drawn == {(1, 1), (1, 8), (8, 1), (1, 15), (15, 1)}


def test_costs_measured_anew_may_forbid_what_was_allowed(tmp_path: Path) -> None:
    limits = {"latency_ms": at_most(3)}
    run(make_planner(tmp_path, trials=12, constraints=limits, noise=-1))
    records = run(make_planner(tmp_path, trials=20, constraints=limits))
    assert max(record.params["student.depth"] for record in records[:12]) == 4
    assert max(record.params["student.depth"] for record in records[12:]) == 3


def test_constraints_that_nothing_keeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'latency_ms'\]: at most 0.5 is kept by none of the 4 .* from 1 to 4"):
        make_planner(tmp_path / "a", constraints={"latency_ms": at_most(0.5)})
    with pytest.raises(SpecError, match="none of the 4 architectures has latency_ms at most 1 and speedup at most 1"):
        make_planner(tmp_path / "b", constraints={"latency_ms": at_most(1), "speedup": at_most(1)})


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"trials": None}, "it would never end"),
        ({"sampler": "cmaes"}, "cmaes searches for one objective, there are 2"),
        ({"objectives": "loss,loss"}, "each may be named once"),
        ({"constraints": {"latency_ms": {}}}, "one of at_most and at_least"),
        ({"sampler": "grid"}, "'tpe'"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"warm_start": "results/first", "sampler": "random"}, "random learns from no trial. Use tpe"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError, match="Search") as caught:
        Search(**settings)
    assert part in str(caught.value)


def test_one_failing_trial_is_a_row_with_its_reason(tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        def job(worker: Worker) -> Iterator[dict[str, Any]]:
            yield {"accuracy": 0.5, "epoch": 1, "step": 10}
            if number == 1:
                raise DataError("row 3: no label")
            if number == 2:
                raise ValueError("bad luck")
            yield {"accuracy": math.nan if number == 3 else 0.6, "loss": math.inf, "epoch": 2, "step": 20}

        if number == 0:
            raise SpecError("distillation.alpha: no")
        return job if number < 4 else lambda worker: iter(({"loss": 1.0, "step": 1},))

    records = run(make_planner(tmp_path, trials=5), make_job)
    assert [record.state for record in records] == ["failed"] * 5
    errors = [record.error or "" for record in records]
    assert errors[:2] == ["distillation.alpha: no", "row 3: no label"]
    assert "ValueError: bad luck" in errors[2]
    assert errors[3:] == ["accuracy is nan at epoch 2", "it ended without reporting accuracy"]
    assert [len(record.history) for record in records] == [0, 1, 1, 2, 1]
    assert all(math.isfinite(value) for record in records for metrics in record.history for value in metrics.values())


def test_early_stopping_stops_the_job_and_spares_the_shallow(tmp_path: Path) -> None:
    ended: dict[int, int] = {}

    def make_job(number: int, params: dict[str, Any]) -> Job:
        def job(worker: Worker) -> Iterator[dict[str, Any]]:
            for epoch in (1, 2, 3):
                ended[number] = epoch
                yield {"accuracy": accuracy(params), "epoch": epoch, "step": epoch}
                if worker.must_stop():
                    return

        return job

    records = run(make_planner(tmp_path, trials=30, stopping={}, sampler="random"), make_job)
    stopped = [record for record in records if record.state == "stopped"]
    assert 8 < len(stopped) < 25
    assert all(len(record.history) == 1 and ended[record.number] == 1 for record in stopped)
    assert all(len(record.history) == 3 for record in records if record.state == "completed")
    for depth in (1, 2, 3, 4):
        equals = [record for record in records if record.params["student.depth"] == depth]
        best = max(equals, key=lambda record: accuracy(record.params))
        assert best.state == "completed"


def test_an_interrupted_trial_is_the_first_of_the_next_session(tmp_path: Path) -> None:
    def interrupting(number: int, params: dict[str, Any]) -> Job:
        def job(worker: Worker) -> Iterator[dict[str, Any]]:
            yield from teaching(number, params)(worker) if number < 2 else iter(())
            if number == 2:
                yield {"accuracy": 0.1, "epoch": 1, "step": 10}
                raise KeyboardInterrupt

        return job

    with pytest.raises(KeyboardInterrupt):
        run(make_planner(tmp_path, trials=4), interrupting)
    begun: list[int] = []

    def noting(number: int, params: dict[str, Any]) -> Job:
        begun.append(number)
        return teaching(number, params)

    records = run(make_planner(tmp_path, trials=4), noting)
    assert begun == [2, 3]
    assert [(record.state, record.attempts) for record in records] == [
        ("completed", 1),
        ("completed", 1),
        ("completed", 2),
        ("completed", 1),
    ]
    assert [metrics["step"] for metrics in records[2].history] == [10, 20, 30]
    whole = run(make_planner(tmp_path / "whole", trials=4))
    assert [record.params for record in records] == [record.params for record in whole]


def pairs(folder: Path, **settings: Any) -> Planner:
    """A search in which two trials of one architecture are compared after their first evaluation."""
    return make_planner(folder, space={**SPACE, "student.depth": [2]}, stopping={"reduction": 2}, **settings)


def observed(sweep: Planner, accuracy: float, step: int = 10) -> tuple[int, bool]:
    """The number of the next trial, and whether it goes on after an evaluation."""
    asked = sweep.next_trial()
    assert asked is not None
    return asked.number, sweep.observe(asked.number, {"accuracy": accuracy, "epoch": 1, "step": step})


def test_a_verdict_that_nobody_heard_ends_the_trial_in_the_next_session_and_is_told(tmp_path: Path) -> None:
    first = pairs(tmp_path, trials=2)
    (better, goes_on), (worse, stays) = observed(first, 0.9), observed(first, 0.1)
    assert (goes_on, stays) == (True, False)  # and there it dies
    told: list[TrialRecord] = []
    with LocalSlots() as pool:
        run_in_sequence(pool, pairs(tmp_path, trials=2), teaching, told.append)
    states = {record.number: record.state for record in told}
    assert states == {better: "completed", worse: "stopped"}
    ended = next(record for record in told if record.number == worse and record.state == "stopped")
    assert ended.ended - ended.started < 60  # the pause is no work of its


def test_who_was_let_go_on_is_not_judged_again_by_those_who_came_later(tmp_path: Path) -> None:
    first = pairs(tmp_path, trials=4)
    early, goes_on = observed(first, 0.5)
    assert goes_on
    assert [observed(first, accuracy)[1] for accuracy in (0.6, 0.7)] == [True, True]
    assert first.observe(early, {"accuracy": 0.5, "epoch": 1, "step": 10})  # told again, by a group that was restarted
    again = pairs(tmp_path, trials=4).next_trial()
    assert again is not None
    assert (again.number, again.stopped) == (early, False)


def test_trainings_of_another_length_are_no_peers(tmp_path: Path) -> None:
    """After its first epoch of six a trial is behind one that has just ended its only one."""
    space = {"student.depth": [2], "training.epochs": [1, 6]}
    asked = Search(trials=20, stopping={"reduction": 2}, sampler="random", objectives=("accuracy", "latency_ms"))
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", asked.objectives)
    sweep = Planner(asked, space, ledger, costs, lambda params: params["training.epochs"])
    long = []
    while trial := sweep.next_trial():
        epochs = trial.params["training.epochs"]
        accuracy = 0.8 if epochs == 1 else 0.7
        goes_on = sweep.observe(trial.number, {"accuracy": accuracy, "epoch": 1, "step": 10})
        long += [goes_on] if epochs == 6 else []
        sweep.finish(trial.number, "completed" if goes_on else "stopped")
    assert len(long) > 3
    assert all(long)  # equal among themselves


def test_a_missing_slot_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        raise ResourceError("slot 0 was not up after 300 s")

    with pytest.raises(ResourceError, match="not up"):
        run(make_planner(tmp_path), make_job)
    assert [record.state for record in Ledger.read(tmp_path / "journal.log", "sweep").records()] == ["running"]


def test_attempts_of_the_slots_are_counted_and_repeated_reports_are_not(tmp_path: Path) -> None:
    sweep = make_planner(tmp_path, trials=1)
    asked = sweep.next_trial()
    assert asked is not None
    for attempt, host, step in ((1, "h2", 10), (2, "h3", 10), (2, "h3", 20)):
        assert sweep.observe(asked.number, {"accuracy": 0.5, "step": step}, attempt, host)
    record = sweep.finish(asked.number, "completed")
    assert (record.attempts, record.host, len(record.history)) == (2, "h3", 2)
    assert [kept.host for kept in Ledger.read(tmp_path / "journal.log", "sweep").records()] == ["h3"]
    assert not sweep.observe(asked.number, {"accuracy": 0.9, "step": 30})
    assert sweep.finish(asked.number, "failed", "too late") == record


def test_hours_are_those_of_all_sessions(tmp_path: Path) -> None:
    now = [1000.0]
    search_for = Search(trials=None, hours=1, stopping=None)
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", search_for.objectives)
    sweep = Planner(search_for, SPACE, ledger, costs, clock=lambda: now[0])
    assert sweep.next_trial() is not None
    now[0] += 3599
    assert sweep.next_trial() is not None
    now[0] += 2
    assert sweep.next_trial() is None


def test_hours_count_what_an_interrupted_trial_was_trained(tmp_path: Path) -> None:
    search_for = Search(trials=None, hours=1, stopping=None)
    journal = tmp_path / "journal.log"
    first = Planner(search_for, SPACE, Ledger.open(journal, "sweep", search_for.objectives), costs)
    for _ in range(2):  # on two slots, both killed after 50 minutes
        asked = first.next_trial()
        assert asked is not None
        first.observe(asked.number, {"accuracy": 0.5, "step": 10, "train_seconds": 2900.0, "eval_seconds": 100.0})
    now = [0.0]
    ledger = Ledger.open(journal, "sweep", search_for.objectives)
    again = Planner(search_for, SPACE, ledger, costs, clock=lambda: now[0])
    assert [again.next_trial() is not None for _ in range(3)] == [True, True, True]
    now[0] = 601.0
    assert again.next_trial() is None


def test_hours_count_every_session_of_a_trial_that_is_interrupted_again_and_again(tmp_path: Path) -> None:
    search_for = Search(trials=None, hours=5, stopping=None)
    for session in range(3):  # two hours each
        now = [0.0]
        ledger = Ledger.open(tmp_path / "journal.log", "sweep", search_for.objectives)
        sweep = Planner(search_for, SPACE, ledger, costs, clock=lambda now=now: now[0])
        asked = sweep.next_trial()
        assert asked is not None
        assert asked.number == 0
        now[0] = 7200.0
        sweep.observe(0, {"accuracy": 0.5, "step": 10.0 * session, "train_seconds": 60.0, "eval_seconds": 1.0})
    assert sweep.next_trial() is None


# Going on with it -----------------------------------------------------------------------------------------------------


def held_in(folder: Path, kind: str) -> dict[str, Any]:
    """The setting of this kind of ledger."""
    return {} if kind == "journal" else {"ledger": f"sqlite:///{folder}/ledger.db"}


def test_a_database_gives_the_same_table(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trials": 16, "stopping": {}, "constraints": {"latency_ms": at_most(3)}}
    run(make_planner(tmp_path, **settings | {"trials": 7}, **held_in(tmp_path, "sqlite")))
    in_database = run(make_planner(tmp_path, **settings, **held_in(tmp_path, "sqlite")))
    in_journal = run(make_planner(tmp_path / "journal", **settings))
    assert table(in_database) == table(in_journal)
    assert in_database[3].started == pytest.approx(in_journal[3].started, abs=300)


@pytest.mark.parametrize(
    ("sampler", "kind"), [("tpe", "journal"), ("tpe", "sqlite"), ("nsga2", "sqlite"), ("qmc", "journal")]
)
def test_a_longer_list_goes_on_in_the_same_ledger(tmp_path: Path, sampler: str, kind: str) -> None:
    short, longer = SPACE | {"student.depth": [1, 2]}, SPACE | {"student.depth": [3, 1, 2]}
    ledger: dict[str, Any] = {"sampler": sampler, **held_in(tmp_path, kind)}
    before = run(make_planner(tmp_path, space=short, trials=4, **ledger))
    run(make_planner(tmp_path, space=longer, trials=8, **ledger))
    records = run(make_planner(tmp_path, space=longer, trials=16, **ledger))
    assert table(records[:4]) == table(before)
    assert {record.params["student.depth"] for record in records[:4]} <= {1, 2}
    assert {record.params["student.depth"] for record in records[4:]} == {1, 2, 3}
    assert {record.state for record in records} == {"completed"}
    other: dict[str, Any] = {"sampler": sampler, **held_in(tmp_path / "at once", kind)}
    run(make_planner(tmp_path / "at once", space=short, trials=4, **other))
    assert table(run(make_planner(tmp_path / "at once", space=longer, trials=16, **other))) == table(records)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_journal_that_is_cut_off_costs_the_last_change_alone(tmp_path: Path, part: float) -> None:
    """Wherever the process was killed, the search goes on from there and comes to the same table."""
    whole = run(make_planner(tmp_path / "whole", trials=3))
    journal = tmp_path / "whole" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    for number in range(4, len(lines)):
        cut = tmp_path / f"cut-{number}"
        cut.mkdir()
        torn = lines[number][: int(part * len(lines[number]))]
        (cut / "journal.log").write_bytes(b"".join(lines[:number]) + torn)
        before = Ledger.read(cut / "journal.log", "sweep").records()
        resumed = make_planner(cut, trials=3)
        assert [record.params for record in resumed.records()] == [record.params for record in before]
        assert [(r.params, r.state, r.history) for r in run(resumed)] == [(r.params, r.state, r.history) for r in whole]


# Warm start -----------------------------------------------------------------------------------------------------------


def earlier_trials(count: int = 30) -> list[dict[str, Any]]:
    """Another sweep's trials, all near the best there is."""
    params = [
        {"student.depth": 1 + number % 4, "distillation.alpha": 0.55 + number / 300, "training.learning_rate": 1e-4}
        for number in range(count)
    ]
    return [{"params": of, "metrics": {"accuracy": accuracy(of), "latency_ms": 999.0}} for of in params]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "cmaes"])
def test_a_sampler_knows_the_trials_of_another_sweep(tmp_path: Path, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "trials": 40}
    if sampler == "cmaes":
        settings |= {"objectives": ("accuracy",)}
    cold = run(make_planner(tmp_path / "cold", **settings))
    warm = run(make_planner(tmp_path / "warm", earlier=earlier_trials(60), **settings))
    assert [record.number for record in warm] == [record.number for record in cold]
    away = [
        sum(abs(record.params["distillation.alpha"] - 0.6) for record in records) / len(records)
        for records in (cold, warm)
    ]
    assert away[1] < 0.75 * away[0]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes"])
def test_a_warm_start_in_two_sessions_is_the_one_in_one(tmp_path: Path, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "stopping": {}}
    if sampler == "cmaes":
        settings |= {"objectives": ("accuracy",)}
    whole = run(make_planner(tmp_path / "whole", trials=20, earlier=earlier_trials(), **settings))
    run(make_planner(tmp_path / "parts", trials=9, earlier=earlier_trials(), **settings))
    assert table(run(make_planner(tmp_path / "parts", trials=20, **settings))) == table(whole)


def test_another_sweeps_trials_stop_nobody_and_are_no_rows(tmp_path: Path) -> None:
    sweep = make_planner(tmp_path, trials=3, earlier=earlier_trials(), stopping={"reduction": 2})
    for _ in range(2):
        asked = sweep.next_trial()
        assert asked is not None
        assert sweep.observe(asked.number, {"accuracy": 0.01, "epoch": 1, "step": 10})
        sweep.finish(asked.number, "failed", "enough of it")
    assert [record.number for record in sweep.records()] == [0, 1]
    assert sweep.next_trial() is not None
    assert sweep.next_trial() is None


def test_another_sweeps_trials_that_break_a_constraint_are_left_out(tmp_path: Path) -> None:
    sweep = make_planner(tmp_path, earlier=earlier_trials(20), constraints={"latency_ms": at_most(3)})
    assert sweep.ignored_trials == 5
    records = run(sweep)
    assert max(record.params["student.depth"] for record in records) == 3


def test_costs_are_those_measured_here(tmp_path: Path) -> None:
    """Another sweep may have been measured on another machine."""
    slow, fast = earlier_trials(), json.loads(json.dumps(earlier_trials()).replace("999.0", "0.001"))
    assert table(run(make_planner(tmp_path / "a", earlier=slow))) == table(
        run(make_planner(tmp_path / "b", earlier=fast))
    )


def test_a_job_error_keeps_its_words(tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        raise JobError("trial-0: the worker died 3 times.")

    assert run(make_planner(tmp_path, trials=1), make_job)[0].error == "trial-0: the worker died 3 times."
