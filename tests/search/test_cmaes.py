"""CMA-ES draws what Optuna's sampler draws, continues after a restart, and loads no pickle from a ledger."""

import json
import os
import pickle
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import CmaEsSampler
from optuna.storages.journal._base import BaseJournalSnapshot
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from kdray.search import sampling
from kdray.search.cmaes import STEP_NOTE, RepeatingCmaEsSampler
from kdray.search.ledger import Ledger
from kdray.search.ledger_storage import JournalFile
from kdray.search.planner import EARLIER_TRIALS, Planner
from kdray.search.sampling import TrialSampler
from kdray.search.settings import Search
from kdray.search.space import SearchSpace

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "depth": CategoricalDistribution([1, 2, 3]),
    "layers": IntDistribution(1, 12),
    "alpha": FloatDistribution(0.0, 1.0),
    "rate": FloatDistribution(1e-5, 1e-3, log=True),
}
SPACE = {
    "student.depth": [1, 2],
    "distillation.alpha": tune.uniform(0.0, 1.0),
    "training.learning_rate": tune.loguniform(1e-5, 1e-3),
}


def quality(params: dict[str, Any]) -> float:
    return 1.0 - (params["alpha"] - 0.6) ** 2 - 0.01 * params["layers"]


def search_in_parallel(sampler: TrialSampler, trials: int, slots: int, begun: int = 0) -> list[dict[str, Any]]:
    """Draw trials on several slots, which end in an order of their own; every ninth trial fails. Returns the draws."""
    order, running, draws = random.Random(slots), [], []
    for number in range(begun, trials):
        draw = sampler.draw(lambda params: params["alpha"] < 0.95, [{}])
        draws.append({**draw.params, "notes": draw.notes})
        running.append((number, draw.params))
        while len(running) == slots or (running and number == trials - 1):
            ended, params = running.pop(order.randrange(len(running)))
            state = TrialState.FAIL if ended % 9 == 8 else TrialState.COMPLETE
            sampler.report_outcome(ended, state, None if state == TrialState.FAIL else [quality(params)])
    return draws


def make_sampler(earlier: int = 0) -> TrialSampler:
    sampler = TrialSampler(sampler="cmaes", seed=3, objectives=("accuracy",), distributions=DISTRIBUTIONS)
    draw = random.Random(0)
    for _ in range(earlier):
        params = {"depth": 1, "layers": draw.randint(1, 12), "alpha": draw.random(), "rate": 10 ** draw.uniform(-5, -3)}
        sampler.add_earlier_trial(params, [quality(params)])
    return sampler


class PicklingCmaEsSampler(CmaEsSampler):
    """Optuna's sampler, which loads its optimizer from the pickle in a trial."""


def params_of(draws: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in draw.items() if name != "notes"} for draw in draws]


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("earlier", [0, 12])
def test_the_draws_are_those_of_optuna(monkeypatch: pytest.MonkeyPatch, slots: int, earlier: int) -> None:
    ours = search_in_parallel(make_sampler(earlier), 60, slots)
    monkeypatch.setattr(sampling, "RepeatingCmaEsSampler", PicklingCmaEsSampler)
    theirs = search_in_parallel(make_sampler(earlier), 60, slots)
    assert params_of(ours) == params_of(theirs)
    assert any("cma:optimizer:0" in draw["notes"] for draw in theirs)
    assert not any(name.startswith("cma:optimizer") for draw in ours for name in draw["notes"])
    assert sum(STEP_NOTE in draw["notes"] for draw in ours) > 4


def open_planner(folder: Path, trials: int, ledger: str | None = None, earlier: int = 0) -> Planner:
    search = Search(trials=trials, sampler="cmaes", objectives=("accuracy",), stopping=None, ledger=ledger)
    opened = Ledger.open(search.ledger or folder / "journal.log", "sweep", search.objectives)
    if earlier and opened.attr(EARLIER_TRIALS) is None:
        draw = random.Random(0)
        numbers = [(draw.random(), 10 ** draw.uniform(-5, -3)) for _ in range(earlier)]
        trials_before = [
            {"params": dict(zip(SPACE, (1, alpha, rate), strict=True)), "metrics": {"accuracy": alpha}}
            for alpha, rate in numbers
        ]
        opened.set_attr(EARLIER_TRIALS, {"trials": trials_before})
    return Planner(search, SearchSpace(SPACE), opened, costs=lambda params: {})


