"""Warm starts: the trials of another sweep that the sampler gets; and one material for all trials of a sweep."""

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
"""The fingerprints of the data, the teacher and the checkpoints."""


def open_sweep(sweep: Sweep, storage: Path) -> tuple[SweepPaths, Ledger]:
    paths = SweepPaths(storage, sweep.name)
    paths.root.mkdir(parents=True, exist_ok=True)
    return paths, claim_folder(sweep.identity(), paths, False)


@pytest.fixture
def first(make_sweep: MakeSweep, tmp_path: Path) -> Path:
    """The folder of a sweep with five trials: two are completed, one is stopped, one has failed, one is running."""
    sweep = make_sweep(name="first")
    paths, ledger = open_sweep(sweep, tmp_path)
    check_unchanged(TrialMaterial.of(sweep, *CONTENT), ledger, paths)
    for number in range(5):
        params = {"student.depth": 1 + number % 2, "training.learning_rate": 1e-3}
        ledger.add(params, distributions(sweep.space), {"latency_ms": 9.0}, {})
        if number < 4:
            ledger.add_evaluation(number, {"accuracy": 0.5 + number / 10, "epoch": 1, "step": 10})
    for number, state in ((0, "completed"), (1, "completed"), (2, "stopped"), (3, "failed")):
        ledger.finish(number, state)  # type: ignore[arg-type]
    return paths.root


def start(sweep: Sweep, storage: Path, content: tuple[Any, ...] = CONTENT) -> tuple[list[str], list[Any]]:
    """Start a sweep up to its warm start. Returns the notes for the user, and the trials that the sampler gets."""
    paths, ledger = open_sweep(sweep, storage)
    material = TrialMaterial.of(sweep, *content)
    check_unchanged(material, ledger, paths)
    notes = [warm_start(sweep, material, ledger, paths)] if sweep.search.warm_start else []
    return notes, (ledger.attr(EARLIER_TRIALS) or {"trials": []})["trials"]


def warm_search(first: Path, **settings: Any) -> Search:
    return Search(**({"trials": 3, "stopping": None, "warm_start": str(first)} | settings))


def test_without_a_warm_start_there_is_no_note(make_sweep: MakeSweep, tmp_path: Path) -> None:
    assert start(make_sweep(), tmp_path) == ([], [])


