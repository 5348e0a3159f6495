"""The folder of a finished sweep that somebody else wrote into: commands say what is wrong with it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.cli.app import app
from kdray.errors import StorageError
from kdray.run import RunOptions, run
from kdray.slots.pool import SlotSettings
from kdray.stages.choosing_again import read_finished_sweep
from kdray.stages.retraining import RerunLog
from kdray.storage.files import write_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.training.trial import read_reports, reports_file

MakeSweep = Callable[..., Sweep]


@pytest.fixture(scope="module")
def finished(make_sweep: MakeSweep, tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The paths of a finished sweep. Read it only."""
    paths = SweepPaths(tmp_path_factory.mktemp("finished"), "tiny")
    confirm = Confirm(candidates=1, seeds=1, controls=False)
    run(
        make_sweep(slots=SlotSettings(cpus=1), confirm=confirm, choose=Choose(retention=0.1)),
        paths,
        RunOptions(local=True),
    )
    return paths


@pytest.fixture
def paths(finished: SweepPaths, tmp_path: Path) -> SweepPaths:
    """The paths of a copy of the finished sweep, which a test may change."""
    return SweepPaths(shutil.copytree(finished.storage, tmp_path / "storage"), "tiny")


def replaced(path: list[Any], value: Any) -> Callable[[Any], Any]:
    """A change that puts the value at this place of a JSON value."""

    def change(content: Any) -> Any:
        place = content
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        return content

    return change


FILES = ["sweep.json", "choice.json", "teacher.json", "conditions.json", "times.json", "origin.json"]
CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **{f"{file} is a list": (file, lambda content: [content]) for file in FILES},
    "a figure of the teacher": ("teacher.json", replaced(["accuracy"], "x")),
    "a figure of the teacher is nan": ("teacher.json", replaced(["accuracy"], float("nan"))),
    "a time": ("times.json", lambda content: {"Search": "long"}),
    "a command": ("origin.json", replaced(["command"], ["rm"])),
    "the front": ("choice.json", replaced(["front"], "all")),
    "a sentence": ("choice.json", replaced(["sentences"], [1])),
    "the objectives": ("sweep.json", replaced(["search", "objectives"], 1)),
    "no objectives": ("sweep.json", replaced(["search", "objectives"], [])),
    "a domain": ("sweep.json", replaced(["space", "student.depth"], "x")),
    "the choices of a domain": (
        "sweep.json",
        replaced(["space", "student.depth"], {"name": "CategoricalDistribution", "attributes": {"choices": [[1]]}}),
    ),
    "a task that does not exist": ("sweep.json", replaced(["task"], {"kind": "x"})),
    "a task with a wrong setting": ("sweep.json", replaced(["task"], {"max_length": "x"})),
    "a task that is no task": ("sweep.json", replaced(["task"], [1])),
    "the id": ("sweep.json", replaced(["id"], {"a": 1})),
}


@pytest.mark.parametrize(("file", "change"), CHANGES.values(), ids=CHANGES)
def test_a_file_of_another_kind_is_a_sentence(paths: SweepPaths, file: str, change: Callable[[Any], Any]) -> None:
    path = paths.root / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    done = CliRunner().invoke(app, ["show", str(paths.root)])
    assert done.exit_code == 2, done.output
    assert file in done.stderr
    assert "--fresh" in done.stderr
    assert "Traceback" not in done.stderr


CONTENTS = {"200,000 levels": b"[" * 200_000, "binary": b"\x80\x02.", "empty": b""}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_no_json_is_a_sentence(paths: SweepPaths, file: str, content: bytes) -> None:
    (paths.root / file).write_bytes(content)
    done = CliRunner().invoke(app, ["show", str(paths.root)])
    assert done.exit_code == 2
    assert f"{file}: not a readable JSON file" in done.stderr


def test_a_named_pipe_in_place_of_a_file_is_a_sentence(paths: SweepPaths) -> None:
    paths.settings.unlink()
    os.mkfifo(paths.settings)
    done = CliRunner().invoke(app, ["show", str(paths.root)])
    assert (done.exit_code, "sweep.json: is not a regular file" in done.stderr) == (2, True)


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "a task that does not exist": replaced(["task"], {"name": "x"}),
    "a number for a text": replaced(["search", "sampler"], 7),
    "a distribution that does not exist": replaced(["space", "student.depth"], {"name": "x", "attributes": {}}),
    "a distribution without values": replaced(
        ["space", "student.depth"], {"name": "FloatDistribution", "attributes": {"low": 2}}
    ),
    "a setting that does not exist": replaced(["student"], {"deep": 1}),
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_no_sweep_has_are_a_sentence(paths: SweepPaths, change: Callable[[Any], Any]) -> None:
    paths.settings.write_text(json.dumps(change(json.loads(paths.settings.read_text()))))
    with pytest.raises(StorageError, match=r"sweep\.json: does not hold the settings of a sweep .*--fresh"):
        read_finished_sweep(paths, paths)


@pytest.mark.parametrize(
    "value", [1, {"a": 1}, {"a": {"number": "x"}}, {"a": {"host": "x"}}, {"a": {"number": 1, "b": 2}}]
)
def test_reruns_of_another_kind_are_a_sentence(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "reruns.json", value)
    with pytest.raises(StorageError, match=r"reruns\.json: is damaged"):
        RerunLog(tmp_path / "reruns.json", [])


@pytest.mark.parametrize("value", [1, {"a": 1}, [1], [{"accuracy": [1]}], [{"accuracy": {}}]])
def test_reports_of_another_kind_are_a_sentence(tmp_path: Path, value: Any) -> None:
    student = tmp_path / "student"
    write_json(reports_file(student), value)
    with pytest.raises(StorageError, match=r"ended\.json: is damaged"):
        read_reports(student)