def run(planner: Planner, slots: int = 1, killed_after: int | None = None) -> list[dict[str, Any]]:
    """Run the trials on several slots, which end in an order of their own. Returns the settings of all trials."""
    running: list[Any] = []
    draws = 0
    while draws != killed_after:
        if len(running) < slots and (planned := planner.next_trial()) is not None:
            running.append(planned)
            draws += 1
            continue
        if not running:
            break
        ended = running.pop((7 * draws) % len(running))
        alpha = ended.params["distillation.alpha"]
        planner.observe(ended.number, {"accuracy": 1 - (alpha - 0.6) ** 2, "step": 1})
        planner.finish(ended.number, "completed")
    return [record.params for record in planner.records()]


@pytest.mark.parametrize("earlier", [0, 12])
def test_an_interrupted_search_continues_as_if_it_was_not(tmp_path: Path, earlier: int) -> None:
    whole = run(open_planner(tmp_path / "whole", 40, earlier=earlier))
    for trials in (3, 11, 12, 25, 40):
        parts = run(open_planner(tmp_path / "parts", trials, earlier=earlier))
    assert parts == whole


def test_a_search_on_several_slots_that_was_killed_continues_with_the_same_steps(tmp_path: Path) -> None:
    """The trials that ran are run first; the optimizer has learnt what it had learnt before."""
    run(open_planner(tmp_path, 60), slots=3, killed_after=30)
    before = open_planner(tmp_path, 60)
    learnt = [before.ledger.sampler_notes(number).get(STEP_NOTE) for number in range(30)]
    params = run(before, slots=3)
    assert len(params) == 60
    assert [before.ledger.sampler_notes(number).get(STEP_NOTE) for number in range(30)] == learnt
    steps = [note for number in range(60) if (note := before.ledger.sampler_notes(number).get(STEP_NOTE))]
    assert max(len(note) for note in steps) == min(len(note) for note in steps) > 3
    late = [abs(each["distillation.alpha"] - 0.6) for each in params[45:]]
    assert sum(late) / len(late) < 0.2


