"""`kdray sync` without a server; for tests with a server see faults/test_mlflow.py."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.errors import StorageError, TrackingError
from kdray.evaluation.trial_record import TrialRecord
from kdray.storage import trust
from kdray.storage.files import write_json
from kdray.storage.paths import StoragePaths, SweepPaths
from kdray.tracking.database import make_database
from kdray.tracking.registry import Registry
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


def test_a_store_that_another_user_chose_receives_nothing_until_it_is_given(paths: SweepPaths) -> None:
    finish_without_server(paths, "http://127.0.0.1:9")
    trust.trusted_file().unlink()
    trust._accepted.clear()
    code, _, err = kdray("sync", paths.root)
    assert code == 2
    assert "names the MLflow store http://127.0.0.1:9, which you have not given to kdray on this machine" in err
    assert kdray("sync", paths.root, "--tracking-uri", "ftp://x")[0] == 2
    assert kdray("sync", paths.root, "--tracking-uri", default_uri(paths))[0] == 0


def artifacts_of(paths: SweepPaths) -> set[str]:
    """The names of all files that MLflow has received."""
    return {path.name for path in paths.tracking_artifacts.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["a file", "a folder", "the folder itself", "a pipe"])
def test_links_and_pipes_in_a_folder_are_not_published(paths: SweepPaths, kind: str) -> None:
    # In the storage: a link that leads out of it is refused before anything else is read.
    private = paths.storage / "private"
    private.mkdir()
    (private / "id_rsa").write_text("private")
    finish_without_server(paths, "http://127.0.0.1:9")
    report = paths.report
    if kind == "the folder itself":
        report.symlink_to(private)
    else:
        report.mkdir()
        (report / "report.md").write_text("a report")
    if kind == "a file":
        (report / "id_rsa").symlink_to(private / "id_rsa")
    elif kind == "a folder":
        (report / "keys").symlink_to(private)
    elif kind == "a pipe":
        os.mkfifo(report / "pipe")
    with paths.spool.open("a") as spool:
        spool.write('{"run": null, "artifacts": {"report": "report"}}\n')
    code, out, err = kdray("sync", paths.root, "--tracking-uri", default_uri(paths))
    if kind == "a pipe":  # it could stop each reader for ever, so the command does not begin
        assert code == 2
        assert f"{report / 'pipe'}: is no regular file" in err
        return
    assert code == 0, err
    assert f"Left out: {report}: " in out
    assert artifacts_of(paths) == set()


def test_a_database_of_somebody_else_does_not_choose_where_files_go(paths: SweepPaths, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    make_database(paths.tracking_database, tmp_path / "scratch")
    MlflowClient(default_uri(paths)).create_experiment("later", elsewhere.as_uri())
    sweep = ScriptedSweep(paths, Tracking(experiment="later"))
    paths.report.mkdir()
    (paths.report / "report.md").write_text("a report")
    sweep.figures(paths.report)
    sweep.trials(0)
    sweep.end()
    assert not elsewhere.exists()


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("name", ["art?/../../elsewhere", "art#/../../elsewhere", "art/../../elsewhere", "art;/x"])
def test_a_place_that_mlflow_reads_in_another_way_is_refused(tmp_path: Path, scheme: str, name: str) -> None:
    """MLflow takes a path with a question mark as it stands, where a URI ends before the question mark."""
    storage = StoragePaths(tmp_path / "storage")
    assert Tracking().may_write_to(f"{scheme}{storage.storage}/mlartifacts/1", storage)
    assert not Tracking().may_write_to(f"{scheme}{storage.storage}/{name}", storage)
    assert not Tracking().may_write_to("storage/mlartifacts", storage)


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_nothing_is_written_through_a_link_among_the_artifacts(paths: SweepPaths, tmp_path: Path, kind: str) -> None:
    """MLflow copies into a file that exists, also if it is a link to another file."""
    private = tmp_path.parent / f"{tmp_path.name}-private"
    private.mkdir()
    (private / "report.md").write_text("private")
    place = paths.storage / "mlartifacts" / "run"
    (place / "report").mkdir(parents=True)
    if kind == "a file":
        (place / "report" / "report.md").symlink_to(private / "report.md")
    else:
        (place / "report" / "inner").symlink_to(private)
    assert not Tracking().may_write_to(place.as_uri(), paths)
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "report.md").write_text("new")
    (source / "inner" / "report.md").write_text("new")
    # The attack is real: MLflow itself writes the file.
    get_artifact_repository(place.as_uri()).log_artifacts(str(source), "report")
    assert (private / "report.md").read_text() == "new"


def test_a_database_of_somebody_else_does_not_choose_where_a_student_goes(paths: SweepPaths, tmp_path: Path) -> None:
    make_database(paths.tracking_database, tmp_path / "scratch")
    client = MlflowClient(default_uri(paths))
    experiment = client.create_experiment("later", (tmp_path.parent / "elsewhere").as_uri())
    run_id = client.create_run(experiment).info.run_id
    registry = Registry("films", Tracking(patience_s=0), paths)
    written: list[Path] = []

    def write() -> Path:
        written.append(tmp_path)
        return tmp_path

    with pytest.raises(TrackingError, match="outside of the storage, so nothing is sent there"):
        registry.retry(lambda: registry.find_or_create_version("weights", run_id, {}, "", write))
    assert written == []


def test_a_database_that_is_a_link_is_refused(paths: SweepPaths, tmp_path: Path) -> None:
    paths.tracking_database.symlink_to(tmp_path.parent / "mail.db")
    with pytest.raises(StorageError, match=r"is a link to .*mail\.db, outside of"):
        ScriptedSweep(paths, Tracking())
