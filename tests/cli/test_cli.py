"""The command line: options, tables, sentences on stderr and exit codes; scripts that the sweeps are."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.cli.running import main, parse_changes
from kdray.errors import SpecError
from kdray.models.pretrained import Pretrained
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from tests.conftest import write_rows

SWEEPS = Path(__file__).parents[2] / "sweeps"
TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Done:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """`kdray`, in this process."""

    def __call__(self, *arguments: str | Path) -> Done:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, TERMINAL.sub("", result.stdout), TERMINAL.sub("", result.stderr))


kdray = Command()


@pytest.fixture
def script(tmp_path: Path, data_folder: Path, teacher: Pretrained) -> Path:
    """A sweep script as a user writes it: two trials, of one epoch each."""
    text = f"""
from kdray import Data, Latency, Search, SlotSettings, Sweep, Teacher, TextClassification, Tracking, Training, main

sweep = Sweep(
    name="mine",
    data=Data(source={str(data_folder)!r}),
    task=TextClassification(max_length=16),
    teacher=Teacher(model={str(teacher.folder)!r}),
    training=Training(epochs=1, learning_rate=1e-3, precision="fp32"),
    space={{"student.depth": [1, 2], "training.learning_rate": [1e-3, 2e-3]}},
    search=Search(trials=2),
    latency=Latency(length=16, warmup=1, repeats=3),
    slots=SlotSettings(cpus=1),
    tracking=Tracking(enabled=False),
    smoke={{"data.max_rows": 64}},
)

if __name__ == "__main__":
    main(sweep)
