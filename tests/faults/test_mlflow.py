"""An MLflow server that fails: it delays no trial, the user gets one message, and every change arrives exactly once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.search.ledger import Ledger
from kdray.storage.paths import SweepPaths
from kdray.tracking.settings import Tracking
from tests.tracking.mlflow_server import Fault, FaultyProxy, Server
from tests.tracking.scripted_sweep import ScriptedSweep, assert_all_in_mlflow, runs_in, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the module, because its start takes seconds. Each test has an experiment of its own."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server) as proxy:
        yield proxy


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path, "tracked")


@pytest.fixture
def tracking(proxy: FaultyProxy, request: pytest.FixtureRequest) -> Tracking:
    """Tracking at the proxy's address, with a timeout of two seconds."""
    return Tracking(uri=proxy.uri, experiment=request.node.name, timeout_s=2, patience_s=60)


@pytest.fixture
def report(paths: SweepPaths) -> Path:
    """A folder that is logged as an artifact."""
    paths.report.mkdir(parents=True)
    (paths.report / "report.md").write_text("# A report\n")
    return paths.report


def kdray(*arguments: str | Path) -> tuple[int, str]:
    """Run a command. Returns its exit code and its output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(f"{result.stdout}\n{result.stderr}".split())


# While the sweep runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refused", "error 500", "no answer", "lost answer"])
def test_a_failing_server_delays_nothing_and_receives_everything_later(
    fault: Fault | str,
    proxy: FaultyProxy,
    server: Server,
    paths: SweepPaths,
    tracking: Tracking,
    report: Path,
    record_recovery: Callable[[float], None],
) -> None:
    sweep = ScriptedSweep(paths, tracking)
    sweep.trials(0)
    sweep.wait_until_sent()
    if fault == "refused":
        proxy.shut()
    else:
        proxy.always(fault)  # type: ignore[arg-type]
    sweep.trials(1, state="failed")
    sweep.figures(report)
    wait_until(lambda: bool(sweep.said), 60, "no message")
    sweep.trials(2, state="stopped")
    assert paths.spool.stat().st_size > 0
    proxy.open()
    opened = time.monotonic()
    sweep.wait_until_sent()
    record_recovery(time.monotonic() - opened)
    sweep.end()
    assert sweep.longest_call_s < 1
    first_message, last_message = sweep.said
    assert first_message.startswith(f"MLflow at {proxy.uri} cannot be written to (")
    assert last_message == f"MLflow at {proxy.uri} answers again: it has everything now."
    assert_all_in_mlflow(paths, server.store, tracking.experiment)
    sweep_run = runs_in(server.store, tracking.experiment)[None]
    assert sweep_run.data.metrics == {"teacher.accuracy": 0.9}
    assert len(list(server.folder.glob(f"artifacts/*/{sweep_run.info.run_id}/artifacts/report/report.md"))) == 1
    assert not paths.spool.exists()


def test_a_server_that_is_down_at_the_start_receives_everything_later(
    proxy: FaultyProxy, server: Server, paths: SweepPaths, tracking: Tracking
) -> None:
    proxy.shut()
    sweep = ScriptedSweep(paths, tracking)
    sweep.trials(0, 1)
    wait_until(lambda: bool(sweep.said), 60, "no message")
    assert sweep.tracker.run_ids() == {}
    proxy.open()
    sweep.wait_until_sent()
    sweep.trials(2)
    sweep.end()
    assert_all_in_mlflow(paths, server.store, tracking.experiment)


def test_a_slow_server_delays_nothing_and_receives_everything(
    proxy: FaultyProxy, server: Server, paths: SweepPaths, tracking: Tracking
) -> None:
    proxy.lateness_s = 0.5
    proxy.always("late answer")
    sweep = ScriptedSweep(paths, tracking)
    sweep.trials(0, 1, 2)
    sweep.end()
    assert sweep.longest_call_s < 1
    assert_all_in_mlflow(paths, server.store, tracking.experiment)


@pytest.mark.parametrize("fate", ["late answer", "lost answer"])
def test_a_run_that_was_created_without_an_answer_is_not_created_twice(
    fate: Fault, proxy: FaultyProxy, server: Server, paths: SweepPaths, tracking: Tracking
) -> None:
    faults: list[str] = []

    def fate_of(method: str, path: str) -> Fault:
        if not path.endswith("runs/create") or len(faults) >= 2:
            return "passes"
        faults.append(path)
        return fate

    proxy.lateness_s, proxy.fate = 5, fate_of
    sweep = ScriptedSweep(paths, tracking)
    sweep.trials(0, 1, 2)
    sweep.end()
    assert len(faults) == 2
    assert_all_in_mlflow(paths, server.store, tracking.experiment)


def test_a_run_that_a_delayed_request_creates_is_deleted(
    proxy: FaultyProxy, server: Server, paths: SweepPaths, tracking: Tracking
) -> None:
    """The first request is delayed until the run is requested a second time."""
    created: list[str] = []

    def fate_of(method: str, path: str) -> Fault:
        if path.endswith("runs/create"):
            created.append(path)
            if len(created) == 1:
                wait_until(lambda: len(created) > 1, 60, "no second request")
                time.sleep(0.5)
        return "passes"

    proxy.fate = fate_of
    sweep = ScriptedSweep(paths, tracking)
    sweep.trials(0, 1, 2)
    client = MlflowClient(server.store)
    sweep.wait_until_sent()
    experiment = client.get_experiment_by_name(tracking.experiment).experiment_id
    wait_until(lambda: len(client.search_runs([experiment])) == 5, 60, "the second run for the sweep was not made")
    sweep.end()
    assert_all_in_mlflow(paths, server.store, tracking.experiment)


def test_a_server_that_is_killed_and_started_again_receives_everything(
    paths: SweepPaths, tmp_path: Path, report: Path
) -> None:
    with Server(tmp_path / "own") as own_server:
        tracking = Tracking(
            uri=f"http://127.0.0.1:{own_server.port}", experiment="restarted", timeout_s=5, patience_s=60
        )
        sweep = ScriptedSweep(paths, tracking)
        sweep.trials(0)
        sweep.begin()
        sweep.wait_until_sent()
        own_server.stop()
        sweep.evaluate(1, 10)
        sweep.figures(report)
        wait_until(lambda: bool(sweep.said), 60, "no message")
        own_server.start()
        sweep.evaluate(1, 20)
        sweep.finish(1)
        sweep.trials(2)
        sweep.end()
        assert len(sweep.said) == 2
        assert_all_in_mlflow(paths, own_server.store, "restarted")


# Afterwards -----------------------------------------------------------------------------------------------------------


def test_kdray_sync_sends_everything_that_a_server_missed_during_the_whole_sweep(
    proxy: FaultyProxy, server: Server, paths: SweepPaths, tracking: Tracking, report: Path
) -> None:
    proxy.shut()
    sweep = ScriptedSweep(paths, tracking.model_copy(update={"patience_s": 1}))
    sweep.trials(0, 1, state="stopped")
    sweep.trials(2)
    sweep.figures(report)
    sweep.tracker.log_artifacts(paths.student(0), "student", trial=0)  # the folder does not exist
    ended = time.time()
    sweep.end()
    assert sweep.said[-1].endswith(f"They are kept; send them later with: kdray sync {paths.root}")
    assert "of 4 of 4 runs" in sweep.said[-1]

    code, output = kdray("sync", paths.root)
    assert code == 1
    assert "has taken nothing for 1 s (the connection is refused)" in output
    assert "Traceback" not in output

    time.sleep(1)
    proxy.open()
    code, output = kdray("sync", paths.root)
    assert code == 0, output
    assert f"Sent to MLflow at {proxy.uri}: runs changed: 4, values of metrics: 22, folders of files: 1." in output
    assert f"Left out: {paths.student(0)}: this folder does not exist any more" in output
    assert_all_in_mlflow(paths, server.store, tracking.experiment)
    sweep_run = runs_in(server.store, tracking.experiment)[None]
    assert sweep_run.info.end_time == pytest.approx(ended * 1000, rel=0, abs=900)
    assert sweep_run.info.start_time < Ledger.read(paths.journal, paths.name)[0].started * 1000
    assert not paths.spool.exists()

    code, output = kdray("sync", paths.root)
    assert code == 0
    assert "Nothing to send" in output


DRIVER = """
import sys, time
from kdray.storage.paths import SweepPaths
from kdray.tracking.settings import Tracking
from pathlib import Path
from tests.tracking.scripted_sweep import ScriptedSweep

