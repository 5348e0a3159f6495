"""A sweep in a bucket: its files there, resuming it on another machine, and reading it from any machine."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.errors import StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.search.claim import read_ledger
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.stages.shipping import Outcome
from kdray.storage import bucket_copies
from kdray.storage.bucket import FOLDER, BucketObject
from kdray.storage.bucket_copies import open_for_reading, sync_with_bucket
from kdray.storage.mirror import MIRROR_VARIABLE, mirror_of, send
from kdray.storage.paths import SweepPaths, storage_path, sweep_paths
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking
from tests.storage.bucket_server import BucketServer
from tests.tracking.scripted_sweep import runs_in, wait_until

MakeSweep = Callable[..., Sweep]
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
ONE_THREAD = SlotSettings(cpus=1)


class RecordingScreen(NullScreen):
    """Records the notes for the user."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def comparable_rows(trials: list[TrialRecord]) -> list[Any]:
    """The rows of the table without the metrics that depend on the clock."""

    def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in metrics.items() if name not in TIMES}

    return [
        (trial.number, trial.params, trial.state, [without_times(metrics) for metrics in trial.history])
        for trial in trials
    ]


@pytest.fixture
def run_tiny(make_sweep: MakeSweep, bucket: str) -> Callable[..., Outcome]:
    """A function that runs the tiny sweep in the bucket, with other values for the given fields of the sweep."""

    def run_in_bucket(screen: NullScreen | None = None, **fields: Any) -> Outcome:
        sweep = make_sweep(**{"slots": ONE_THREAD} | fields)
        return run(sweep, SweepPaths(storage_path(bucket), sweep.name), RunOptions(local=True), screen=screen)

    return run_in_bucket