"""
    file = tmp_path / "mine.py"
    file.write_text(text)
    return file


@pytest.fixture
def go(script: Path, tmp_path: Path) -> Callable[..., Done]:
    """`kdray run mine.py --local --storage DIR` with these options."""

    def run_it(*options: str | Path) -> Done:
        return kdray("run", script, "--local", "--storage", tmp_path / "results", *options)

    return run_it


def trials(storage: Path, name: str = "mine") -> int:
    return len(read_figures(SweepPaths(storage, name)).records)


# A run ----------------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_a_table_and_where_things_lie(go: Callable[..., Done], tmp_path: Path) -> None:
    done = go()
    assert done.code == 0, done.err
    for part in ("teacher", "depth", "retention", "Trial", "test rows", str(tmp_path / "results" / "mine" / "chosen")):
        assert part in done.out
    assert "kdray ui" in done.out
    assert "Traceback" not in done.out + done.err
    log = (tmp_path / "results" / "mine" / "logs" / "kdray.log").read_text()
    assert "Traceback" not in log
    shown = kdray("show", tmp_path / "results" / "mine")
    assert shown.code == 0
    assert "depth" in shown.out
    assert "completed" in shown.out


def test_options(go: Callable[..., Done], tmp_path: Path) -> None:
    done = go("--smoke", "--trials", "3", "--set", "student.depth=1", "--set", "training.weight_decay=0.2")
    assert done.code == 0, done.err
    identity = read_json(tmp_path / "results" / "mine-smoke" / "sweep.json")
    assert (identity["student"]["depth"], identity["training"]["weight_decay"]) == (1, 0.2)
    assert set(identity["space"]) == {"training.learning_rate"}
    assert identity["data"]["max_rows"] == 64
    assert trials(tmp_path / "results", "mine-smoke") == 3


def test_more_trials_then_fresh(go: Callable[..., Done], tmp_path: Path) -> None:
    storage = tmp_path / "results"
    assert go("--trials", "1").code == 0
    assert go("--trials", "2").code == 0
    assert trials(storage) == 2
    refused = go("--set", "training.weight_decay=0.2")
    assert refused.code == 2
    assert "training.weight_decay: was 0.01, now 0.2" in refused.err
    assert go("--set", "training.weight_decay=0.2", "--trials", "1", "--fresh").code == 0
    assert trials(storage) == 1
    assert "was 0.01, now 0.2" in (storage / "mine" / "logs" / "kdray.log").read_text()


def test_a_database_as_the_ledger(go: Callable[..., Done], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    assert go("--trials", "1", "--ledger", url).code == 0
    assert (tmp_path / "trials.db").stat().st_size > 0
    assert not (tmp_path / "results" / "mine" / "ledger").exists()
    assert "completed" in kdray("show", tmp_path / "results" / "mine").out
    refused = go("--trials", "1")
    assert refused.code == 2
    assert f"search.ledger: was {url}, now None" in refused.err
    secret = go("--trials", "1", "--ledger", "postgresql://anna:s3cret@127.0.0.1/kd")
    assert secret.code == 2
    assert "search.ledger: there is a password in the URL" in secret.err
    assert "PGPASSWORD" in secret.err
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_tracking_server(go: Callable[..., Done], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    assert go("--trials", "1", "--tracking-uri", uri, "--set", "tracking.enabled=true").code == 0
    assert (tmp_path / "elsewhere.db").stat().st_size > 0
    assert not (tmp_path / "results" / "mlflow.db").exists()


def test_no_student_is_exit_code_3(go: Callable[..., Done], tmp_path: Path) -> None:
    done = go("--trials", "1", "--set", "choose.retention=9", "--set", "choose.otherwise=none")
    assert done.code == 3
    assert "No student keeps 900% of the teacher" in done.out
    assert not (tmp_path / "results" / "mine" / "chosen").exists()


def test_all_failed_is_exit_code_1(go: Callable[..., Done]) -> None:
    done = go("--set", "training.learning_rate=1e30")
    assert done.code == 1
    assert "kdray: none of the 2 trials ran to its end; the first: the loss or its gradient was not finite" in done.err


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--set", "student.dept=1"], "student.dept: no such setting; did you mean 'student.depth'?"),
        (["--set", "distillation.alpha=1.2"], "distillation.alpha: got 1.2"),
        (["--set", "distillation.temperature=0"], "distillation.temperature: got 0"),
        (["--set", "student.depth=0"], "student.depth: got 0"),
        (["--set", "space.student.depth=[1,9]"], "student.depth: got 9, but the model it is built from has 4 layers"),
        (["--set", "training.learning_rate=0"], "training.learning_rate: got 0"),
        (["--set", "search.objectives=bleu"], "search.objectives 'bleu'"),
        (["--set", 'search.constraints={"bleu":{"at_most":1}}'], "search.constraints 'bleu'"),
        (["--set", "training.epochs"], "--set training.epochs: write it as name=value"),
        (["--set", "teacher.model=./nowhere"], "teacher.model ./nowhere: no such folder"),
        (["--set", "data.source=./nowhere"], "nowhere"),
        (["--storage", "ftp://host/x"], "or to a bucket (s3://, gs://), not there"),
        (["--storage", "s3://me:secret@bucket/x"], "a name, password or query in the URL"),
        (["--storage", "/proc/kdray"], "storage /proc/kdray: cannot be written"),
    ],
)
def test_refusals(go: Callable[..., Done], options: list[str], part: str) -> None:
    done = go(*options)
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("kdray: ")
    assert part in last
    assert "Traceback" not in done.out + done.err


def test_files_that_are_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("sweep = 7\n")
    for file, part in ((tmp_path / "none.py", "it defines 0 Sweep values"), (tmp_path / "nowhere.py", "no such file")):
        done = kdray("run", file)
        assert done.code == 2
        assert f"kdray: {file}: {part}" in done.err


def test_showing_what_is_not_there(tmp_path: Path) -> None:
    done = kdray("show", tmp_path / "nothing")
    assert done.code == 2
    assert "there is no sweep here; give STORAGE/NAME" in done.err


def test_settings_are_written_as_name_and_value() -> None:
    assert parse_changes(["a.b=1e-4", "c=x=y", "d=[1,2]", "e="]) == {"a.b": 1e-4, "c": "x=y", "d": [1, 2], "e": ""}
    with pytest.raises(SpecError, match="--set =1: write it as name=value"):
        parse_changes(["=1"])


def test_help() -> None:
    assert {"run", "show", "sync", "ui"} <= set(kdray("--help").out.split())
    said = kdray("run", "--help").out
    for option in (
        "--smoke",
        "--trials",
        "--set",
        "--storage",
        "--tracking-uri",
        "--address",
        "--require-cluster",
        "--fresh",
        "--local",
        "--ledger",
    ):
        assert option in said


# Scripts --------------------------------------------------------------------------------------------------------------


def python(*arguments: str | Path, limit_s: float = 300) -> Done:
    """A new process, as a user starts it."""
    command = [sys.executable, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment)
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_bad_sweep_in_a_script_is_a_sentence(script: Path) -> None:
    script.write_text(script.read_text().replace('"student.depth": [1, 2]', '"student.dept": [1, 2]'))
    done = python(script)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("kdray: space['student.dept']: no such setting; did you mean 'student.depth'?")
    assert "Traceback" not in done.err


def test_a_bad_option_of_a_script_is_a_sentence(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mine.py", "--set", "student.dept=1"])
    with pytest.raises(SystemExit) as ended:
        main(make_sweep())
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("kdray: student.dept: no such setting; did you mean 'student.depth'?")


def test_sst2_small_with_local_folders(teacher: Pretrained, tmp_path: Path) -> None:
    """The shipped sweep, as its docstring says it is run without a hub."""
    data = write_rows(tmp_path / "sst2", (0, 1))
    for file in data.iterdir():
        file.write_text(file.read_text().replace("text,label", "sentence,label", 1))
    done = kdray(
        "run",
        SWEEPS / "sst2.py",
        "--smoke",
        "--local",
        "--storage",
        tmp_path / "results",
        "--set",
        f"data.source={data}",
        "--set",
        f"teacher.model={teacher.folder}",
        "--set",
        "task.max_length=16",
        "--set",
        "space.student.depth=[1,2]",
        "--set",
        "latency.length=16",
        "--set",
        "choose.retention=0.1",
        "--set",
        "slots.cpus=1",
    )
    assert done.code == 0, done.err
    assert trials(tmp_path / "results", "sst2-smoke") == 2
    assert (tmp_path / "results" / "sst2-smoke" / "chosen" / "model.safetensors").exists()


@pytest.mark.skipif(not (SWEEPS / "quickstart.py").exists(), reason="there is no quickstart yet")
def test_quickstart_small_on_ray(tmp_path: Path) -> None:
    """The README's command, small: a new process that starts a Ray of its own."""
    done = python(SWEEPS / "quickstart.py", "--smoke", "--storage", tmp_path / "results")
    assert done.code == 0, done.err
    assert (tmp_path / "results" / "quickstart-smoke" / "chosen" / "model.safetensors").exists()
    assert "Traceback" not in done.out + done.err