def test_a_ledger_with_pickles_of_an_earlier_version_continues_with_the_same_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial at a time, so each generation has learnt from the complete one before."""
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "RepeatingCmaEsSampler", PicklingCmaEsSampler)
        patch.setitem(sampling.NOTES_OF_SAMPLERS, "cmaes", ("cma:",))
        whole = run(open_planner(tmp_path / "whole", 40))
        run(open_planner(tmp_path / "parts", 23))
    assert "cma:optimizer:0" in (tmp_path / "parts" / "journal.log").read_text()
    run(open_planner(tmp_path / "parts", 31))
    assert run(open_planner(tmp_path / "parts", 40)) == whole


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self._marker),)


def plant_in_journal(folder: Path, payload: str) -> None:
    """Put the payload wherever Optuna stores its optimizer: into each trial and into the study."""
    journal = folder / "journal.log"
    storage = optuna.storages.JournalStorage(JournalFile(journal))
    study_id = storage.get_study_id_from_name("sweep")
    for prefix in ("cma:", "sepcma:", "cmawm:"):
        storage.set_study_system_attr(study_id, f"{prefix}optimizer:0", payload)
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        if "params" in record:
            record["system_attrs"] = {**record.get("system_attrs", {}), "cma:optimizer:0": payload}
    journal.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def plant_in_database(file: Path, payload: str) -> None:
    with sqlite3.connect(file) as database:
        trials = [number for (number,) in database.execute("SELECT trial_id FROM trials")]
        database.executemany(
            "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, 'cma:optimizer:0', ?)",
            [(number, f'"{payload}"') for number in trials],
        )


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
@pytest.mark.parametrize("in_study_note", [False, True])
def test_a_hostile_ledger_runs_no_code(tmp_path: Path, kind: str, in_study_note: bool) -> None:
    ledger = f"sqlite:///{tmp_path}/ledger.db" if kind == "sqlite" else None
    run(open_planner(tmp_path, 12, ledger))
    payload = pickle.dumps(Bomb(tmp_path / "marker")).hex()
    if kind == "sqlite":
        plant_in_database(tmp_path / "ledger.db", payload)
    else:
        plant_in_journal(tmp_path, payload)
    planner = open_planner(tmp_path, 20, ledger)
    if in_study_note:
        notes = planner.ledger.sampler_notes(11)
        notes[sampling.STUDY_NOTE] = f'{{"cma:optimizer:0": "{payload}"}}'
    assert any("cma:optimizer:0" in planner.ledger.sampler_notes(number) for number in range(12))
    assert len(run(planner)) == 20
    assert not (tmp_path / "marker").exists()


def test_the_payload_of_the_tests_is_dangerous(tmp_path: Path) -> None:
    """With Optuna's own sampler the same ledger makes the file."""
    run(open_planner(tmp_path, 12))
    plant_in_journal(tmp_path, pickle.dumps(Bomb(tmp_path / "marker")).hex())
    storage = optuna.storages.JournalStorage(JournalFile(tmp_path / "journal.log"))
    study = optuna.load_study(study_name="sweep", storage=storage, sampler=CmaEsSampler(seed=0))
    study.ask(study.trials[0].distributions)
    assert (tmp_path / "marker").exists()


NOTES: dict[str, Any] = {
    "text": "x",
    "numbers that are none": [None, "1"],
    "no trials": [-1],
    "trials that do not exist": [-1, 10**9, 10**9 + 1, 10**9 + 2, 10**9 + 3, 10**9 + 4, 10**9 + 5],
    "a step before itself": [11, 1, 2, 3, 4, 5, 6],
    "a later step": [10**9, 1, 2, 3, 4, 5, 6],
    "one trial many times": [-1, 1, 1, 1, 1, 1, 1],
    "an object": {"a": 1},
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
@pytest.mark.parametrize("generation", ["x", 10**9, None, [1]], ids=str)
def test_notes_that_kdray_never_writes_stop_no_search(tmp_path: Path, note: Any, generation: Any) -> None:
    run(open_planner(tmp_path, 12))
    planner = open_planner(tmp_path, 15)
    sampler = planner._sampler
    for trial in sampler._study.get_trials(deepcopy=False):
        trial.system_attrs.update({STEP_NOTE: note, "cma:generation": generation})
    assert len(run(planner)) == 15


def test_the_journal_has_no_snapshots() -> None:
    """Optuna pickles the snapshots of a journal; a journal file has none."""
    assert not issubclass(JournalFile, BaseJournalSnapshot)


def test_a_step_of_other_trials_is_left_out() -> None:
    """A constraint may exclude a trial that the optimizer learnt from; the search continues from the step before."""
    sampler = RepeatingCmaEsSampler(seed=0)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    ranges = {name: each for name, each in DISTRIBUTIONS.items() if name != "depth"}
    for _ in range(40):
        trial = study.ask(ranges)
        study.tell(trial, quality(trial.params))
    steps = [trial for trial in study.trials if STEP_NOTE in trial.system_attrs]
    holders = {trial.number for trial in steps}
    lost = next(number for number in steps[2].system_attrs[STEP_NOTE][1:] if number not in holders)
    remaining: list[FrozenTrial] = [trial for trial in study.trials if trial.number != lost]
    sampler._direction, sampler._space = study.direction, ranges
    optimizer = sampler._restore_optimizer(remaining)
    assert optimizer is not None
    assert (optimizer.generation, sampler._step_before) == (2, steps[1].number)
