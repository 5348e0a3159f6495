"""`kdray choose`: another rule for a finished sweep, without training anything twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner, Result

from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.cli.app import app
from kdray.run import RunOptions, run
from kdray.search.ledger import Ledger
from kdray.slots.pool import SlotSettings
from kdray.stages.choosing_again import change_rule, read_finished_sweep
from kdray.stages.reading import read_figures
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking, default_uri
from kdray.tracking.spool import TrackingTarget

MakeSweep = Callable[..., Sweep]


@pytest.fixture(scope="module")
def original(make_sweep: MakeSweep) -> Sweep:
    """The sweep that was run first."""
    settings = {"slots": SlotSettings(cpus=1), "confirm": Confirm(candidates=1, seeds=1), "tracking": Tracking()}
    return make_sweep(**settings, choose=Choose(retention=0.1))


@pytest.fixture(scope="module")
def finished(original: Sweep, tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The paths of the finished sweep. Read it only."""
    paths = SweepPaths(tmp_path_factory.mktemp("finished"), "tiny")
    run(original, paths, RunOptions(local=True))
    return paths


@pytest.fixture
def paths(finished: SweepPaths, tmp_path: Path) -> SweepPaths:
    """The paths of a copy of the finished sweep, which a test may change."""
    return SweepPaths(shutil.copytree(finished.storage, tmp_path / "storage"), "tiny")


def choose(paths: SweepPaths, *arguments: str) -> Result:
    """Run `kdray choose` on this sweep."""
    command = ["choose", str(paths.root), "--local", "--set", "slots.cpus=1", *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "250"})


