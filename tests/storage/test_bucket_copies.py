"""A sweep in a bucket: what lies there at its end, going on from another machine, looking at it from anywhere."""

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
from kdray.storage import bucket_copies as records
from kdray.storage.bucket import FOLDER
from kdray.storage.bucket_copies import open_for_reading, sync_with_bucket
from kdray.storage.mirror import ROOT, mirror_of, send
from kdray.storage.paths import SweepPaths, storage_path, sweep_paths
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking
from tests.storage.bucket_server import BucketServer
from tests.tracking.scripted_sweep import runs_in, wait_until

MakeSweep = Callable[..., Sweep]
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
ONE_THREAD = SlotSettings(cpus=1)


class Noting(NullScreen):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def numbers(trials: list[TrialRecord]) -> list[Any]:
    """All of the table but what a clock says."""
    return [
        (r.number, r.params, r.state, [{k: v for k, v in metrics.items() if k not in TIMES} for metrics in r.history])
        for r in trials
    ]


@pytest.fixture
def go(make_sweep: MakeSweep, bucket: str) -> Callable[..., Outcome]:
    """Run the tiny sweep with these settings (by field) in the bucket, from the machine that this one is now."""

    def run_it(screen: NullScreen | None = None, **fields: Any) -> Outcome:
        sweep = make_sweep(**{"slots": ONE_THREAD} | fields)
        return run(sweep, SweepPaths(storage_path(bucket), sweep.name), RunOptions(local=True), screen=screen)

    return run_it


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on this process is a machine that has nothing of any bucket."""
    return lambda: monkeypatch.setenv(ROOT, str(tmp_path / "another"))


def test_a_sweep_in_a_bucket_is_a_sweep(
    go: Callable[..., Outcome],
    make_sweep: MakeSweep,
    bucket: str,
    bucket_server: BucketServer,
    tmp_path: Path,
    another_machine: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = go()
    plain = run(make_sweep(slots=ONE_THREAD), SweepPaths(tmp_path / "plain", "tiny"), RunOptions(local=True))
    assert numbers(list(outcome.figures.records)) == numbers(list(plain.figures.records))
    there = bucket_server.names(f"{bucket}/tiny")
    files = {path.relative_to(plain.paths.root).as_posix() for path in plain.paths.root.rglob("*") if path.is_file()}
    folders = {f"{name}/{FOLDER}" for name in ("chosen", "report")}
    folders |= {f"trials/{number:04d}/student/{FOLDER}" for number in plain.figures.front}
    kept = {f"trials/{number:04d}" for number in outcome.figures.front}
    assert {name for name in there if name.startswith("trials/")} == {
        name for name in there if name.startswith(tuple(kept))
    }
    others = {name for name in files | folders if not name.startswith(("trials/", "logs/"))}
    assert others == {name for name in there if not name.startswith(("trials/", "logs/"))}
    everything = b"".join(bucket_server.files.cat_file(f"{bucket}/tiny/{name}") for name in there)
    assert b"tester's secret" not in everything

    another_machine()
    with open_for_reading(sweep_paths(f"{bucket}/tiny")) as paths:
        assert numbers(read_ledger(paths).records()) == numbers(list(plain.figures.records))
    shown = CliRunner().invoke(app, ["show", f"{bucket}/tiny"])
    assert shown.exit_code == 0, shown.output
    assert "teacher" in shown.output
    assert not mirror_of(bucket).exists()


class Interrupting(Noting):
    """Is a Ctrl-C when so many trials have ended."""

    def __init__(self, ended: int) -> None:
        super().__init__()
        self.ended = ended

    def trials(self, records: Any, total: int | None, best: Any) -> None:
        if sum(record.state != "running" for record in records) == self.ended:
            raise KeyboardInterrupt


def test_another_machine_goes_on_and_a_lost_ledger_misleads_nobody(
    go: Callable[..., Outcome],
    make_sweep: MakeSweep,
    bucket: str,
    bucket_server: BucketServer,
    tmp_path: Path,
    another_machine: Callable[[], None],
) -> None:
    """The table is that of a sweep that nothing befell; MLflow on the other machine has all of it."""
    with pytest.raises(KeyboardInterrupt):
        go(Interrupting(2))
    files = bucket_server.files
    files.pipe_file(f"{bucket}/tiny/trials/0002/ended.json", b'[{"step": 1, "epoch": 1, "accuracy": 1.0}]')
    another_machine()
    screen = Noting()
    outcome = go(screen, tracking=Tracking(patience_s=60))
    plain = run(make_sweep(slots=ONE_THREAD), SweepPaths(tmp_path / "plain", "tiny"), RunOptions(local=True))
    assert numbers(list(outcome.figures.records)) == numbers(list(plain.figures.records))
    database = mirror_of(bucket) / "mlflow.db"
    assert any(f"a file of this machine, {database}" in note for note in screen.notes)
    assert set(runs_in(f"sqlite:///{database}", "kdray")) == {None, "0", "1", "2"}


def test_a_sweep_that_is_removed_from_the_bucket_is_begun_anew(
    go: Callable[..., Outcome], bucket: str, bucket_server: BucketServer
) -> None:
    first = go().figures
    bucket_server.files.rm(f"{bucket}/tiny", recursive=True)
    again = go().figures
    assert numbers(list(again.records)) == numbers(list(first.records))
    assert f"{bucket}/tiny/choice.json".removeprefix("s3://") in bucket_server.files.find(f"{bucket}/tiny")


def test_what_is_dropped_and_what_is_fresh_is_gone_there_too(
    go: Callable[..., Outcome],
    make_sweep: MakeSweep,
    bucket: str,
    bucket_server: BucketServer,
    another_machine: Callable[[], None],
) -> None:
    front = go().figures.front
    names = bucket_server.names(f"{bucket}/tiny/trials")
    assert {int(name.partition("/")[0]) for name in names} <= {0, 1, 2}
    assert {int(name.partition("/")[0]) for name in names} >= set(front)
    assert not [name for name in names if name.endswith(("checkpoint.pt", "ended.json"))]
    another_machine()
    sweep = make_sweep(slots=ONE_THREAD, search=Search(trials=1, stopping=None))
    run(sweep, SweepPaths(storage_path(bucket), "tiny"), RunOptions(fresh=True, local=True))
    names = bucket_server.names(f"{bucket}/tiny/trials")
    assert {name.partition("/")[0] for name in names} == {"0000"}


def test_nothing_is_fetched_twice_by_one_machine(
    go: Callable[..., Outcome], bucket: str, bucket_server: BucketServer, another_machine: Callable[[], None]
) -> None:
    go()
    another_machine()
    bucket_server.requests.clear()
    go(name="again")
    for name in bucket_server.names(f"{bucket}/cache"):
        if not name.endswith(FOLDER):
            assert bucket_server.asked("GET", f"{bucket}/cache/{name}") <= 1, name
    assert bucket_server.asked("PUT", f"{bucket}/cache/") == 0
    shards = [name for name in bucket_server.names(f"{bucket}/cache") if name.startswith("transfers/")]
    assert shards
    assert all(bucket_server.asked("PUT", f"{bucket}/cache/{name}") == 0 for name in shards)


def test_sync_and_ui_from_another_machine(
    go: Callable[..., Outcome], bucket: str, tmp_path: Path, another_machine: Callable[[], None]
) -> None:
    nobody = "http://127.0.0.1:9"
    go(tracking=Tracking(uri=nobody, patience_s=0))
    another_machine()
    refused = CliRunner().invoke(app, ["ui", bucket])
    assert refused.exit_code == 2
    synced = CliRunner().invoke(app, ["sync", f"{bucket}/tiny", "--tracking-uri", f"sqlite:///{tmp_path}/server.db"])
    assert synced.exit_code == 0, synced.output
    assert set(runs_in(f"sqlite:///{tmp_path}/server.db", "kdray")) == {None, "0", "1", "2"}
    missing = CliRunner().invoke(app, ["show", f"{bucket}/none"])
    assert missing.exit_code == 2


def test_warm_start_reads_another_sweep_of_a_bucket(go: Callable[..., Outcome], bucket: str) -> None:
    go()
    screen = Noting()
    go(screen, name="warm", search=Search(trials=1, stopping=None, warm_start=f"{bucket}/tiny"))
    assert any(f"The sampler knows 3 of the 3 trials of {bucket}/tiny" in note for note in screen.notes)


def test_a_bucket_that_goes_away_ends_the_sweep_with_its_name(
    go: Callable[..., Outcome], bucket: str, bucket_server: BucketServer
) -> None:
    class Removing(Interrupting):
        def trials(self, records: Any, total: int | None, best: Any) -> None:
            try:
                super().trials(records, total, best)
            except KeyboardInterrupt:
                bucket_server.files.rm(bucket.removesuffix("/team"), recursive=True)
                self.ended = -1

    with pytest.raises(StorageError, match=r"storage s3://kdray-\S+: there is no such bucket") as caught:
        go(Removing(1))
    assert caught.value.exit_code == 2
    local = SweepPaths(mirror_of(bucket), "tiny")
    assert [record.state for record in read_ledger(local).records()] == ["completed", "running"]


@pytest.fixture
def paths(bucket: str) -> SweepPaths:
    return SweepPaths(mirror_of(bucket), "tiny")


def test_what_grows_is_copied_while_it_grows(
    paths: SweepPaths, bucket: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "COPY_S", 0.05)
    paths.logs.mkdir(parents=True)
    with sync_with_bucket(paths, print):
        paths.journal.parent.mkdir()
        for text in ("1\n", "1\n2\n"):
            paths.journal.write_text(text)
            wait_until(lambda text=text: there(bucket_server, bucket, "ledger/journal.log") == text, 20, "not copied")
        (paths.logs / "kdray.log").write_text("said at the end")
        paths.spool.parent.mkdir()
        paths.spool.write_text("unsent")
        wait_until(lambda: there(bucket_server, bucket, "tracking/spool.jsonl") == "unsent", 20, "not copied")
        paths.spool.unlink()
    assert there(bucket_server, bucket, "logs/kdray.log") == "said at the end"
    assert there(bucket_server, bucket, "tracking/spool.jsonl") is None


def test_calls_left_here_are_kept_until_another_session_has_gone_on(
    paths: SweepPaths, bucket: str, bucket_server: BucketServer
) -> None:
    """This machine died with calls to MLflow unsent; the bucket has a shorter copy of them."""
    for file, text in ((paths.settings, "{}"), (paths.tracking_target, "this session"), (paths.spool, "1\n")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        send(file, file)
    paths.spool.write_text("1\n2\n")
    with sync_with_bucket(paths, print):
        assert paths.spool.read_text() == "1\n2\n"
    root = f"{bucket}/tiny/tracking"
    bucket_server.files.pipe_file(f"{root}/{paths.tracking_target.name}", b"another session, which sent all")
    bucket_server.files.rm(f"{root}/{paths.spool.name}")
    with sync_with_bucket(paths, print):
        assert not paths.spool.exists()


def there(server: BucketServer, bucket: str, name: str) -> str | None:
    url = f"{bucket}/tiny/{name}"
    return server.files.cat_file(url).decode() if server.files.exists(url) else None


def test_a_bucket_that_is_away_is_said_once_and_at_the_end(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StorageError("storage s3://bucket: the bucket cannot be used.")

    monkeypatch.setattr(records, "COPY_S", 0.02)
    notes: list[str] = []

    def writing() -> None:
        with sync_with_bucket(paths, notes.append):
            monkeypatch.setattr(records, "send", away)
            paths.journal.parent.mkdir(parents=True)
            for number in range(5):
                paths.journal.write_text(f"{number}")
                time.sleep(0.1)

    with pytest.raises(StorageError, match="cannot be used"):
        writing()
    assert len(notes) == 1