storage, uri, experiment, unsent = sys.argv[1:]
sweep = ScriptedSweep(SweepPaths(Path(storage), "tracked"), Tracking(uri=uri, experiment=experiment, timeout_s=2))
sweep.trials(0)
sweep.begin()
sweep.evaluate(1, 10)
if unsent == "sent":
    sweep.wait_until_sent()
    sweep.ledger.finish(1, "stopped")  # only the ledger has the end of this trial, the tracker has not
print("ready", flush=True)
time.sleep(300)
"""


def run_and_kill_driver(paths: SweepPaths, tracking: Tracking, sent: str) -> None:
    """Run a driver with a finished and a running trial, and kill it: before or after it has sent everything.

    `sent` is "sent" or "unsent".
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", DRIVER, str(paths.storage), str(tracking.uri), tracking.experiment, sent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "ready\n"
        finally:
            driver.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("later", ["sync", "resume"])
def test_changes_that_a_killed_driver_did_not_send_are_sent_later(
    later: str, proxy: FaultyProxy, server: Server, paths: SweepPaths, tracking: Tracking
) -> None:
    proxy.always("error 500")
    run_and_kill_driver(paths, tracking, "unsent")
    with paths.spool.open("a") as spool:
        spool.write('{"run": 1, "metrics": [["accur')  # a line that was not completed
    proxy.open()
    if later == "resume":
        sweep = ScriptedSweep(paths, tracking)
        sweep.tell(sweep.ledger.resume(1))
        sweep.wait_until_sent()
        assert runs_in(server.store, tracking.experiment)[None].info.status == "RUNNING"
        sweep.evaluate(1, 20)
        sweep.finish(1)
        sweep.end()
        runs = runs_in(server.store, tracking.experiment)
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        assert runs["1"].data.metrics["accuracy"] == pytest.approx(0.82)
        return
    code, output = kdray("sync", paths.root)
    assert code == 0, output
    runs = runs_in(server.store, tracking.experiment)
    # In the ledger the trial is running, because a later session continues it.
    assert runs["1"].info.status == "KILLED"
    assert runs["1"].data.tags["kdray.status"] == "interrupted"
    assert_all_in_mlflow(paths, server.store, tracking.experiment, status="KILLED")