@pytest.fixture
def switch_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which this process acts as another machine: its mirror is empty."""
    return lambda: monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "another"))


def test_sweep_in_a_bucket_has_the_results_and_files_of_a_sweep_in_a_folder(
    run_tiny: Callable[..., Outcome],
    make_sweep: MakeSweep,
    bucket: str,
    bucket_server: BucketServer,
    tmp_path: Path,
    switch_machine: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = run_tiny()
    plain = run(make_sweep(slots=ONE_THREAD), SweepPaths(tmp_path / "plain", "tiny"), RunOptions(local=True))
    assert comparable_rows(list(outcome.figures.records)) == comparable_rows(list(plain.figures.records))
    names = bucket_server.names(f"{bucket}/tiny")
    files = {path.relative_to(plain.paths.root).as_posix() for path in plain.paths.root.rglob("*") if path.is_file()}
    folders = {f"{name}/{FOLDER}" for name in ("chosen", "report")}
    folders |= {f"trials/{number:04d}/student/{FOLDER}" for number in plain.figures.front}
    front = tuple(f"trials/{number:04d}" for number in outcome.figures.front)
    assert all(name.startswith(front) for name in names if name.startswith("trials/"))
    others = {name for name in files | folders if not name.startswith(("trials/", "logs/"))}
    assert others == {name for name in names if not name.startswith(("trials/", "logs/"))}
    contents = b"".join(bucket_server.files.cat_file(f"{bucket}/tiny/{name}") for name in names)
    assert b"tester's secret" not in contents

    switch_machine()
    with open_for_reading(sweep_paths(f"{bucket}/tiny")) as paths:
        assert comparable_rows(read_ledger(paths).records()) == comparable_rows(list(plain.figures.records))
    result = CliRunner().invoke(app, ["show", f"{bucket}/tiny"])
    assert result.exit_code == 0, result.output
    assert "teacher" in result.output
    assert not mirror_of(bucket).exists()


class InterruptingScreen(RecordingScreen):
    """Raises KeyboardInterrupt, as Ctrl-C does, when `ended` trials have ended."""

    def __init__(self, ended: int) -> None:
        super().__init__()
        self.ended = ended

    def trials(self, records: Any, total: int | None, best: Any, quality: str) -> None:
        if sum(record.state != "running" for record in records) == self.ended:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_another_machine_resumes_with_the_results_of_an_undisturbed_sweep(
    run_tiny: Callable[..., Outcome],
    make_sweep: MakeSweep,
    bucket: str,
    bucket_server: BucketServer,
    tmp_path: Path,
    switch_machine: Callable[[], None],
) -> None:
    """A finished trial file in the bucket without a trial in the ledger is ignored; MLflow there has all trials."""
    with pytest.raises(KeyboardInterrupt):
        run_tiny(InterruptingScreen(2))
    files = bucket_server.files
    files.pipe_file(f"{bucket}/tiny/trials/0002/ended.json", b'[{"step": 1, "epoch": 1, "accuracy": 1.0}]')
    switch_machine()
    screen = RecordingScreen()
    outcome = run_tiny(screen, tracking=Tracking(patience_s=60))
    plain = run(make_sweep(slots=ONE_THREAD), SweepPaths(tmp_path / "plain", "tiny"), RunOptions(local=True))
    assert comparable_rows(list(outcome.figures.records)) == comparable_rows(list(plain.figures.records))
    database = mirror_of(bucket) / "mlflow.db"
    assert any(f"a file on this machine, {database}" in note for note in screen.notes)
    assert set(runs_in(f"sqlite:///{database}", "kdray")) == {None, "0", "1", "2"}


@pytest.mark.slow
def test_sweep_deleted_from_the_bucket_starts_again(
    run_tiny: Callable[..., Outcome], bucket: str, bucket_server: BucketServer
) -> None:
    first = run_tiny().figures
    bucket_server.files.rm(f"{bucket}/tiny", recursive=True)
    again = run_tiny().figures
    assert comparable_rows(list(again.records)) == comparable_rows(list(first.records))
    assert f"{bucket}/tiny/choice.json".removeprefix("s3://") in bucket_server.files.find(f"{bucket}/tiny")


@pytest.mark.slow
def test_files_of_dropped_trials_and_of_a_replaced_sweep_are_deleted_in_the_bucket(
    run_tiny: Callable[..., Outcome],
    make_sweep: MakeSweep,
    bucket: str,
    bucket_server: BucketServer,
    switch_machine: Callable[[], None],
) -> None:
    front = run_tiny().figures.front
    names = bucket_server.names(f"{bucket}/tiny/trials")
    assert {int(name.partition("/")[0]) for name in names} <= {0, 1, 2}
    assert {int(name.partition("/")[0]) for name in names} >= set(front)
    assert not [name for name in names if name.endswith(("checkpoint.pt", "ended.json"))]
    switch_machine()
    sweep = make_sweep(slots=ONE_THREAD, search=Search(trials=1, stopping=None))
    run(sweep, SweepPaths(storage_path(bucket), "tiny"), RunOptions(fresh=True, local=True))
    names = bucket_server.names(f"{bucket}/tiny/trials")
    assert {name.partition("/")[0] for name in names} == {"0000"}


def test_one_machine_fetches_each_shared_file_once_and_sends_none_again(
    run_tiny: Callable[..., Outcome], bucket: str, bucket_server: BucketServer, switch_machine: Callable[[], None]
) -> None:
    run_tiny()
    switch_machine()
    bucket_server.requests.clear()
    run_tiny(name="again")
    for name in bucket_server.names(f"{bucket}/cache"):
        if not name.endswith(FOLDER):
            assert bucket_server.count_requests("GET", f"{bucket}/cache/{name}") <= 1, name
    assert bucket_server.count_requests("PUT", f"{bucket}/cache/") == 0
    shards = [name for name in bucket_server.names(f"{bucket}/cache") if name.startswith("transfers/")]
    assert shards
    assert all(bucket_server.count_requests("PUT", f"{bucket}/cache/{name}") == 0 for name in shards)


@pytest.mark.slow
def test_sync_and_ui_on_another_machine(
    run_tiny: Callable[..., Outcome], bucket: str, tmp_path: Path, switch_machine: Callable[[], None]
) -> None:
    unreachable = "http://127.0.0.1:9"
    run_tiny(tracking=Tracking(uri=unreachable, patience_s=0))
    switch_machine()
    refused = CliRunner().invoke(app, ["ui", bucket])
    assert refused.exit_code == 2
    synced = CliRunner().invoke(app, ["sync", f"{bucket}/tiny", "--tracking-uri", f"sqlite:///{tmp_path}/server.db"])
    assert synced.exit_code == 0, synced.output
    assert set(runs_in(f"sqlite:///{tmp_path}/server.db", "kdray")) == {None, "0", "1", "2"}
    missing = CliRunner().invoke(app, ["show", f"{bucket}/none"])
    assert missing.exit_code == 2


@pytest.mark.slow
def test_warm_start_from_a_sweep_in_a_bucket(run_tiny: Callable[..., Outcome], bucket: str) -> None:
    run_tiny()
    screen = RecordingScreen()
    run_tiny(screen, name="warm", search=Search(trials=1, stopping=None, warm_start=f"{bucket}/tiny"))
    assert any(f"The sampler knows 3 of the 3 trials of {bucket}/tiny" in note for note in screen.notes)


def test_sweep_ends_with_the_bucket_in_the_message_when_the_bucket_is_deleted(
    run_tiny: Callable[..., Outcome], bucket: str, bucket_server: BucketServer
) -> None:
    class BucketDeletingScreen(InterruptingScreen):
        """Deletes the bucket once, when `ended` trials have ended."""

        def trials(self, records: Any, total: int | None, best: Any, quality: str) -> None:
            try:
                super().trials(records, total, best, quality)
            except KeyboardInterrupt:
                bucket_server.files.rm(bucket.removesuffix("/team"), recursive=True)
                self.ended = -1

    with pytest.raises(StorageError, match=r"storage s3://kdray-\S+: there is no such bucket") as caught:
        run_tiny(BucketDeletingScreen(1))
    assert caught.value.exit_code == 2
    local = SweepPaths(mirror_of(bucket), "tiny")
    assert [record.state for record in read_ledger(local).records()] == ["completed", "running"]


@pytest.fixture
def paths(bucket: str) -> SweepPaths:
    return SweepPaths(mirror_of(bucket), "tiny")


def test_growing_files_are_copied_while_the_sweep_runs(
    paths: SweepPaths, bucket: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_copies, "COPY_S", 0.05)
    paths.logs.mkdir(parents=True)
    with sync_with_bucket(paths, print):
        paths.journal.parent.mkdir()
        for text in ("1\n", "1\n2\n"):
            paths.journal.write_text(text)
            wait_until(
                lambda text=text: text_in_bucket(bucket_server, bucket, "ledger/journal.log") == text, 20, "not copied"
            )
        (paths.logs / "kdray.log").write_text("last line")
        paths.spool.parent.mkdir()
        paths.spool.write_text("unsent")
        wait_until(lambda: text_in_bucket(bucket_server, bucket, "tracking/spool.jsonl") == "unsent", 20, "not copied")
        paths.spool.unlink()
    assert text_in_bucket(bucket_server, bucket, "logs/kdray.log") == "last line"
    assert text_in_bucket(bucket_server, bucket, "tracking/spool.jsonl") is None


def test_unsent_calls_stay_until_another_session_has_sent_them(
    paths: SweepPaths, bucket: str, bucket_server: BucketServer
) -> None:
    """This machine died with unsent calls to MLflow; the bucket has an older, shorter copy of the spool."""
    for file, text in ((paths.settings, "{}"), (paths.tracking_target, "this session"), (paths.spool, "1\n")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        send(file, file)
    paths.spool.write_text("1\n2\n")
    with sync_with_bucket(paths, print):
        assert paths.spool.read_text() == "1\n2\n"
    root = f"{bucket}/tiny/tracking"
    bucket_server.files.pipe_file(f"{root}/{paths.tracking_target.name}", b"another session, which has sent all calls")
    bucket_server.files.rm(f"{root}/{paths.spool.name}")
    with sync_with_bucket(paths, print):
        assert not paths.spool.exists()


def text_in_bucket(server: BucketServer, bucket: str, name: str) -> str | None:
    """The content of the sweep's file with this name; None if the bucket does not have it."""
    url = f"{bucket}/tiny/{name}"
    return server.files.cat_file(url).decode() if server.files.exists(url) else None


