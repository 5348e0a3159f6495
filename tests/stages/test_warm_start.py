"""Which trials of another sweep the sampler is told of, and that this sweep's own all learnt from the same."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from kdray.errors import StorageError
from kdray.models.pretrained import Pretrained
from kdray.search.claim import claim_folder
from kdray.search.ledger import Ledger
from kdray.search.planner import EARLIER_TRIALS
from kdray.search.settings import Search
from kdray.search.space import distributions
from kdray.stages.warm_start import MATERIAL, TrialMaterial, check_unchanged, warm_start
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training

MakeSweep = Callable[..., Sweep]
CONTENT = ("data-1", "teacher-1", {"small": "small-1", "old": "old-1"})


def opened(sweep: Sweep, storage: Path) -> tuple[SweepPaths, Ledger]:
    paths = SweepPaths(storage, sweep.name)
    paths.root.mkdir(parents=True, exist_ok=True)
    return paths, claim_folder(sweep.identity(), paths, False)


@pytest.fixture
def first(make_sweep: MakeSweep, tmp_path: Path) -> Path:
    """The folder of a sweep with five trials: depth 1 and 2 completed, one stopped, one failed, one running."""
    sweep = make_sweep(name="first")
    paths, ledger = opened(sweep, tmp_path)
    check_unchanged(TrialMaterial.of(sweep, *CONTENT), ledger, paths)
    for number in range(5):
        params = {"student.depth": 1 + number % 2, "training.learning_rate": 1e-3}
        ledger.add(params, distributions(sweep.space), {"latency_ms": 9.0}, {})
        if number < 4:
            ledger.add_evaluation(number, {"accuracy": 0.5 + number / 10, "epoch": 1, "step": 10})
    for number, state in ((0, "completed"), (1, "completed"), (2, "stopped"), (3, "failed")):
        ledger.finish(number, state)  # type: ignore[arg-type]
    return paths.root


def started(sweep: Sweep, storage: Path, content: tuple[Any, ...] = CONTENT) -> tuple[list[str], list[Any]]:
    """What is said of a sweep's warm start, and the trials that it takes."""
    paths, ledger = opened(sweep, storage)
    material = TrialMaterial.of(sweep, *content)
    check_unchanged(material, ledger, paths)
    notes = [warm_start(sweep, material, ledger, paths)] if sweep.search.warm_start else []
    return notes, (ledger.attr(EARLIER_TRIALS) or {"trials": []})["trials"]


def warm(first: Path, **settings: Any) -> Search:
    return Search(**({"trials": 3, "stopping": None, "warm_start": str(first)} | settings))


def test_without_a_warm_start_nothing_is_said(make_sweep: MakeSweep, tmp_path: Path) -> None:
    assert started(make_sweep(), tmp_path) == ([], [])


def test_completed_trials_are_taken(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    notes, trials = started(make_sweep(search=warm(first)), tmp_path)
    assert notes == [f"The sampler knows 2 of the 5 trials of {first}; left out: 1 (stopped), 1 (failed), 1 (running)."]
    assert [trial["params"] for trial in trials] == [
        {"student.depth": 1, "training.learning_rate": 1e-3},
        {"student.depth": 2, "training.learning_rate": 1e-3},
    ]
    assert [trial["metrics"]["accuracy"] for trial in trials] == [0.5, 0.6]


def test_a_setting_may_be_searched_in_one_and_fixed_in_the_other(
    make_sweep: MakeSweep, first: Path, tmp_path: Path
) -> None:
    """What counts is the trial itself: every setting that it had is one that this sweep could give it."""
    space = {"training.learning_rate": tune.uniform(1e-4, 1e-2), "training.weight_decay": [0.01, 0.1]}
    notes, trials = started(make_sweep(search=warm(first), space=space).with_changes({"student.depth": 2}), tmp_path)
    assert "1 of the 5" in notes[0]
    assert "1 (student.depth is 1, here 2)" in notes[0]
    assert [trial["params"] for trial in trials] == [{"training.learning_rate": 1e-3, "training.weight_decay": 0.01}]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"space": {"student.depth": [3, 4], "training.learning_rate": [1e-3]}},
            "1 (student.depth 1 is not in the space)",
        ),
        ({"training": Training(epochs=3, precision="fp32")}, "2 (training.epochs is 2, here 3)"),
        ({"space": {"student.depth": [1, 2]}}, "2 (training.learning_rate is 0.001, here 0.005)"),
    ],
)
def test_when_none_is_comparable_it_is_refused_and_why(
    make_sweep: MakeSweep, first: Path, tmp_path: Path, fields: dict[str, Any], part: str
) -> None:
    sweep = make_sweep(search=warm(first), **fields)
    if set(sweep.space) == {"student.depth"}:
        sweep = sweep.with_changes({"training.learning_rate": 5e-3})
    with pytest.raises(StorageError, match="none of its trials can be taken") as caught:
        started(sweep, tmp_path)
    assert part in str(caught.value)
    assert f"search.warm_start {first}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_objective_that_was_not_measured(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"2 \(without macro_f1\)"):
        started(make_sweep(search=warm(first, objectives=("macro_f1", "latency_ms"))), tmp_path)
    notes, _ = started(make_sweep(name="costs", search=warm(first, objectives=("accuracy", "parameters"))), tmp_path)
    assert "knows 2 of the 5" in notes[0]  # costs are measured by every sweep itself