@pytest.mark.parametrize("later", ["sync", "resume"])
def test_runs_that_a_killed_driver_left_running_are_closed(
    later: str, server: Server, paths: SweepPaths, tracking: Tracking
) -> None:
    run_and_kill_driver(paths, tracking, "sent")
    before = runs_in(server.store, tracking.experiment)
    assert (before[None].info.status, before["1"].info.status) == ("RUNNING", "RUNNING")
    if later == "sync":
        assert kdray("sync", paths.root)[0] == 0
    else:
        sweep = ScriptedSweep(paths, tracking)
        sweep.end()
    after = runs_in(server.store, tracking.experiment)
    assert {number: run.info.run_id for number, run in after.items()} == {
        number: run.info.run_id for number, run in before.items()
    }
    assert after["1"].info.status == "KILLED"
    assert after["1"].data.tags["kdray.status"] == "stopped"
    assert_all_in_mlflow(paths, server.store, tracking.experiment, status="FINISHED" if later == "resume" else "KILLED")


def test_sync_is_refused_while_the_sweep_runs(proxy: FaultyProxy, paths: SweepPaths, tracking: Tracking) -> None:
    proxy.shut()
    sweep = ScriptedSweep(paths, tracking.model_copy(update={"patience_s": 0}))
    code, output = kdray("sync", paths.root)
    assert code == 2
    assert "another process is sending this sweep to MLflow" in output
    sweep.end()
