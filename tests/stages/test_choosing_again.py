"""`kdray choose`: another rule for a finished sweep, and nothing trained that was trained before."""

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
    settings = {"slots": SlotSettings(cpus=1), "confirm": Confirm(candidates=1, seeds=1), "tracking": Tracking()}
    return make_sweep(**settings, choose=Choose(retention=0.1))


@pytest.fixture(scope="module")
def once(original: Sweep, tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """A sweep that has run to its end, for looking at."""
    paths = SweepPaths(tmp_path_factory.mktemp("once"), "tiny")
    run(original, paths, RunOptions(local=True))
    return paths


@pytest.fixture
def paths(once: SweepPaths, tmp_path: Path) -> SweepPaths:
    return SweepPaths(shutil.copytree(once.storage, tmp_path / "storage"), "tiny")


def choose(paths: SweepPaths, *arguments: str) -> Result:
    command = ["choose", str(paths.root), "--local", "--set", "slots.cpus=1", *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "250"})


def times_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_sweep_is_known_from_its_folder(original: Sweep, once: SweepPaths) -> None:
    again = read_finished_sweep(once, once)
    assert again.identity() == original.identity()
    assert (again.choose, again.confirm, again.search.trials) == (original.choose, original.confirm, 3)
    assert again.as_params()["space.student.depth"] == original.as_params()["space.student.depth"]


def test_another_rule_chooses_without_training_a_trial_again(paths: SweepPaths) -> None:
    before = times_of(paths.root / "trials"), times_of(paths.root / "confirmation")
    done = choose(paths, "--at-most", "latency_ms=1e9", "--best", "accuracy")
    assert done.exit_code == 0, done.output
    figures = read_figures(paths)
    assert figures.verdict is not None
    assert figures.verdict.satisfied
    assert "at most" in figures.sentences[0]
    assert times_of(paths.root / "trials") == before[0]
    after = times_of(paths.root / "confirmation")
    assert {name: after[name] for name in before[1] if name != "reruns.json"} == {
        name: at for name, at in before[1].items() if name != "reruns.json"
    }
    assert read_finished_sweep(paths, paths).choose == Choose(best="accuracy", at_most={"latency_ms": 1e9})


def test_a_bar_that_nobody_reaches_ends_with_3_and_leaves_no_student(paths: SweepPaths) -> None:
    done = choose(paths, "--retention", "7", "--set", "choose.otherwise=none")
    assert done.exit_code == 3
    assert "No student keeps 700% of the teacher. The nearest: trial" in done.output
    assert not paths.chosen.exists()
    client = MlflowClient(f"sqlite:///{paths.tracking_database}")
    (run,) = client.search_runs(["1"], "tags.`kdray.chosen` = 'none'")
    assert run.data.tags["kdray.choice"].startswith("No student keeps 700% of the teacher.")
    assert choose(paths, "--retention", "8").exit_code == 3  # `otherwise` stays as it was asked for
    assert choose(paths, "--retention", "0.1").exit_code == 0
    assert (paths.chosen / "model.safetensors").exists()


def test_more_seeds_train_only_what_is_missing(paths: SweepPaths) -> None:
    before = times_of(paths.root / "confirmation")
    done = choose(paths, "--set", "confirm.seeds=2")
    assert done.exit_code == 0, done.output
    after = times_of(paths.root / "confirmation")
    kept = [name for name in before if name != "reruns.json"]
    assert all(after[name] == before[name] for name in kept)
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
    ("arguments", "said"),
    [
        (
            ["--smallest", "latncy_ms"],
            "Choose.smallest: latncy_ms is nothing of which less is better; did you mean 'latency_ms'?",
        ),
        (["--at-most", "latency_ms"], "--at-most latency_ms: write it as name=value, such as --at-most latency_ms=5"),
        (["--set", "training.epochs=9"], "the name 'tiny' is used by a sweep with other settings"),
        (["--best", "acuracy"], "did you mean 'accuracy'"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(paths: SweepPaths, arguments: list[str], said: str) -> None:
    before = json.loads(paths.choice.read_text())
    done = choose(paths, *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert json.loads(paths.choice.read_text()) == before


def test_an_address_with_a_secret_must_be_given_again(paths: SweepPaths) -> None:
    target = TrackingTarget.read(paths)
    assert target is not None
    TrackingTarget(target.tracking.model_copy(update={"uri": "http://me:secret@127.0.0.1:9"}), target.ending).write(
        paths
    )
    done = choose(paths, "--retention", "0.2")
    assert done.exit_code == 2
    assert "the secret in it was not written down. Give the whole address with --tracking-uri." in " ".join(
        done.stderr.split()
    )
    assert choose(paths, "--retention", "0.2", "--tracking-uri", default_uri(paths)).exit_code == 0


def test_a_sweep_that_has_not_ended_is_to_end_first(paths: SweepPaths, tmp_path: Path) -> None:
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
def test_what_a_changed_rule_keeps_of_the_former(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert change_rule(Choose(smallest="size_mb", retention=0.9, otherwise="none"), changes) == Choose(**expected)


def test_who_asks_for_the_smallest_asks_for_no_knee() -> None:
    assert change_rule(Choose(knee=True), {"smallest": "size_mb"}) == Choose(smallest="size_mb", retention=0.97)
    assert change_rule(Choose(knee=True, retention=0.9), {"smallest": "size_mb"}) == Choose(
        smallest="size_mb", retention=0.9
    )
    limits = {"latency_ms": 5.0}
    within = Choose(smallest="size_mb", at_most=limits, retention=None)
    assert change_rule(Choose(at_most=limits), {"smallest": "size_mb"}) == within
