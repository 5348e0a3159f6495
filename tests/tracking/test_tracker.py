"""A sweep in MLflow, read from a real store in the way of a user's notebook."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from kdray.errors import SpecError
from kdray.evaluation.trial_record import TrialRecord
from kdray.storage.paths import StoragePaths, SweepPaths
from kdray.tracking.ids import TrackedSweep
from kdray.tracking.mlflow_tracker import open_tracker
from kdray.tracking.origin import source_tags, versions
from kdray.tracking.page import ui_command
from kdray.tracking.settings import Tracking, default_uri
from kdray.tracking.tracker import NullTracker, Tracker
from tests.tracking.scripted_sweep import wait_until

SETTINGS = {"student.layers": "evenly", "training.epochs": 3, "distillation.logit_mse": 0.0}
TAGS = {"kdray.task": "text_classification", "kdray.teacher": "tiny"}


def trial(number: int = 7, **changes: object) -> TrialRecord:
    params = {"student.depth": 2, "distillation.temperature": 3.5, "distillation.alpha": 0.7}
    history = tuple(
        {"epoch": float(n), "step": 216.0 * n, "accuracy": accuracy, "retention": accuracy / 0.9, "train_seconds": 5.0}
        for n, accuracy in enumerate((0.81, 0.82, 0.83), start=1)
    )
    costs = {"latency_ms": 1.6, "speedup": 5.1, "parameters": 15e6}
    record = TrialRecord(
        number=number,
        params=params,
        state="completed",
        history=history,
        costs=costs,
        started=1_760_000_000.0,
        ended=1_760_000_030.0,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoragePaths:
    """One storage for the module, because creating the schema of the database takes seconds."""
    return StoragePaths(tmp_path_factory.mktemp("storage"))


def make_tracker(store: StoragePaths, experiment: str, quality: str = "accuracy") -> Tracker:
    """The tracker of the sweep `quickstart`; each test has its own experiment, whose name is also the sweep's key."""
    return open_tracker(
        Tracking(experiment=experiment), SweepPaths(store.storage, "quickstart"), TrackedSweep(experiment, quality)
    )


def start_sweep(store: StoragePaths, experiment: str, records: list[TrialRecord], run_id: str | None = None) -> Tracker:
    """Start the sweep `quickstart` and report these trials."""
    tracker = make_tracker(store, experiment)
    tracker.start_sweep({"search.trials": 24}, TAGS, run_id)
    for record in records:
        tracker.trial(record, SETTINGS, TAGS)
    return tracker


def wait_until_sent(store: StoragePaths, limit_s: float = 60) -> None:
    spool = SweepPaths(store.storage, "quickstart").spool
    wait_until(lambda: spool.stat().st_size == 0, limit_s, "the spool was not emptied")


def runs_by_name(store: StoragePaths, experiment: str) -> dict[str, Run]:
    client = MlflowClient(default_uri(store))
    entity = client.get_experiment_by_name(experiment)
    assert entity is not None
    return {run.info.run_name: run for run in client.search_runs([entity.experiment_id])}


def history(store: StoragePaths, run: Run, metric: str) -> list[tuple[int, float]]:
    """The steps and values of a metric."""
    points = MlflowClient(default_uri(store)).get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in points]


