"""The command line: options, tables, error messages on stderr and exit codes; sweeps as scripts."""

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
from tests.safe_text.hostile import HOSTILE, assert_no_control_characters

SWEEPS = Path(__file__).parents[2] / "sweeps"
TERMINAL = re.compile(r"\x1b\[[0-9;]*m")
"""The escape sequences for colours."""


@dataclass(frozen=True)
class CommandResult:
    """The output and the exit code of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """The `kdray` command, run in this process."""

    def __call__(self, *arguments: str | Path) -> CommandResult:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return CommandResult(result.exit_code, TERMINAL.sub("", result.stdout), TERMINAL.sub("", result.stderr))


kdray = Command()


@pytest.fixture
def script(tmp_path: Path, data_folder: Path, teacher: Pretrained) -> Path:
    """A sweep script as a user writes it: two trials of one epoch each."""
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
def run_script(script: Path, tmp_path: Path) -> Callable[..., CommandResult]:
    """A function that runs `kdray run mine.py --local --storage DIR` with more options."""

    def run(*options: str | Path) -> CommandResult:
        return kdray("run", script, "--local", "--storage", tmp_path / "results", *options)

    return run


def count_trials(storage: Path, name: str = "mine") -> int:
    return len(read_figures(SweepPaths(storage, name)).records)


# A run ----------------------------------------------------------------------------------------------------------------


def test_a_run_prints_a_table_and_the_paths_of_its_results(
    run_script: Callable[..., CommandResult], tmp_path: Path
) -> None:
    done = run_script()
    assert done.code == 0, done.err
    for part in ("teacher", "depth", "retention", "Trial", "test rows", str(tmp_path / "results" / "mine" / "chosen")):
        assert part in done.out
    assert "kdray ui" in done.out
    assert "Traceback" not in done.out + done.err
    log = (tmp_path / "results" / "mine" / "logs" / "kdray.log").read_text()
    assert "Traceback" not in log
    show = kdray("show", tmp_path / "results" / "mine")
    assert show.code == 0
    assert "depth" in show.out
    assert "completed" in show.out


def test_options_change_the_sweep(run_script: Callable[..., CommandResult], tmp_path: Path) -> None:
    done = run_script("--smoke", "--trials", "3", "--set", "student.depth=1", "--set", "training.weight_decay=0.2")
    assert done.code == 0, done.err
    identity = read_json(tmp_path / "results" / "mine-smoke" / "sweep.json")
    assert (identity["student"]["depth"], identity["training"]["weight_decay"]) == (1, 0.2)
    assert set(identity["space"]) == {"training.learning_rate"}
    assert identity["data"]["max_rows"] == 64
    assert count_trials(tmp_path / "results", "mine-smoke") == 3


def test_more_trials_then_fresh(run_script: Callable[..., CommandResult], tmp_path: Path) -> None:
    storage = tmp_path / "results"
    assert run_script("--trials", "1").code == 0
    assert run_script("--trials", "2").code == 0
    assert count_trials(storage) == 2
    refused = run_script("--set", "training.weight_decay=0.2")
    assert refused.code == 2
    assert "training.weight_decay: was 0.01, now 0.2" in refused.err
    assert run_script("--set", "training.weight_decay=0.2", "--trials", "1", "--fresh").code == 0
    assert count_trials(storage) == 1
    assert "was 0.01, now 0.2" in (storage / "mine" / "logs" / "kdray.log").read_text()


def test_a_database_as_the_ledger(run_script: Callable[..., CommandResult], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    assert run_script("--trials", "1", "--ledger", url).code == 0
    assert (tmp_path / "trials.db").stat().st_size > 0
    assert not (tmp_path / "results" / "mine" / "ledger").exists()
    assert "completed" in kdray("show", tmp_path / "results" / "mine").out
    refused = run_script("--trials", "1")
    assert refused.code == 2
    assert f"search.ledger: was {url}, now None" in refused.err
    secret = run_script("--trials", "1", "--ledger", "postgresql://anna:s3cret@127.0.0.1/kd")
    assert secret.code == 2
    assert "search.ledger: there is a password in the URL" in secret.err
    assert "PGPASSWORD" in secret.err
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_tracking_server(run_script: Callable[..., CommandResult], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    assert run_script("--trials", "1", "--tracking-uri", uri, "--set", "tracking.enabled=true").code == 0
    assert (tmp_path / "elsewhere.db").stat().st_size > 0
    assert not (tmp_path / "results" / "mlflow.db").exists()


@pytest.mark.parametrize(
    "uri", ["http://u:s3@cret@127.0.0.1:9", "http://u:s3/cret@h", "http://h/?api_key=s3cret", "http://h/#s3cret"]
)
@pytest.mark.parametrize("place", ["option", "setting", "environment"])
def test_a_secret_in_the_address_of_the_tracking_server_is_refused_and_written_nowhere(
    run_script: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri if place == "environment" else "")
    options = {"option": ["--tracking-uri", uri], "setting": ["--set", f"tracking.uri={uri}"], "environment": []}
    done = run_script("--trials", "1", *options[place])
    assert done.code == 2
    assert "there is a password in the address" in done.err
    assert "MLFLOW_TRACKING_USERNAME" in done.err
    assert "s3" not in done.out + done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3" in path.read_bytes() and b"cret" in path.read_bytes()]


def test_no_student_is_exit_code_3(run_script: Callable[..., CommandResult], tmp_path: Path) -> None:
    done = run_script("--trials", "1", "--set", "choose.retention=9", "--set", "choose.otherwise=none")
    assert done.code == 3
    assert "No student keeps at least 900% of the teacher's quality" in done.out
    assert not (tmp_path / "results" / "mine" / "chosen").exists()


def test_a_sweep_without_a_finished_trial_is_exit_code_1(run_script: Callable[..., CommandResult]) -> None:
    done = run_script("--set", "training.learning_rate=1e30")
    assert done.code == 1
    assert "kdray: none of the 2 trials completed; the first error: the loss or its gradient was not finite" in done.err


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
def test_a_refused_option_is_exit_code_2_and_one_sentence(
    run_script: Callable[..., CommandResult], options: list[str], part: str
) -> None:
    done = run_script(*options)
    assert done.code == 2
    last_line = done.err.splitlines()[-1]
    assert last_line.startswith("kdray: ")
    assert part in last_line
    assert "Traceback" not in done.out + done.err


def test_a_file_without_a_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("sweep = 7\n")
    (tmp_path / "error.py").write_text("\nsweep = Sweep()\n")
    for file, part in (
        (tmp_path / "none.py", "it defines 0 Sweep values"),
        (tmp_path / "error.py", "Python cannot run this sweep file: line 2: NameError"),
        (tmp_path / "nowhere.py", "no such file"),
    ):
        done = kdray("run", file)
        assert done.code == 2
        assert f"kdray: {file}: {part}" in done.err


def test_a_sweep_that_does_not_exist_cannot_be_shown(tmp_path: Path) -> None:
    done = kdray("show", tmp_path / "nothing")
    assert done.code == 2
    assert "there is no sweep here; give STORAGE/NAME" in done.err


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("command", [("show",), ("predict", "good"), ("sync",), ("export",), ("register",)])
def test_errors_show_control_characters(tmp_path: Path, command: tuple[str, ...], text: str) -> None:
    name, *arguments = command
    done = kdray(name, tmp_path / text.replace("/", "-").replace("\n", " "), *arguments)
    assert done.code == 2
    assert_no_control_characters(done.out + done.err)


def test_errors_show_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "blauwal99")
    done = kdray("show", tmp_path / "blauwal99" / "postgresql:" / "u:s3cret@host")
    assert "blauwal99" not in done.err
    assert "***" in done.err


def test_an_unexpected_error_shows_control_characters_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "error.py").write_text(
        "import typer\n"
        "from kdray.cli.exits import exit_on_error\n"
        "app = typer.Typer(pretty_exceptions_enable=False)\n"
        "@app.command()\n"
        "def fail():\n"
        "    with exit_on_error():\n"
        "        raise RuntimeError('\\x1b[2J http://u:s3' + 'cret@host\\x9b')\n"
        "app([])\n"
    )
    done = run_python(tmp_path / "error.py")
    assert done.code == 1
    assert "RuntimeError: \\x1b[2J http://***@host\\x9b" in done.err
    assert_no_control_characters(done.err)


def test_settings_are_parsed_from_name_and_value() -> None:
    assert parse_changes(["a.b=1e-4", "c=x=y", "d=[1,2]", "e="]) == {"a.b": 1e-4, "c": "x=y", "d": [1, 2], "e": ""}
    with pytest.raises(SpecError, match="--set =1: write it as name=value"):
        parse_changes(["=1"])


def test_help_lists_commands_and_options() -> None:
    assert {"run", "show", "sync", "ui"} <= set(kdray("--help").out.split())
    help_text = kdray("run", "--help").out
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
        assert option in help_text


# Scripts --------------------------------------------------------------------------------------------------------------


def run_python(*arguments: str | Path, limit_s: float = 300) -> CommandResult:
    """Run Python with these arguments in a new process, as a user does."""
    command = [sys.executable, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def test_a_mistake_in_the_sweep_of_a_script_prints_one_sentence(script: Path) -> None:
    script.write_text(script.read_text().replace('"student.depth": [1, 2]', '"student.dept": [1, 2]'))
    done = run_python(script)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("kdray: space['student.dept']: no such setting; did you mean 'student.depth'?")
    assert "Traceback" not in done.err


def test_a_mistake_in_an_option_of_a_script_prints_one_sentence(
    make_sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mine.py", "--set", "student.dept=1"])
    with pytest.raises(SystemExit) as ended:
        main(make_sweep())
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("kdray: student.dept: no such setting; did you mean 'student.depth'?")


def test_the_smoke_sweep_of_sst2_runs_with_local_folders(teacher: Pretrained, tmp_path: Path) -> None:
    """The command for running without a model hub, from the docstring of the sweep."""
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
    assert count_trials(tmp_path / "results", "sst2-smoke") == 2
    assert (tmp_path / "results" / "sst2-smoke" / "chosen" / "model.safetensors").exists()


@pytest.mark.skipif(not (SWEEPS / "quickstart.py").exists(), reason="there is no quickstart yet")
def test_the_smoke_sweep_of_the_quickstart_runs_on_ray(tmp_path: Path) -> None:
    """The command of the README with --smoke: a new process that starts its own Ray."""
    done = run_python(SWEEPS / "quickstart.py", "--smoke", "--storage", tmp_path / "results")
    assert done.code == 0, done.err
    assert (tmp_path / "results" / "quickstart-smoke" / "chosen" / "model.safetensors").exists()
    assert "Traceback" not in done.out + done.err
