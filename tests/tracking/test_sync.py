"""`kdray sync` without a server; for tests with a server see faults/test_mlflow.py."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.evaluation.trial_record import TrialRecord
from kdray.storage.files import write_json
from kdray.storage.paths import SweepPaths
from kdray.tracking.settings import Tracking, default_uri
from kdray.tracking.spool import TrackingTarget
from tests.tracking.scripted_sweep import ScriptedSweep, assert_all_in_mlflow


def kdray(*arguments: str | Path) -> tuple[int, str, str]:
    """Run `kdray` in this process; the exit code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path, "films")


def finish_without_server(paths: SweepPaths, uri: str) -> None:
    """Run a sweep to its end while the server does not answer."""
    sweep = ScriptedSweep(paths, Tracking(uri=uri, experiment="later", timeout_s=1, patience_s=0))
    sweep.trials(0, 1)
    sweep.end()
    assert paths.spool.stat().st_size > 0


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    code, out, err = kdray("sync", tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert "there is no sweep here; give STORAGE/NAME" in err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_was_never_tracked_has_nothing_to_send(paths: SweepPaths) -> None:
    write_json(paths.settings, {})
    code, out, _ = kdray("sync", paths.root)
    assert code == 0
    assert out.startswith("Nothing to send: ")


def test_the_changes_can_be_sent_to_another_store(paths: SweepPaths) -> None:
    finish_without_server(paths, "http://127.0.0.1:9")  # the discard port: nothing listens there
    code, out, err = kdray("sync", paths.root, "--tracking-uri", default_uri(paths))
    assert code == 0, err
    assert (
        out == f"Sent to MLflow at {default_uri(paths)}: runs changed: 3, values of metrics: 14, folders of files: 0.\n"
    )
    assert "runs: 3 of 3" in err
    assert_all_in_mlflow(paths, default_uri(paths), "later")


def test_controls_of_a_killed_driver_are_sent_with_its_trials(paths: SweepPaths) -> None:
    """Controls have numbers that are not in the ledger."""
    tracking = Tracking(uri="http://127.0.0.1:9", experiment="later", timeout_s=1, patience_s=0)
    sweep = ScriptedSweep(paths, tracking)
    sweep.trials(0, 1)
    control = TrialRecord(
        number=10_000,
        params={},
        state="completed",
        history=({"step": 1, "accuracy": 0.5},),
        started=1.0,
        ended=2.0,
        title="again",
    )
    sweep.tracker.trial(control, {"seed": 1}, {"kdray.role": "labels only"})
    sweep.end()
    TrackingTarget(tracking).write(paths)  # as while the sweep runs: without its ending
    code, out, err = kdray("sync", paths.root, "--tracking-uri", default_uri(paths))
    assert code == 0, err
    assert "runs changed: 4" in out
    client = MlflowClient(default_uri(paths))
    (experiment,) = (entity for entity in client.search_experiments() if entity.name == "later")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`kdray.role` = 'labels only'")
    assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", 0.5)


def test_an_address_with_a_secret_must_be_given_again(paths: SweepPaths) -> None:
    finish_without_server(paths, "http://me:secret@127.0.0.1:9")
    assert not [path for path in paths.root.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    code, _, err = kdray("sync", paths.root)
    assert code == 2
    assert "kdray: tracking.uri http://***@127.0.0.1:9: the secret in it was not written down." in err
    assert kdray("sync", paths.root, "--tracking-uri", "ftp://x")[0] == 2
