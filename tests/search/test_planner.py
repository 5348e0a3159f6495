"""The planner, and the sequential driver that runs its trials."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from kdray.choice.rule import front_trials
from kdray.errors import DataError, JobError, ResourceError, SpecError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.search.planner import EARLIER_TRIALS, Length, Planner
from kdray.search.sequential_driver import run_in_sequence
from kdray.search.settings import Search, at_least, at_most
from kdray.search.space import SearchSpace
from kdray.slots.job import Job, Worker
from kdray.slots.local import LocalSlots

SPACE = {
    "student.depth": [1, 2, 3, 4],
    "distillation.alpha": tune.uniform(0.0, 1.0),
    "training.learning_rate": tune.loguniform(1e-5, 1e-3),
}


OBJECTIVES = ("accuracy", "latency_ms")


def costs(params: dict[str, Any], noise: float = 0.0) -> dict[str, float]:
    """Latency and speed-up by depth; `noise` stands for the timing noise of a measured latency, in milliseconds."""
    return {"latency_ms": params["student.depth"] + noise, "speedup": 4.0 / params["student.depth"]}


def accuracy(params: dict[str, Any]) -> float:
    """The accuracy that training with these settings reaches; best at alpha 0.6 and learning rate 1e-4."""
    depth, alpha, rate = (params[name] for name in SPACE)
    return 0.5 + 0.05 * depth - 0.2 * (alpha - 0.6) ** 2 - 0.01 * abs(math.log10(rate) + 4)


def make_training_job(number: int, params: dict[str, Any]) -> Job:
    """A job of three evaluations that approach `accuracy(params)`."""

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
    search = Search(**({"trials": 12, "stopping": None, "objectives": OBJECTIVES} | settings))
    ledger = Ledger.open(search.ledger or folder / "journal.log", "sweep", search.objectives)
    if earlier is not None:
        ledger.set_attr(EARLIER_TRIALS, {"trials": earlier})
    return Planner(
        search, SearchSpace(space), ledger, costs=lambda params: costs(params, noise), length=lambda params: Length(3)
    )


def run(planner: Planner, make_job: Callable[[int, dict[str, Any]], Job] = make_training_job) -> list[TrialRecord]:
    """Run the trials until the budget is spent, and return the records of all trials."""
    with LocalSlots() as pool:
        run_in_sequence(pool, planner, make_job, lambda record: None)
    return planner.records()


def table(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    """What must be equal when a search is repeated: everything but times."""
    return [(record.number, record.params, record.state, record.history, record.error) for record in records]


def test_a_search_runs_its_trials_and_records_each_change(tmp_path: Path) -> None:
    changes: list[TrialRecord] = []
    with LocalSlots() as pool:
        run_in_sequence(pool, make_planner(tmp_path, trials=3), make_training_job, changes.append)
    assert [(record.number, record.state, len(record.history)) for record in changes] == [
        (number, state, evaluations)
        for number in range(3)
        for state, evaluations in (("running", 0), ("running", 1), ("running", 2), ("running", 3), ("completed", 3))
    ]
    assert changes[-1].metrics["accuracy"] == pytest.approx(accuracy(changes[-1].params) * 0.875)
    assert changes[-1].metrics["latency_ms"] == changes[-1].params["student.depth"]
    assert Ledger.read(tmp_path / "journal.log", "sweep").records()[2].history == changes[-1].history


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc"])
def test_the_same_seed_gives_the_same_table_also_with_timing_noise(tmp_path: Path, sampler: str) -> None:
    tables = [
        table(run(make_planner(tmp_path / f"{noise}", sampler=sampler, trials=16, noise=noise, stopping={})))
        for noise in (0.0, 0.01)
    ]
    assert tables[0] == tables[1]
    other = table(run(make_planner(tmp_path / "other", sampler=sampler, trials=16, seed=1)))
    assert other != tables[0]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "qmc", "gp", "random"])
def test_two_sessions_give_the_table_of_one_session(tmp_path: Path, sampler: str) -> None:
    limits = {"latency_ms": at_most(3)}
    trials, stopping = (12, None) if sampler == "gp" else (16, {})  # a draw of the GP sampler takes a second
    whole = run(make_planner(tmp_path / "whole", sampler=sampler, trials=trials, stopping=stopping, constraints=limits))
    run(make_planner(tmp_path / "parts", sampler=sampler, trials=11, stopping=stopping, constraints=limits))
    parts = run(make_planner(tmp_path / "parts", sampler=sampler, trials=trials, stopping=stopping, constraints=limits))
    assert table(parts) == table(whole)


def test_two_sessions_of_cmaes_give_the_table_of_one_session(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sampler": "cmaes", "objectives": ("accuracy",), "stopping": {}}
    whole = run(make_planner(tmp_path / "whole", trials=20, **settings))
    run(make_planner(tmp_path / "parts", trials=11, **settings))
    assert table(run(make_planner(tmp_path / "parts", trials=20, **settings))) == table(whole)
    assert "stopped" in {record.state for record in whole}


def make_error_job(number: int, params: dict[str, Any]) -> Job:
    """A job of three evaluations of errors, which are smaller where the accuracy would be better."""

    def job(worker: Worker) -> Iterator[dict[str, Any]]:
        for epoch in (1, 2, 3):
            yield {"mse": 1 - accuracy(params), "epoch": epoch, "step": epoch}
            if worker.must_stop():
                return

    return job


@pytest.mark.parametrize(("quality", "make_job"), [("accuracy", make_training_job), ("mse", make_error_job)])
def test_the_sampler_learns(tmp_path: Path, quality: str, make_job: Callable[[int, dict[str, Any]], Job]) -> None:
    one = {"student.depth": [2], "distillation.alpha": tune.uniform(0, 1), "training.learning_rate": [1e-4]}
    records = run(make_planner(tmp_path, space=one, trials=40, objectives=(quality,)), make_job)
    late = [abs(record.params["distillation.alpha"] - 0.6) for record in records[20:]]
    assert sum(late) / len(late) < 0.15


def test_a_student_that_breaks_a_constraint_is_never_trained(tmp_path: Path) -> None:
    limits = {"latency_ms": at_most(3), "speedup": at_least(2)}
    records = run(make_planner(tmp_path, trials=20, constraints=limits, sampler="random"))
    assert {record.params["student.depth"] for record in records} == {1, 2}
    assert len(Ledger.read(tmp_path / "journal.log", "sweep")) == 20


def test_allowed_architectures_that_no_range_describes_are_found(tmp_path: Path) -> None:
    """Students may have many layers or many heads, but not both. No range of a single setting excludes both."""
    space = {"student.depth": [1, 8, 15], "student.heads": [1, 8, 15], "alpha": tune.uniform(0, 1)}
    search = Search(
        trials=40, sampler="random", objectives=OBJECTIVES, constraints={"latency_ms": at_most(15)}, stopping=None
    )
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", search.objectives)
    size = lambda params: {"latency_ms": params["student.depth"] * params["student.heads"]}  # noqa: E731
    planner = Planner(search, SearchSpace(space), ledger, costs=size)
    shapes = set()
    while planned := planner.next_trial():
        shapes.add((planned.params["student.depth"], planned.params["student.heads"]))
    assert shapes == {(1, 1), (1, 8), (8, 1), (1, 15), (15, 1)}


def test_costs_measured_again_may_forbid_an_allowed_architecture(tmp_path: Path) -> None:
    limits = {"latency_ms": at_most(3)}
    run(make_planner(tmp_path, trials=12, constraints=limits, noise=-1))
    records = run(make_planner(tmp_path, trials=20, constraints=limits))
    assert max(record.params["student.depth"] for record in records[:12]) == 4
    assert max(record.params["student.depth"] for record in records[12:]) == 3


def test_constraints_that_no_architecture_satisfies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'latency_ms'\]: at most 0.5 is kept by none of the 4 .* from 1 to 4"):
        make_planner(tmp_path / "a", constraints={"latency_ms": at_most(0.5)})
    with pytest.raises(SpecError, match="none of the 4 architectures has latency_ms at most 1 and speedup at most 1"):
        make_planner(tmp_path / "b", constraints={"latency_ms": at_most(1), "speedup": at_most(1)})


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"trials": None}, "would never end"),
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


def test_a_failed_trial_is_a_row_with_its_reason(tmp_path: Path) -> None:
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
    assert errors[3:] == ["accuracy is nan at epoch 2", "the job ended without reporting accuracy"]
    assert [len(record.history) for record in records] == [0, 1, 1, 2, 1]
    assert all(math.isfinite(value) for record in records for metrics in record.history for value in metrics.values())


def test_early_stopping_stops_jobs_and_compares_equal_architectures_only(tmp_path: Path) -> None:
    last_epochs: dict[int, int] = {}

    def make_job(number: int, params: dict[str, Any]) -> Job:
        def job(worker: Worker) -> Iterator[dict[str, Any]]:
            for epoch in (1, 2, 3):
                last_epochs[number] = epoch
                yield {"accuracy": accuracy(params), "epoch": epoch, "step": epoch}
                if worker.must_stop():
                    return

        return job

    records = run(make_planner(tmp_path, trials=30, stopping={}, sampler="random"), make_job)
    stopped = [record for record in records if record.state == "stopped"]
    assert 8 < len(stopped) < 25
    assert all(len(record.history) == 1 and last_epochs[record.number] == 1 for record in stopped)
    assert all(len(record.history) == 3 for record in records if record.state == "completed")
    for depth in (1, 2, 3, 4):
        same_depth = [record for record in records if record.params["student.depth"] == depth]
        best = max(same_depth, key=lambda record: accuracy(record.params))
        assert best.state == "completed"


def test_early_stopping_stops_the_larger_errors(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stopping": {}, "sampler": "random", "objectives": ("mse", "latency_ms")}
    records = run(make_planner(tmp_path, trials=30, **settings), make_error_job)
    assert sum(record.state == "stopped" for record in records) > 8
    for depth in (1, 2, 3, 4):
        same_depth = [record for record in records if record.params["student.depth"] == depth]
        assert max(same_depth, key=lambda record: accuracy(record.params)).state == "completed"
    front = front_trials(records, ("mse", "latency_ms"))
    assert {record.params["student.depth"] for record in records if record.number in front} == {1, 2, 3, 4}


def test_an_interrupted_trial_is_the_first_of_the_next_session(tmp_path: Path) -> None:
    def interrupting(number: int, params: dict[str, Any]) -> Job:
        def job(worker: Worker) -> Iterator[dict[str, Any]]:
            yield from make_training_job(number, params)(worker) if number < 2 else iter(())
            if number == 2:
                yield {"accuracy": 0.1, "epoch": 1, "step": 10}
                raise KeyboardInterrupt

        return job

    with pytest.raises(KeyboardInterrupt):
        run(make_planner(tmp_path, trials=4), interrupting)
    started: list[int] = []

    def recording(number: int, params: dict[str, Any]) -> Job:
        started.append(number)
        return make_training_job(number, params)

    records = run(make_planner(tmp_path, trials=4), recording)
    assert started == [2, 3]
    assert [(record.state, record.attempts) for record in records] == [
        ("completed", 1),
        ("completed", 1),
        ("completed", 2),
        ("completed", 1),
    ]
    assert [metrics["step"] for metrics in records[2].history] == [10, 20, 30]
    whole = run(make_planner(tmp_path / "whole", trials=4))
    assert [record.params for record in records] == [record.params for record in whole]


def make_pair_planner(folder: Path, **settings: Any) -> Planner:
    """The planner of a search with one architecture, in which early stopping lets one trial in two continue."""
    return make_planner(folder, space={**SPACE, "student.depth": [2]}, stopping={"reduction": 2}, **settings)


def evaluate_next(planner: Planner, accuracy: float, step: int = 10) -> tuple[int, bool]:
    """Start the next trial and evaluate it. Returns its number, and whether the trial continues."""
    planned = planner.next_trial()
    assert planned is not None
    return planned.number, planner.observe(planned.number, {"accuracy": accuracy, "epoch": 1, "step": step})


def test_a_stop_that_was_not_recorded_is_recorded_in_the_next_session(tmp_path: Path) -> None:
    first = make_pair_planner(tmp_path, trials=2)
    better, better_continues = evaluate_next(first, 0.9)
    worse, worse_continues = evaluate_next(first, 0.1)
    assert (better_continues, worse_continues) == (True, False)  # the driver dies here
    changes: list[TrialRecord] = []
    with LocalSlots() as pool:
        run_in_sequence(pool, make_pair_planner(tmp_path, trials=2), make_training_job, changes.append)
    states = {record.number: record.state for record in changes}
    assert states == {better: "completed", worse: "stopped"}
    stopped = next(record for record in changes if record.number == worse and record.state == "stopped")
    assert stopped.ended - stopped.started < 60  # the pause between the sessions does not count


def test_a_trial_that_may_continue_is_not_stopped_by_better_trials_later(tmp_path: Path) -> None:
    first = make_pair_planner(tmp_path, trials=4)
    early, continues = evaluate_next(first, 0.5)
    assert continues
    assert [evaluate_next(first, accuracy)[1] for accuracy in (0.6, 0.7)] == [True, True]
    # A restarted worker group reports the same evaluation again.
    assert first.observe(early, {"accuracy": 0.5, "epoch": 1, "step": 10})
    again = make_pair_planner(tmp_path, trials=4).next_trial()
    assert again is not None
    assert (again.number, again.must_stop) == (early, False)


def test_trials_of_different_length_are_not_compared(tmp_path: Path) -> None:
    """A trial of one epoch ends with a better accuracy than a trial of six epochs has after its first epoch."""
    space = {"student.depth": [2], "training.epochs": [1, 6]}
    search = Search(trials=20, stopping={"reduction": 2}, sampler="random", objectives=("accuracy", "latency_ms"))
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", search.objectives)
    planner = Planner(
        search, SearchSpace(space), ledger, costs=costs, length=lambda params: Length(params["training.epochs"])
    )
    six_epochs_continue = []
    while trial := planner.next_trial():
        epochs = trial.params["training.epochs"]
        accuracy = 0.8 if epochs == 1 else 0.7
        continues = planner.observe(trial.number, {"accuracy": accuracy, "epoch": 1, "step": 10})
        if epochs == 6:
            six_epochs_continue.append(continues)
        planner.finish(trial.number, "completed" if continues else "stopped")
    assert len(six_epochs_continue) > 3
    assert all(six_epochs_continue)  # their accuracies are equal


def test_no_trial_is_compared_before_its_evaluations_say_something(tmp_path: Path) -> None:
    """The rungs are after 1, 2 and 4 evaluations; the first two say nothing about the student."""
    space = {"student.depth": [2]}
    search = Search(trials=6, stopping={"reduction": 2}, sampler="random", objectives=("accuracy", "latency_ms"))
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", search.objectives)
    length = Length(evaluations=8, first_compared=3)
    planner = Planner(search, SearchSpace(space), ledger, costs=costs, length=lambda params: length)
    stopped_after = set()
    while trial := planner.next_trial():
        for evaluation in range(1, 9):
            report = {"accuracy": 0.9 - 0.1 * trial.number, "epoch": evaluation, "step": evaluation}
            if not planner.observe(trial.number, report):
                stopped_after.add(evaluation)
                break
        planner.finish(trial.number, "completed" if evaluation == 8 else "stopped")
    assert stopped_after == {4}


def test_a_missing_slot_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        raise ResourceError("slot 0 was not up after 300 s")

    with pytest.raises(ResourceError, match="not up"):
        run(make_planner(tmp_path), make_job)
    assert [record.state for record in Ledger.read(tmp_path / "journal.log", "sweep").records()] == ["running"]


def test_the_attempts_of_the_slots_count_and_repeated_reports_do_not(tmp_path: Path) -> None:
    planner = make_planner(tmp_path, trials=1)
    planned = planner.next_trial()
    assert planned is not None
    for attempt, host, step in ((1, "h2", 10), (2, "h3", 10), (2, "h3", 20)):
        assert planner.observe(planned.number, {"accuracy": 0.5, "step": step}, attempt, host)
    record = planner.finish(planned.number, "completed")
    assert (record.attempts, record.host, len(record.history)) == (2, "h3", 2)
    assert [record.host for record in Ledger.read(tmp_path / "journal.log", "sweep").records()] == ["h3"]
    assert not planner.observe(planned.number, {"accuracy": 0.9, "step": 30})
    assert planner.finish(planned.number, "failed", "too late") == record


def test_no_trial_starts_after_the_hours(tmp_path: Path) -> None:
    now = [1000.0]
    search = Search(trials=None, hours=1, objectives=OBJECTIVES, stopping=None)
    ledger = Ledger.open(tmp_path / "journal.log", "sweep", search.objectives)
    planner = Planner(search, SearchSpace(SPACE), ledger, costs, clock=lambda: now[0])
    assert planner.next_trial() is not None
    now[0] += 3599
    assert planner.next_trial() is not None
    now[0] += 2
    assert planner.next_trial() is None


def test_hours_include_the_training_before_an_interrupt(tmp_path: Path) -> None:
    search = Search(trials=None, hours=1, objectives=OBJECTIVES, stopping=None)
    journal = tmp_path / "journal.log"
    first = Planner(search, SearchSpace(SPACE), Ledger.open(journal, "sweep", search.objectives), costs)
    for _ in range(2):  # on two slots, both killed after 50 minutes
        planned = first.next_trial()
        assert planned is not None
        first.observe(planned.number, {"accuracy": 0.5, "step": 10, "train_seconds": 2900.0, "eval_seconds": 100.0})
    now = [0.0]
    ledger = Ledger.open(journal, "sweep", search.objectives)
    again = Planner(search, SearchSpace(SPACE), ledger, costs, clock=lambda: now[0])
    assert [again.next_trial() is not None for _ in range(3)] == [True, True, True]
    now[0] = 601.0
    assert again.next_trial() is None


def test_hours_include_every_session_of_a_trial_that_is_interrupted_repeatedly(tmp_path: Path) -> None:
    search = Search(trials=None, hours=5, objectives=OBJECTIVES, stopping=None)
    for session in range(3):  # two hours each
        now = [0.0]
        ledger = Ledger.open(tmp_path / "journal.log", "sweep", search.objectives)
        planner = Planner(search, SearchSpace(SPACE), ledger, costs, clock=lambda now=now: now[0])
        planned = planner.next_trial()
        assert planned is not None
        assert planned.number == 0
        now[0] = 7200.0
        planner.observe(0, {"accuracy": 0.5, "step": 10.0 * session, "train_seconds": 60.0, "eval_seconds": 1.0})
    assert planner.next_trial() is None


# Databases, longer lists, torn journals -------------------------------------------------------------------------------


def ledger_setting(folder: Path, kind: str) -> dict[str, Any]:
    """The setting for this kind of ledger."""
    return {} if kind == "journal" else {"ledger": f"sqlite:///{folder}/ledger.db"}


def test_a_database_gives_the_same_table(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trials": 16, "stopping": {}, "constraints": {"latency_ms": at_most(3)}}
    run(make_planner(tmp_path, **settings | {"trials": 7}, **ledger_setting(tmp_path, "sqlite")))
    in_database = run(make_planner(tmp_path, **settings, **ledger_setting(tmp_path, "sqlite")))
    in_journal = run(make_planner(tmp_path / "journal", **settings))
    assert table(in_database) == table(in_journal)
    assert in_database[3].started == pytest.approx(in_journal[3].started, abs=300)


@pytest.mark.parametrize(
    ("sampler", "kind"), [("tpe", "journal"), ("tpe", "sqlite"), ("nsga2", "sqlite"), ("qmc", "journal")]
)
def test_a_longer_list_continues_in_the_same_ledger(tmp_path: Path, sampler: str, kind: str) -> None:
    short, longer = SPACE | {"student.depth": [1, 2]}, SPACE | {"student.depth": [3, 1, 2]}
    ledger: dict[str, Any] = {"sampler": sampler, **ledger_setting(tmp_path, kind)}
    before = run(make_planner(tmp_path, space=short, trials=4, **ledger))
    run(make_planner(tmp_path, space=longer, trials=8, **ledger))
    records = run(make_planner(tmp_path, space=longer, trials=16, **ledger))
    assert table(records[:4]) == table(before)
    assert {record.params["student.depth"] for record in records[:4]} <= {1, 2}
    assert {record.params["student.depth"] for record in records[4:]} == {1, 2, 3}
    assert {record.state for record in records} == {"completed"}
    other: dict[str, Any] = {"sampler": sampler, **ledger_setting(tmp_path / "at once", kind)}
    run(make_planner(tmp_path / "at once", space=short, trials=4, **other))
    assert table(run(make_planner(tmp_path / "at once", space=longer, trials=16, **other))) == table(records)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_torn_journal_loses_the_last_change_only(tmp_path: Path, part: float) -> None:
    """The process is killed at any line of the journal. The search continues from there and gives the same table."""
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
    """Trials of another sweep; their settings are close to the best ones."""
    params = [
        {"student.depth": 1 + number % 4, "distillation.alpha": 0.55 + number / 300, "training.learning_rate": 1e-4}
        for number in range(count)
    ]
    return [{"params": each, "metrics": {"accuracy": accuracy(each), "latency_ms": 999.0}} for each in params]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "cmaes"])
def test_a_sampler_learns_from_the_trials_of_another_sweep(tmp_path: Path, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "trials": 40}
    if sampler == "cmaes":
        settings |= {"objectives": ("accuracy",)}
    cold = run(make_planner(tmp_path / "cold", **settings))
    warm = run(make_planner(tmp_path / "warm", earlier=earlier_trials(60), **settings))
    assert [record.number for record in warm] == [record.number for record in cold]
    distances = [
        sum(abs(record.params["distillation.alpha"] - 0.6) for record in records) / len(records)
        for records in (cold, warm)
    ]
    assert distances[1] < 0.75 * distances[0]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes"])
def test_two_sessions_after_a_warm_start_give_the_table_of_one_session(tmp_path: Path, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "stopping": {}}
    if sampler == "cmaes":
        settings |= {"objectives": ("accuracy",)}
    whole = run(make_planner(tmp_path / "whole", trials=20, earlier=earlier_trials(), **settings))
    run(make_planner(tmp_path / "parts", trials=9, earlier=earlier_trials(), **settings))
    assert table(run(make_planner(tmp_path / "parts", trials=20, **settings))) == table(whole)


@pytest.mark.parametrize("count", [1, 9, 10])
def test_cmaes_starts_cold_from_too_few_trials_of_another_sweep(tmp_path: Path, count: int) -> None:
    settings: dict[str, Any] = {"sampler": "cmaes", "objectives": ("accuracy",), "trials": 8}
    warm = run(make_planner(tmp_path / "warm", earlier=earlier_trials(count), **settings))
    assert [record.state for record in warm] == ["completed"] * 8


def test_trials_of_another_sweep_stop_no_trial_and_are_no_rows(tmp_path: Path) -> None:
    planner = make_planner(tmp_path, trials=3, earlier=earlier_trials(), stopping={"reduction": 2})
    for _ in range(2):
        planned = planner.next_trial()
        assert planned is not None
        assert planner.observe(planned.number, {"accuracy": 0.01, "epoch": 1, "step": 10})
        planner.finish(planned.number, "failed", "the test ends it")
    assert [record.number for record in planner.records()] == [0, 1]
    assert planner.next_trial() is not None
    assert planner.next_trial() is None


def test_trials_of_another_sweep_that_break_a_constraint_are_ignored(tmp_path: Path) -> None:
    planner = make_planner(tmp_path, earlier=earlier_trials(20), constraints={"latency_ms": at_most(3)})
    assert planner.ignored_trials == 5
    records = run(planner)
    assert max(record.params["student.depth"] for record in records) == 3


def test_costs_of_another_sweep_are_replaced_by_those_measured_here(tmp_path: Path) -> None:
    """The other sweep may have been measured on another machine."""
    slow, fast = earlier_trials(), json.loads(json.dumps(earlier_trials()).replace("999.0", "0.001"))
    assert table(run(make_planner(tmp_path / "a", earlier=slow))) == table(
        run(make_planner(tmp_path / "b", earlier=fast))
    )


def test_a_job_error_keeps_its_message(tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        raise JobError("trial-0: the worker died 3 times.")

    assert run(make_planner(tmp_path, trials=1), make_job)[0].error == "trial-0: the worker died 3 times."