def test_a_trial_is_a_nested_run_with_all_values_for_a_comparison(store: StoragePaths):
    start_sweep(store, "nested", [trial()]).end_sweep("finished")
    runs = runs_by_name(store, "nested")
    parent, child = runs["quickstart"], runs["trial 007 depth 2"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params == {
        "student.layers": "evenly",
        "training.epochs": "3",
        "distillation.logit_mse": "0.0",
        "student.depth": "2",
        "distillation.temperature": "3.5",
        "distillation.alpha": "0.7",
    }
    expected = {"accuracy": 0.83, "retention": 0.83 / 0.9, "latency_ms": 1.6, "speedup": 5.1, "parameters": 15e6}
    assert {name: child.data.metrics[name] for name in expected} == pytest.approx(expected)
    assert history(store, child, "accuracy") == [(216, 0.81), (432, 0.82), (648, 0.83)]
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert child.info.end_time - child.info.start_time == 30_000
    assert {**TAGS, "kdray.sweep": "quickstart", "kdray.status": "completed"}.items() <= child.data.tags.items()
    assert parent.data.params == {"search.trials": "24"}


def test_stopped_and_failed_trials_have_different_statuses_and_a_reason(store: StoragePaths):
    stopped, failed = trial(1, state="stopped"), trial(2, state="failed", history=(), error="loss is nan at epoch 2")
    start_sweep(store, "ends", [stopped, failed]).end_sweep("finished")
    runs = runs_by_name(store, "ends")
    assert runs["trial 001 depth 2"].info.status == "KILLED"
    assert runs["trial 001 depth 2"].data.tags["kdray.status"] == "stopped"
    assert runs["trial 002 depth 2"].info.status == "FAILED"
    assert runs["trial 002 depth 2"].data.tags["kdray.error"] == "loss is nan at epoch 2"


def test_a_repeated_record_writes_nothing_and_a_longer_one_adds_the_rest(store: StoragePaths):
    complete = trial()
    partial = trial(state="running", history=complete.history[:1], ended=0.0)
    start_sweep(store, "again", [partial, partial, complete, complete]).end_sweep("finished")
    runs = runs_by_name(store, "again")
    assert len(runs) == 2
    assert [step for step, _ in history(store, runs["trial 007 depth 2"], "accuracy")] == [216, 432, 648]


def test_a_resumed_sweep_continues_the_same_runs(store: StoragePaths):
    complete = trial()
    partial = trial(state="running", history=complete.history[:2], ended=0.0)
    first = start_sweep(store, "resumed", [partial, trial(8)])
    first.end_sweep("interrupted")
    before = first.run_ids()
    assert {run.info.status for run in runs_by_name(store, "resumed").values()} == {"KILLED", "FINISHED"}

    second = start_sweep(store, "resumed", [replace(complete, started=complete.started + 60), trial(9)], before[None])
    second.sweep(params={"search.trials": 48})
    second.end_sweep("finished")
    assert second.run_ids()[7] == before[7]
    runs = runs_by_name(store, "resumed")
    assert sorted(runs) == ["quickstart", "trial 007 depth 2", "trial 008 depth 2", "trial 009 depth 2"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [step for step, _ in history(store, runs["trial 007 depth 2"], "accuracy")] == [216, 432, 648]
    assert runs["quickstart"].data.tags["changed.search.trials"] == "48"


def test_the_tag_of_a_user_without_a_name_is_the_user_id(monkeypatch: pytest.MonkeyPatch):
    """A container that was started with `-u 12345` has no name for its user."""
    monkeypatch.setattr("getpass.getuser", lambda: {}["no such user"])
    assert source_tags()["mlflow.user"] == str(os.getuid())


def test_a_new_report_in_the_same_folder_replaces_the_old_one(store: StoragePaths):
    """The path of the folder alone does not show that its files have changed."""
    report = SweepPaths(store.storage, "quickstart").report
    report.mkdir(parents=True)
    tracker = start_sweep(store, "report", [])
    for text in ("the first choice", "the second choice"):
        (report / "report.md").write_text(text)
        tracker.log_artifacts(report, "report")
        wait_until_sent(store)
    tracker.end_sweep("finished")
    run = runs_by_name(store, "report")["quickstart"]
    client = MlflowClient(default_uri(store))
    assert Path(client.download_artifacts(run.info.run_id, "report/report.md")).read_text() == "the second choice"


def test_a_value_that_a_resumed_sweep_measures_again_replaces_the_old_one(store: StoragePaths):
    for value, ending in ((0.8, "interrupted"), (0.8, "interrupted"), (0.9, "finished")):
        tracker = start_sweep(store, "measured again", [])
        tracker.sweep(metrics={"chosen.test.accuracy": value})
        tracker.end_sweep(ending)  # type: ignore[arg-type]
    run = runs_by_name(store, "measured again")["quickstart"]
    assert run.data.metrics == {"chosen.test.accuracy": 0.9}
    assert [value for _, value in history(store, run, "chosen.test.accuracy")] == [0.8, 0.9]


def test_a_deleted_run_of_the_sweep_is_created_again_as_the_parent_of_its_trials(store: StoragePaths):
    first = start_sweep(store, "deleted-run", [trial(7), trial(8)])
    first.end_sweep("finished")
    before = first.run_ids()
    MlflowClient(default_uri(store)).delete_run(str(before[None]))
    second = start_sweep(store, "deleted-run", [trial(7), trial(8)], before[None])
    second.end_sweep("finished")
    runs = runs_by_name(store, "deleted-run")
    assert runs["quickstart"].info.run_id != before[None]
    assert runs["quickstart"].data.params == {"search.trials": "24"}
    children = [runs["trial 007 depth 2"], runs["trial 008 depth 2"]]
    assert [run.info.run_id for run in children] == [before[7], before[8]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {runs["quickstart"].info.run_id}


def test_a_run_of_a_trial_that_is_deleted_during_the_sweep_is_created_again_with_all_values(store: StoragePaths):
    complete = trial()
    tracker = start_sweep(store, "deleted-trial", [trial(state="running", history=complete.history[:1], ended=0.0)])
    wait_until_sent(store)
    before = str(tracker.run_ids()[7])
    MlflowClient(default_uri(store)).delete_run(before)
    tracker.trial(complete, SETTINGS, TAGS)
    tracker.end_sweep("finished")
    run = runs_by_name(store, "deleted-trial")["trial 007 depth 2"]
    assert run.info.run_id == tracker.run_ids()[7] != before
    assert history(store, run, "accuracy") == [(216, 0.81), (432, 0.82), (648, 0.83)]
    assert run.data.params["student.layers"] == "evenly"


def test_a_deleted_experiment_is_restored(store: StoragePaths):
    first = start_sweep(store, "deleted", [trial()])
    first.end_sweep("finished")
    client = MlflowClient(default_uri(store))
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    second = start_sweep(store, "deleted", [trial(), trial(8)], first.run_ids()[None])
    second.end_sweep("finished")
    assert first.run_ids().items() <= second.run_ids().items()
    assert len(runs_by_name(store, "deleted")) == 3


def test_folders_become_artifacts_in_the_storage(store: StoragePaths):
    student = SweepPaths(store.storage, "quickstart").student(7)
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    tracker = start_sweep(store, "artifacts", [trial()])
    tracker.log_artifacts(student, "student", trial=7)
    tracker.log_artifacts(student, "chosen")
    tracker.end_sweep("finished")
    run_id = runs_by_name(store, "artifacts")["trial 007 depth 2"].info.run_id
    files = MlflowClient(default_uri(store)).list_artifacts(run_id, "student")
    assert [file.path for file in files] == ["student/config.json"]
    assert len(list(store.tracking_artifacts.glob("artifacts/*/artifacts/*/config.json"))) == 2


def test_the_page_of_the_sweep_has_a_column_for_each_searched_setting_and_usual_metric(store: StoragePaths):
    tracker = start_sweep(store, "page", [trial()])
    tracker.end_sweep("finished")
    experiment = MlflowClient(default_uri(store)).get_experiment_by_name("page")
    assert experiment is not None
    page = tracker.page_path()
    assert page is not None
    assert f"/experiments/{experiment.experiment_id}/runs?viewStateShareKey=quickstart" in page
    view = json.loads(experiment.tags["mlflow.sharedViewState.quickstart"])
    assert view["selectedColumns"] == [
        "metrics.`accuracy`",
        "metrics.`retention`",
        "metrics.`latency_ms`",
        "metrics.`speedup`",
        "metrics.`parameters`",
        "params.`student.depth`",
        "params.`distillation.temperature`",
        "params.`distillation.alpha`",
        "tags.`kdray.status`",
    ]


def test_artifacts_of_a_sweep_with_another_database_are_in_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are not in the working directory of the command."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    paths, tracking = SweepPaths(tmp_path / "storage", "quickstart"), Tracking(uri=f"sqlite:///{tmp_path}/team.db")
    tracker = open_tracker(tracking, paths, TrackedSweep("key", "accuracy"))
    tracker.start_sweep({}, {})
    tracker.end_sweep("finished")
    experiment = MlflowClient(str(tracking.uri)).get_experiment_by_name("kdray")
    assert experiment is not None
    assert experiment.artifact_location == f"{paths.tracking_artifacts.as_uri()}/kdray"
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(("quality", "best"), [("span_f1", "2"), ("mse", "1")])
def test_the_page_of_the_sweep_lists_its_trials_with_the_best_first(store: StoragePaths, quality: str, best: str):
    """It lists neither controls nor the sweep's own run, below which the UI would fold the trials."""
    tracker = make_tracker(store, f"best {quality} first", quality)
    tracker.start_sweep({}, TAGS)
    for number, value, role in ((1, 0.8, "search"), (2, 0.9, "search"), (3, 0.85, "labels only")):
        history = ({"epoch": 1.0, "step": 1.0, quality: value, "retention": 0.9},)
        tracker.trial(trial(number=number, history=history), SETTINGS, TAGS | {"kdray.role": role})
    tracker.end_sweep("finished")
    client = MlflowClient(default_uri(store))
    experiment = client.get_experiment_by_name(f"best {quality} first")
    assert experiment is not None
    view = json.loads(experiment.tags["mlflow.sharedViewState.quickstart"])
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    runs = client.search_runs([experiment.experiment_id], view["searchFilter"], order_by=[order])
    assert [run.data.tags["kdray.trial"] for run in runs] == [best, "1" if best == "2" else "2"]
    assert view["selectedColumns"][0] == f"metrics.`{quality}`"


def test_more_values_than_one_call_accepts_are_written_in_several_calls(store: StoragePaths):
    steps = tuple({"epoch": n / 100, "step": float(n), "accuracy": 0.5} for n in range(1, 901))
    many = {f"group.setting_{n}": "x" * 5999 for n in range(120)}
    tracker = make_tracker(store, "many")
    tracker.start_sweep(many, {f"tag{n}": "y" * 9000 for n in range(60)})
    tracker.trial(trial(history=steps), {}, {})
    tracker.end_sweep("finished")
    runs = runs_by_name(store, "many")
    assert len(runs["quickstart"].data.params) == 120
    assert runs["quickstart"].data.tags["tag59"].endswith("…")
    assert len(history(store, runs["trial 007 depth 2"], "accuracy")) == 900


def test_no_password_is_written(store: StoragePaths):
    tracker = make_tracker(store, "passwords")
    tracker.start_sweep({"search.storage": "postgresql://me:secret@db/x"}, {"uri": "https://u:secret@h"})
    tracker.end_sweep("finished")
    run = runs_by_name(store, "passwords")["quickstart"]
    assert run.data.params["search.storage"] == "postgresql://***@db/x"
    assert "secret" not in str(run.data.tags)


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "never answers"])
def test_a_dead_server_delays_nothing_and_is_reported_once(silent: bool, tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()  # connections are accepted, but no request is answered
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        paths, notes = SweepPaths(tmp_path, "quickstart"), list[str]()
        tracker = open_tracker(
            Tracking(uri=uri, timeout_s=1, patience_s=4), paths, TrackedSweep("key", "accuracy"), notes.append
        )
        start = time.monotonic()
        tracker.start_sweep({}, {})
        for number in range(100):
            tracker.trial(trial(number), SETTINGS, TAGS)
        assert time.monotonic() - start < 1
        tracker.end_sweep("finished")
    assert time.monotonic() - start < 12
    assert tracker.run_ids() == {}
    reason = "no answer within 1 s" if silent else "the connection is refused"
    first, last = notes
    assert first.startswith(f"MLflow at {uri} cannot be written to ({reason}). The sweep continues")
    assert f"did not take the last changes of 101 of 101 runs ({reason})" in last
    assert last.endswith(f"kdray sync {paths.root}")
    assert paths.spool.stat().st_size > 0


def test_a_run_that_the_store_refuses_delays_neither_the_other_runs_nor_the_end(store: StoragePaths):
    paths, notes = SweepPaths(store.storage, "refused"), list[str]()
    tracker = open_tracker(
        Tracking(experiment="refused", patience_s=3), paths, TrackedSweep("refused", "accuracy"), notes.append
    )
    tracker.start_sweep({"search.trials": 24}, {})
    for record in (trial(7), trial(8, costs={"no$name": 1.0}), trial(9)):
        tracker.trial(record, SETTINGS, TAGS)
    wait_until(lambda: 9 in tracker.run_ids(), 60, "the last trial has no run")
    start = time.monotonic()
    tracker.end_sweep("finished")
    assert time.monotonic() - start < 30
    runs = runs_by_name(paths, "refused")
    assert {run.info.status for name, run in runs.items() if not name.startswith("trial 008")} == {"FINISHED"}
    assert len(runs["trial 009 depth 2"].data.metrics) > 5
    assert "did not take the last changes of 1 of 4 runs" in notes[-1]
    assert "no$name" in notes[-1]


def test_changes_that_a_server_missed_are_sent_when_it_answers_again(
    store: StoragePaths, monkeypatch: pytest.MonkeyPatch
):
    tracker = make_tracker(store, "outage")
    real, failures = MlflowClient.log_batch, iter(range(2))

    def fail_twice(self: MlflowClient, *args: object, **kwargs: object) -> object:
        if next(failures, None) is not None:
            raise ConnectionError("no server")
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_batch", fail_twice)
    tracker.start_sweep({"search.trials": 24}, {})
    tracker.trial(trial(), SETTINGS, TAGS)
    wait_until_sent(store)
    tracker.end_sweep("finished")
    runs = runs_by_name(store, "outage")
    assert len(runs) == 2
    assert runs["quickstart"].data.params == {"search.trials": "24"}
    assert len(history(store, runs["trial 007 depth 2"], "accuracy")) == 3


def test_a_client_in_a_process_of_its_own_writes_the_same(store: StoragePaths):
    paths = SweepPaths(store.storage, "quickstart")
    sweep = TrackedSweep("process", "accuracy")
    tracker = open_tracker(Tracking(experiment="process"), paths, sweep, own_process=True)
    tracker.start_sweep({"search.trials": 24}, TAGS)
    tracker.trial(trial(), SETTINGS, TAGS)
    tracker.end_sweep("finished")
    start_sweep(store, "thread", [trial()]).end_sweep("finished")
    in_process, in_thread = runs_by_name(store, "process"), runs_by_name(store, "thread")
    assert sorted(in_process) == sorted(in_thread)
    for name, run in in_process.items():
        assert run.data.metrics == in_thread[name].data.metrics
        assert run.data.params == in_thread[name].data.params
        assert run.info.status == "FINISHED"
    assert not client_processes()


def client_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "kdray.tracking.client_process" in child.cmdline()]


def test_a_client_process_that_dies_loses_nothing(store: StoragePaths):
    paths = SweepPaths(store.storage, "quickstart")
    tracker = open_tracker(Tracking(experiment="dies"), paths, TrackedSweep("dies", "accuracy"), own_process=True)
    tracker.start_sweep({"search.trials": 24}, TAGS)
    tracker.trial(trial(1), SETTINGS, TAGS)
    wait_until_sent(store)
    (process,) = client_processes()
    process.kill()
    tracker.trial(trial(2), SETTINGS, TAGS)
    wait_until_sent(store)
    tracker.end_sweep("finished")
    runs = runs_by_name(store, "dies")
    assert sorted(runs) == ["quickstart", "trial 001 depth 2", "trial 002 depth 2"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert not client_processes()


def test_tracking_can_be_disabled_and_an_unknown_store_is_refused(tmp_path: Path):
    sweep = TrackedSweep("key", "accuracy")
    assert isinstance(open_tracker(Tracking(enabled=False), SweepPaths(tmp_path, "quickstart"), sweep), NullTracker)
    with pytest.raises(SpecError, match=r"Tracking\.uri: MLflow has no store at 'ftp://x'; allowed: http://"):
        Tracking(uri="ftp://x")


def test_the_ui_listens_on_the_loopback_interface_only(tmp_path: Path):
    command = ui_command(tmp_path, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{tmp_path}/mlflow.db" in command


def test_the_versions_are_known():
    assert versions()["version.torch"].startswith("2.")