def test_completed_trials_are_used(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    notes, trials = start(make_sweep(search=warm_search(first)), tmp_path)
    assert notes == [f"The sampler knows 2 of the 5 trials of {first}; left out: 1 (stopped), 1 (failed), 1 (running)."]
    assert [trial["params"] for trial in trials] == [
        {"student.depth": 1, "training.learning_rate": 1e-3},
        {"student.depth": 2, "training.learning_rate": 1e-3},
    ]
    assert [trial["metrics"]["accuracy"] for trial in trials] == [0.5, 0.6]


def test_a_setting_may_be_searched_in_one_and_fixed_in_the_other(
    make_sweep: MakeSweep, first: Path, tmp_path: Path
) -> None:
    """What counts is the trial: this sweep could have given it every setting that it had."""
    space = {"training.learning_rate": tune.uniform(1e-4, 1e-2), "training.weight_decay": [0.01, 0.1]}
    notes, trials = start(
        make_sweep(search=warm_search(first), space=space).with_changes({"student.depth": 2}), tmp_path
    )
    assert "1 of the 5" in notes[0]
    assert "1 (student.depth is 1, here 2)" in notes[0]
    assert [trial["params"] for trial in trials] == [{"training.learning_rate": 1e-3, "training.weight_decay": 0.01}]


def test_a_setting_that_is_not_written_has_its_default(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    """Full trust is not written; the trials with it are known to a sweep that searches the trust, and the reverse."""
    space = {"student.depth": [1, 2], "training.learning_rate": [1e-3], "distillation.trust": tune.uniform(0, 1)}
    second = make_sweep(name="second", search=warm_search(first), space=space)
    _, trials = start(second, tmp_path)
    assert [trial["params"]["distillation.trust"] for trial in trials] == [1.0, 1.0]
    paths, ledger = open_sweep(second, tmp_path)
    for number, trust in enumerate((1.0, 0.3)):
        params = {"student.depth": 1, "training.learning_rate": 1e-3, "distillation.trust": trust}
        ledger.add(params, distributions(second.space), {"latency_ms": 9.0}, {})
        ledger.add_evaluation(number, {"accuracy": 0.5, "epoch": 1, "step": 10})
        ledger.finish(number, "completed")
    notes, trials = start(make_sweep(name="third", search=warm_search(paths.root)), tmp_path)
    assert "1 (distillation.trust is 0.3, here 1.0)" in notes[0]
    assert [trial["params"] for trial in trials] == [{"student.depth": 1, "training.learning_rate": 1e-3}]


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
def test_a_sweep_without_comparable_trials_is_refused_with_reasons(
    make_sweep: MakeSweep, first: Path, tmp_path: Path, fields: dict[str, Any], part: str
) -> None:
    sweep = make_sweep(search=warm_search(first), **fields)
    if set(sweep.space) == {"student.depth"}:
        sweep = sweep.with_changes({"training.learning_rate": 5e-3})
    with pytest.raises(StorageError, match="none of its trials can be used") as caught:
        start(sweep, tmp_path)
    assert part in str(caught.value)
    assert f"search.warm_start {first}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_trials_without_an_objective_are_left_out(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"2 \(without macro_f1\)"):
        start(make_sweep(search=warm_search(first, objectives=("macro_f1", "latency_ms"))), tmp_path)
    notes, _ = start(
        make_sweep(name="costs", search=warm_search(first, objectives=("accuracy", "parameters"))), tmp_path
    )
    assert "knows 2 of the 5" in notes[0]  # every sweep measures costs itself


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
    with pytest.raises(StorageError, match="its trials are not comparable") as caught:
        start(make_sweep(search=warm_search(first)).with_changes(changes), tmp_path, content)
    assert part in str(caught.value)


def test_the_trials_stay_when_the_other_sweep_is_deleted(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    sweep = make_sweep(search=warm_search(first))
    before = start(sweep, tmp_path)
    shutil.rmtree(first)
    assert start(sweep, tmp_path) == before


@pytest.mark.parametrize("kind", ["nowhere", "no sweep", "damaged", "itself", "no trials"])
def test_a_bad_folder_is_refused(make_sweep: MakeSweep, first: Path, tmp_path: Path, kind: str) -> None:
    folder = {"nowhere": tmp_path / "nowhere", "no sweep": tmp_path, "itself": tmp_path / "tiny"}.get(kind, first)
    if kind == "damaged":
        journal = SweepPaths(tmp_path, "first").journal
        journal.write_text(journal.read_text().replace("\n", "\nrubbish\n", 1))
    if kind == "no trials":
        shutil.rmtree(first)
        empty = make_sweep(name="first")
        paths, ledger = open_sweep(empty, tmp_path)
        check_unchanged(TrialMaterial.of(empty, *CONTENT), ledger, paths)
    part = {
        "nowhere": "there is no sweep here",
        "no sweep": "there is no sweep here",
        "damaged": "line 2 is damaged",
        "itself": "is the sweep's own folder",
        "no trials": "it has no trials",
    }[kind]
    with pytest.raises(StorageError) as caught:
        start(make_sweep(search=warm_search(folder)), tmp_path)
    assert str(caught.value).startswith(f"search.warm_start {folder}: ")
    assert part in str(caught.value)


def test_data_that_changed_since_the_first_trial_are_refused(
    make_sweep: MakeSweep, first: Path, tmp_path: Path
) -> None:
    """The settings are the same: only the content differs."""
    with pytest.raises(StorageError) as caught:
        start(make_sweep(name="first"), tmp_path, ("data-2", "teacher-1", {}))
    assert "what its trials learnt from has changed: data: was data-1, now data-2" in str(caught.value)
    assert start(make_sweep(name="first"), tmp_path) == ([], [])


def test_data_that_changed_before_the_first_trial_are_accepted(make_sweep: MakeSweep, tmp_path: Path) -> None:
    for content in (CONTENT, ("data-2", "teacher-2", {})):
        assert start(make_sweep(), tmp_path, content) == ([], [])


def test_an_additional_checkpoint_is_no_change(make_sweep: MakeSweep, first: Path, tmp_path: Path) -> None:
    content = (*CONTENT[:2], {**CONTENT[2], "new": "new-1"})
    assert start(make_sweep(name="first"), tmp_path, content) == ([], [])
    assert start(make_sweep(name="first"), tmp_path, CONTENT) == ([], [])


def test_a_sweep_continues_with_settings_that_change_no_result(
    make_sweep: MakeSweep, teacher: Pretrained, first: Path, tmp_path: Path
) -> None:
    tuned = Teacher(model=str(teacher.folder), training=Training())
    sweep = make_sweep(name="tuned", teacher=tuned)
    paths, ledger = open_sweep(sweep, tmp_path)
    check_unchanged(TrialMaterial.of(sweep, *CONTENT), ledger, paths)
    ledger.add({"student.depth": 1, "training.learning_rate": 1e-3}, distributions(sweep.space), {}, {})
    for prefix in ("training", "teacher.training"):
        for name, value in (("checkpoint_minutes", 1.0), ("checkpoint_evaluations", 2)):
            changed = sweep.with_changes({f"{prefix}.{name}": value})
            assert start(changed, tmp_path) == ([], [])


def test_a_ledger_of_version_01_may_record_settings_that_change_no_result(
    make_sweep: MakeSweep, teacher: Pretrained, tmp_path: Path
) -> None:
    sweep = make_sweep(name="tuned", teacher=Teacher(model=str(teacher.folder), training=Training()))
    _, ledger = open_sweep(sweep, tmp_path)
    ledger.add({"student.depth": 1, "training.learning_rate": 1e-3}, distributions(sweep.space), {}, {})
    recorded = dict(TrialMaterial.of(sweep, *CONTENT).values)
    recorded["teacher.training"] = {**recorded["teacher.training"], "checkpoint_evaluations": 0}
    ledger.set_attr(MATERIAL, recorded)
    assert start(sweep, tmp_path) == ([], [])