def modification_times(folder: Path) -> dict[str, int]:
    """The modification time of every file below the folder, in nanoseconds."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_sweep_is_read_from_its_folder(original: Sweep, finished: SweepPaths) -> None:
    again = read_finished_sweep(finished, finished)
    assert again.identity() == original.identity()
    assert (again.choose, again.confirm, again.search.trials) == (original.choose, original.confirm, 3)
    assert again.as_params()["space.student.depth"] == original.as_params()["space.student.depth"]


def test_another_rule_chooses_without_training_a_trial_again(paths: SweepPaths) -> None:
    trials, confirmation = modification_times(paths.root / "trials"), modification_times(paths.root / "confirmation")
    done = choose(paths, "--at-most", "latency_ms=1e9", "--best", "quality")
    assert done.exit_code == 0, done.output
    figures = read_figures(paths)
    assert figures.verdict is not None
    assert figures.verdict.satisfied
    assert "at most" in figures.sentences[0]
    assert modification_times(paths.root / "trials") == trials
    after = modification_times(paths.root / "confirmation")
    assert all(after[name] == time for name, time in confirmation.items() if name != "reruns.json")
    assert read_finished_sweep(paths, paths).choose == Choose(best="accuracy", at_most={"latency_ms": 1e9})


def test_a_rule_that_no_student_satisfies_ends_with_3_and_leaves_no_student(paths: SweepPaths) -> None:
    done = choose(paths, "--retention", "7", "--set", "choose.otherwise=none")
    assert done.exit_code == 3
    assert "No student keeps at least 700% of the teacher's quality. Closest to the rule: trial" in done.output
    assert not paths.chosen.exists()
    client = MlflowClient(f"sqlite:///{paths.tracking_database}")
    (run,) = client.search_runs(["1"], "tags.`kdray.chosen` = 'none'")
    assert run.data.tags["kdray.choice"].startswith("No student keeps at least 700% of the teacher's quality.")
    assert choose(paths, "--retention", "8").exit_code == 3  # `otherwise` keeps its value
    assert choose(paths, "--retention", "0.1").exit_code == 0
    assert (paths.chosen / "model.safetensors").exists()


def test_more_seeds_train_only_what_is_missing(paths: SweepPaths) -> None:
    before = modification_times(paths.root / "confirmation")
    done = choose(paths, "--set", "confirm.seeds=2")
    assert done.exit_code == 0, done.output
    after = modification_times(paths.root / "confirmation")
    assert all(after[name] == time for name, time in before.items() if name != "reruns.json")
    assert len({name.split("/")[0] for name in after}) > len({name.split("/")[0] for name in before})


def test_a_student_whose_weights_were_not_kept_is_trained_again_or_not_chosen(paths: SweepPaths) -> None:
    before = json.loads(paths.choice.read_text())
    for student in paths.root.glob("trials/*/student"):
        shutil.rmtree(student)
    done = choose(paths, "--set", "confirm.candidates=0")
    assert done.exit_code == 2
    assert "its weights were not kept. Train it again: --set confirm.candidates=1" in " ".join(done.stderr.split())
    assert json.loads(paths.choice.read_text()) == before
    assert choose(paths, "--set", "confirm.candidates=1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--smallest", "latncy_ms"],
            "Choose.smallest: latncy_ms is not a metric to minimize; did you mean 'latency_ms'?",
        ),
        (["--at-most", "latency_ms"], "--at-most latency_ms: write it as name=value, such as --at-most latency_ms=5"),
        (["--set", "training.epochs=9"], "the name 'tiny' is used by a sweep with other settings"),
        (["--best", "acuracy"], "did you mean 'accuracy'"),
    ],
)
def test_a_refused_rule_prints_one_sentence_and_changes_nothing(
    paths: SweepPaths, arguments: list[str], part: str
) -> None:
    before = json.loads(paths.choice.read_text())
    done = choose(paths, *arguments)
    assert done.exit_code == 2
    assert part in " ".join(done.stderr.split())
    assert json.loads(paths.choice.read_text()) == before


def test_a_store_that_another_user_chose_must_be_given(paths: SweepPaths) -> None:
    target = TrackingTarget.read(paths)
    assert target is not None
    tracking = target.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})
    TrackingTarget(tracking, target.ending).write(paths)
    done = choose(paths, "--retention", "0.2")
    assert done.exit_code == 2
    assert "which you have not given to kdray on this machine" in " ".join(done.stderr.split())
    assert choose(paths, "--retention", "0.2", "--tracking-uri", default_uri(paths)).exit_code == 0


def test_a_sweep_that_has_not_ended_is_refused(paths: SweepPaths, tmp_path: Path) -> None:
    done = choose(SweepPaths(tmp_path, "nothing"))
    assert done.exit_code == 2
    assert "there is no sweep here" in done.stderr
    ledger = Ledger.open(
        paths.journal, "tiny", ("accuracy", "latency_ms"), json.loads(paths.settings.read_text())["id"]
    )
    ledger.add({}, {}, {}, {})
    done = choose(paths)
    assert done.exit_code == 2
    assert "1 of its trials have not ended. Let the sweep end first" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"retention": 0.8}, {"smallest": "size_mb", "retention": 0.8, "otherwise": "none"}),
        ({"knee": True}, {"knee": True, "otherwise": "none"}),
        ({"smallest": "latency_ms"}, {"smallest": "latency_ms", "retention": 0.9, "otherwise": "none"}),
        ({"best": "mcc"}, {"smallest": "size_mb", "retention": 0.9, "best": "mcc", "otherwise": "none"}),
        ({}, {"smallest": "size_mb", "retention": 0.9, "otherwise": "none"}),
    ],
)
def test_a_changed_rule_keeps_part_of_the_former_rule(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert change_rule(Choose(smallest="size_mb", retention=0.9, otherwise="none"), changes) == Choose(**expected)


def test_a_rule_for_the_smallest_student_has_no_knee() -> None:
    assert change_rule(Choose(knee=True), {"smallest": "size_mb"}) == Choose(smallest="size_mb", retention=0.97)
    assert change_rule(Choose(knee=True, retention=0.9), {"smallest": "size_mb"}) == Choose(
        smallest="size_mb", retention=0.9
    )
    limits = {"latency_ms": 5.0}
    within = Choose(smallest="size_mb", at_most=limits, retention=None)
    assert change_rule(Choose(at_most=limits), {"smallest": "size_mb"}) == within