@pytest.mark.parametrize(
    ("changes", "content", "part"),
    [
        ({"task.max_length": 12}, CONTENT, "task.max_length: was 16, now 12"),
        ({"seed": 7}, CONTENT, "seed: was 0, now 7"),
        ({"transfer.precision": "bf16"}, CONTENT, "transfer.precision: was fp32, now bf16"),
        ({}, ("data-2", "teacher-1", {}), "data: was data-1, now data-2"),
        ({}, ("data-1", "teacher-2", {}), "teacher: was teacher-1, now teacher-2"),
        (
            {},
            (*CONTENT[:2], {"new": "new-1", "small": "small-2"}),
            "student.checkpoint.small: was small-1, now small-2",
        ),
    ],
)
def test_another_teacher_task_or_data_is_refused(
    make_sweep: MakeSweep, first: Path, tmp_path: Path, changes: dict[str, Any], content: tuple[Any, ...], part: str
) -> None:
    with pytest.raises(StorageError, match="its trials measured something else") as caught:
        started(make_sweep(search=warm(first)).with_changes(changes), tmp_path, content)
    assert part in str(caught.value)


def test_what_was_taken_once_stays(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    sweep = make_sweep(search=warm(first))
    before = started(sweep, tmp_path)
    shutil.rmtree(first)
    assert started(sweep, tmp_path) == before


@pytest.mark.parametrize("kind", ["nowhere", "no sweep", "damaged", "itself", "no trials"])
def test_a_bad_folder_is_refused(make_sweep: MakeSweep, first: Path, tmp_path: Path, kind: str) -> None:
    folder = {"nowhere": tmp_path / "nowhere", "no sweep": tmp_path, "itself": tmp_path / "tiny"}.get(kind, first)
    if kind == "damaged":
        journal = SweepPaths(tmp_path, "first").journal
        journal.write_text(journal.read_text().replace("\n", "\nrubbish\n", 1))
    if kind == "no trials":
        shutil.rmtree(first)
        empty = make_sweep(name="first")
        paths, ledger = opened(empty, tmp_path)
        check_unchanged(TrialMaterial.of(empty, *CONTENT), ledger, paths)
    part = {
        "nowhere": "there is no sweep here",
        "no sweep": "there is no sweep here",
        "damaged": "line 2 is damaged",
        "itself": "is the sweep's own folder",
        "no trials": "it has none",
    }[kind]
    with pytest.raises(StorageError) as caught:
        started(make_sweep(search=warm(folder)), tmp_path)
    assert str(caught.value).startswith(f"search.warm_start {folder}: ")
    assert part in str(caught.value)


def test_data_that_changed_since_the_first_trial_are_refused(
    make_sweep: MakeSweep, first: Path, tmp_path: Path
) -> None:
    """Under the same names: no setting tells."""
    with pytest.raises(StorageError) as caught:
        started(make_sweep(name="first"), tmp_path, ("data-2", "teacher-1", {}))
    assert "what its trials learnt from has changed since: data: was data-1, now data-2" in str(caught.value)
    assert started(make_sweep(name="first"), tmp_path) == ([], [])


def test_data_that_changed_before_the_first_trial_are_taken(make_sweep: MakeSweep, tmp_path: Path) -> None:
    for content in (CONTENT, ("data-2", "teacher-2", {})):
        assert started(make_sweep(), tmp_path, content) == ([], [])


def test_a_checkpoint_more_is_no_change(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    now = (*CONTENT[:2], {**CONTENT[2], "new": "new-1"})
    assert started(make_sweep(name="first"), tmp_path, now) == ([], [])
    assert started(make_sweep(name="first"), tmp_path, CONTENT) == ([], [])


def test_a_begun_sweep_goes_on_with_settings_that_change_no_number(
    make_sweep: MakeSweep, teacher: Pretrained, first: Path, tmp_path: Path
) -> None:
    tuned = Teacher(model=str(teacher.folder), training=Training())
    sweep = make_sweep(name="tuned", teacher=tuned)
    paths, ledger = opened(sweep, tmp_path)
    check_unchanged(TrialMaterial.of(sweep, *CONTENT), ledger, paths)
    ledger.add({"student.depth": 1, "training.learning_rate": 1e-3}, distributions(sweep.space), {}, {})
    for prefix in ("training", "teacher.training"):
        for name, value in (("checkpoint_minutes", 1.0), ("checkpoint_evaluations", 2)):
            changed = sweep.with_changes({f"{prefix}.{name}": value})
            assert started(changed, tmp_path) == ([], [])


def test_a_ledger_of_version_01_noted_settings_that_change_no_number(
    make_sweep: MakeSweep, teacher: Pretrained, tmp_path: Path
) -> None:
    sweep = make_sweep(name="tuned", teacher=Teacher(model=str(teacher.folder), training=Training()))
    _, ledger = opened(sweep, tmp_path)
    ledger.add({"student.depth": 1, "training.learning_rate": 1e-3}, distributions(sweep.space), {}, {})
    noted = dict(TrialMaterial.of(sweep, *CONTENT).values)
    noted["teacher.training"] = {**noted["teacher.training"], "checkpoint_evaluations": 0}
    ledger.set_attr(MATERIAL, noted)
    assert started(sweep, tmp_path) == ([], [])