def test_unreachable_bucket_gives_one_note_and_an_error_at_the_end(
    paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("storage s3://bucket: the bucket cannot be used.")

    monkeypatch.setattr(bucket_copies, "COPY_S", 0.02)
    notes: list[str] = []

    def write_journal() -> None:
        with sync_with_bucket(paths, notes.append):
            monkeypatch.setattr(bucket_copies, "send", fail)
            paths.journal.parent.mkdir(parents=True)
            for number in range(5):
                paths.journal.write_text(f"{number}")
                time.sleep(0.1)

    with pytest.raises(StorageError, match="cannot be used"):
        write_journal()
    assert len(notes) == 1


def test_the_error_that_ended_the_sweep_is_raised_although_the_last_copy_fails(
    paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("storage s3://bucket: the bucket cannot be used.")

    def interrupt() -> None:
        with sync_with_bucket(paths, print):
            paths.journal.parent.mkdir(parents=True)
            paths.journal.write_text("a trial")
            monkeypatch.setattr(bucket_copies, "send", fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_target_that_is_no_text_is_copied_as_it_is(bucket: str) -> None:
    paths = sweep_paths(f"{bucket}/films")
    for path, content in ((paths.settings, b"{}"), (paths.tracking_target, b"\xff\xfe")):
        BucketObject(f"{bucket}/films/{path.relative_to(paths.root)}").write(content)
    paths.root.mkdir(parents=True)
    with sync_with_bucket(paths, lambda note: None):
        assert paths.tracking_target.read_bytes() == b"\xff\xfe"
