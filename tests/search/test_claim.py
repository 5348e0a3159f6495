"""Which sweeps may continue in a folder, which are refused with which message, and what `--fresh` deletes."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from kdray.cli.options import accept_ledger
from kdray.errors import StorageError
from kdray.search.claim import claim_folder, open_ledger, read_ledger, read_settings
from kdray.search.ledger import Ledger
from kdray.search.space import distributions
from kdray.stages.choosing_again import read_finished_sweep
from kdray.stages.reading import read_figures
from kdray.storage import trust
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.teacher.teacher import Teacher

MakeSweep = Callable[..., Sweep]
COSTS = {"latency_ms": 2.5}


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return make_folder(tmp_path / "storage", "tiny")


def make_folder(storage: Path, name: str) -> SweepPaths:
    """The folder as the command line creates it: with a folder for logs."""
    paths = SweepPaths(storage, name)
    paths.logs.mkdir(parents=True)
    return paths


def start_sweep(sweep: Sweep, paths: SweepPaths) -> Ledger:
    """Claim the folder for a sweep, and give the sweep one trial and a teacher."""
    ledger = claim_folder(sweep.identity(), paths, False)
    params = {"student.depth": 1, "training.learning_rate": 1e-3}
    ledger.add(params, ledger.extend_choices(distributions(sweep.space)), COSTS, {})
    write_json(paths.teacher_figures, {"accuracy": 0.9})
    return ledger


def database(tmp_path: Path, name: str = "ledger") -> dict[str, str]:
    """The setting for a ledger in a SQLite database."""
    return {"search.ledger": f"sqlite:///{tmp_path}/{name}.db"}


def test_the_same_sweep_continues(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    start_sweep(make_sweep(), paths)
    before = read_settings(paths)
    assert len(claim_folder(make_sweep().identity(), paths, False)) == 1
    assert read_settings(paths) == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"training.weight_decay": 0.5}, "training.weight_decay: was 0.01, now 0.5"),
        ({"task.max_length": 12}, "task.max_length: was 16, now 12"),
        ({"search.sampler": "random"}, "search.sampler: was tpe, now random"),
        ({"search.warm_start": "elsewhere"}, "search.warm_start: was None, now elsewhere"),
        ({"search.ledger": "sqlite:////tmp/x.db"}, "search.ledger: was None, now sqlite:////tmp/x.db"),
        ({"space.student.depth": [1]}, "space.student.depth.choices: was [1, 2], now [1]"),
        ({"space.student.depth": [1, 3]}, "space.student.depth.choices: was [1, 2], now [1, 3]"),
        ({"space.student.depth": tune.randint(1, 4)}, "space.student.depth.name: was CategoricalDistribution, now Int"),
        ({"space.student.dropout": [0.1, 0.2]}, "space.student.dropout: was None, now "),
        ({"student.depth": 1}, "space.student.depth: was "),
    ],
)
def test_a_sweep_with_other_settings_is_refused_with_the_difference(
    make_sweep: MakeSweep, paths: SweepPaths, changes: dict[str, Any], difference: str
) -> None:
    start_sweep(make_sweep(), paths)
    before = paths.settings.read_text()
    with pytest.raises(StorageError) as caught:
        claim_folder(make_sweep().with_changes(changes).identity(), paths, False)
    assert "the name 'tiny' is used by a sweep with other settings" in str(caught.value)
    assert difference in str(caught.value)
    assert "--set name=" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert paths.settings.read_text() == before


def test_a_sweep_with_another_teacher_is_refused_with_the_difference(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    start_sweep(make_sweep(), paths)
    with pytest.raises(StorageError, match=r"teacher\.model: was /.*, now other"):
        claim_folder(make_sweep(teacher=Teacher(model="other")).identity(), paths, False)


@pytest.mark.parametrize("choices", [[1, 2, 3], [3, 2, 1], [2, 1]])
def test_a_list_may_grow_in_any_order(make_sweep: MakeSweep, paths: SweepPaths, choices: list[int]) -> None:
    start_sweep(make_sweep(), paths)
    longer = make_sweep().with_changes({"space.student.depth": choices, "search.trials": 50, "slots.count": 2})
    assert len(claim_folder(longer.identity(), paths, False)) == 1
    assert read_settings(paths)["space"]["student.depth"]["attributes"]["choices"] == choices
    if len(choices) > 2:
        with pytest.raises(StorageError, match=r"was \[.*\], now \[1, 2\]"):
            claim_folder(make_sweep().identity(), paths, False)


def test_a_range_may_not_grow(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    sweep = make_sweep(space={"training.learning_rate": tune.uniform(1e-4, 1e-3)})
    ledger = claim_folder(sweep.identity(), paths, False)
    ledger.add({"training.learning_rate": 5e-4}, distributions(sweep.space), COSTS, {})
    wider = make_sweep(space={"training.learning_rate": tune.uniform(1e-4, 1e-2)})
    with pytest.raises(StorageError, match=r"space\.training\.learning_rate\.high: was 0\.001, now 0\.01"):
        claim_folder(wider.identity(), paths, False)


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"name": "tiny", "sea', "not a readable JSON file"),
        ("", "not a readable JSON file"),
        ("\0" * 100, "not a readable JSON file"),
        ("[]", "does not hold the settings of a sweep"),
        ("{}", "does not hold the settings of a sweep"),
    ],
)
def test_a_damaged_sweep_json_is_refused(make_sweep: MakeSweep, paths: SweepPaths, text: str, part: str) -> None:
    start_sweep(make_sweep(), paths)
    paths.settings.write_text(text)
    for open_or_read in (lambda: claim_folder(make_sweep().identity(), paths, False), lambda: read_ledger(paths)):
        with pytest.raises(StorageError) as caught:
            open_or_read()
        assert str(paths.settings) in str(caught.value)
        assert part in str(caught.value)
        assert "Restore it, or start over with --fresh" in str(caught.value)
    assert paths.settings.read_text() == text
    assert len(claim_folder(make_sweep().identity(), paths, True)) == 0


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_without_its_sweep_json_is_refused(make_sweep: MakeSweep, paths: SweepPaths, fresh: bool) -> None:
    start_sweep(make_sweep(), paths)
    paths.settings.unlink()
    with pytest.raises(StorageError, match=r"sweep\.json: is missing\. .*Restore it, or delete the folder"):
        claim_folder(make_sweep().identity(), paths, fresh)
    assert paths.journal.exists()


@pytest.mark.parametrize("kind", ["journal", "empty journal", "database"])
def test_a_sweep_whose_ledger_is_missing_is_refused(
    make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path, kind: str
) -> None:
    sweep = make_sweep() if kind != "database" else make_sweep().with_changes(database(tmp_path))
    start_sweep(sweep, paths)
    if kind == "empty journal":
        paths.journal.write_text("")
    else:
        (paths.journal if kind == "journal" else tmp_path / "ledger.db").unlink()
    with pytest.raises(StorageError, match=r"was started, but its ledger .* is missing\. Restore the ledger, or start"):
        claim_folder(sweep.identity(), paths, False)
    assert len(claim_folder(sweep.identity(), paths, True)) == 0


def test_a_process_killed_during_its_claim_leaves_the_name_free(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    (paths.root / ".sweep.json-x7fk").write_text('{"name": "ti')
    assert len(claim_folder(make_sweep().identity(), paths, False)) == 0


def test_fresh_keeps_the_logs(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    start_sweep(make_sweep(), paths)
    (paths.logs / "kdray.log").write_text("an earlier log")
    paths.owner.write_text("me")
    assert len(claim_folder(make_sweep().identity(), paths, True)) == 0
    assert {path.name for path in paths.root.iterdir()} == {"logs", "owner.json", "sweep.json", "ledger"}
    assert (paths.logs / "kdray.log").exists()


# Databases ------------------------------------------------------------------------------------------------------------


def test_the_folder_records_its_database(make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path) -> None:
    sweep = make_sweep().with_changes(database(tmp_path))
    start_sweep(sweep, paths)
    assert not paths.journal.exists()
    assert len(read_ledger(paths)) == 1
    assert len(claim_folder(sweep.identity(), paths, False)) == 1
    with pytest.raises(StorageError, match=r"search\.ledger: was sqlite:///.*ledger\.db, now None"):
        claim_folder(make_sweep().identity(), paths, False)
    with pytest.raises(StorageError, match=r"search\.ledger: was sqlite:///.*ledger\.db, now sqlite:///.*other\.db"):
        claim_folder(sweep.with_changes(database(tmp_path, "other")).identity(), paths, False)


def test_fresh_starts_over_in_the_database(make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path) -> None:
    sweep = make_sweep().with_changes(database(tmp_path))
    start_sweep(sweep, paths)
    assert len(claim_folder(sweep.identity(), paths, True)) == 0
    start_sweep(sweep, paths)
    assert len(claim_folder(make_sweep().identity(), paths, True)) == 0  # this time with a ledger in a file
    assert Ledger.count_trials(database(tmp_path)["search.ledger"], "tiny") is None


def test_a_sweep_without_trials_may_change_its_settings(
    make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path
) -> None:
    claim_folder(make_sweep().with_changes(database(tmp_path)).identity(), paths, False)
    corrected = make_sweep().with_changes(database(tmp_path) | {"search.objectives": "accuracy,parameters"})
    assert claim_folder(corrected.identity(), paths, False).objectives == ("accuracy", "parameters")


def test_two_folders_do_not_share_a_sweep(make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path) -> None:
    sweep = make_sweep().with_changes(database(tmp_path))
    start_sweep(sweep, paths)
    other = make_folder(tmp_path / "elsewhere", "tiny")
    for fresh in (False, True):
        with pytest.raises(StorageError, match="'tiny' in it belongs to another folder"):
            claim_folder(sweep.identity(), other, fresh)
    assert len(read_ledger(paths)) == 1
    assert not (other.root / "sweep.json").exists()


def test_a_database_that_never_answered_leaves_the_name_free(
    make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path
) -> None:
    """The user corrects the URL and runs the command again."""
    mistyped = make_sweep().with_changes({"search.ledger": "postgresql://anna@127.0.0.1:1/kd"})
    with pytest.raises(StorageError, match="refused"):
        claim_folder(mistyped.identity(), paths, False)
    assert {path.name for path in paths.root.iterdir()} == {"logs"}
    sweep = make_sweep().with_changes(database(tmp_path))
    start_sweep(sweep.with_changes({"name": "other"}), make_folder(paths.storage, "other"))
    assert len(claim_folder(sweep.identity(), paths, False)) == 0


def test_fresh_starts_over_when_the_old_database_is_away(
    make_sweep: MakeSweep, paths: SweepPaths, caplog: pytest.LogCaptureFixture
) -> None:
    start_sweep(make_sweep(), paths)
    settings = read_json(paths.settings)
    away = {"ledger": "postgresql://anna@127.0.0.1:1/kd"}
    trust.accept_address(away["ledger"])  # the user had named it
    write_json(paths.settings, settings | {"search": settings["search"] | away})
    with pytest.raises(StorageError, match="refused"):
        claim_folder(make_sweep().identity(), paths, False)
    assert len(claim_folder(make_sweep().identity(), paths, True)) == 0
    assert "The trials of this sweep stay in that database" in caplog.text
    assert read_settings(paths)["id"] != settings["id"]  # else the new sweep would take over those trials


def test_a_database_that_is_down_changes_nothing(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    down = {"search.ledger": "postgresql://anna@127.0.0.1:1/kd"}
    start_sweep(make_sweep(), paths)
    identity = read_json(paths.settings)
    write_json(paths.settings, identity | {"search": identity["search"] | {"ledger": down["search.ledger"]}})
    for fresh in (False, True):
        with pytest.raises(StorageError, match=r"ledger postgresql://anna@127\.0\.0\.1:1/kd: cannot be used .*refused"):
            claim_folder(make_sweep().with_changes(down).identity(), paths, fresh)
    assert paths.settings.exists()
    assert paths.teacher_figures.exists()


# ---- addresses that sweep.json remembers ----


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that takes connections, and so receives whatever a client of a database sends first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def plant_ledger(paths: SweepPaths, url: Any) -> None:
    """Write the URL into sweep.json, as somebody else with the right to write into the folder can."""
    settings = read_json(paths.settings)
    settings["search"]["ledger"] = url
    write_json(paths.settings, settings)


READERS: dict[str, Callable[[SweepPaths, Sweep], object]] = {
    "show": lambda paths, sweep: read_figures(paths),
    "read": lambda paths, sweep: read_ledger(paths),
    "sync": lambda paths, sweep: open_ledger(paths),
    "choose": lambda paths, sweep: read_finished_sweep(paths, paths),
    "run": lambda paths, sweep: claim_folder(sweep.identity(), paths, False),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_no_password_is_sent_to_a_database_that_a_file_names(
    make_sweep: MakeSweep,
    paths: SweepPaths,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[SweepPaths, Sweep], object],
) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    start_sweep(make_sweep(), paths)
    url = f"postgresql://kdray@127.0.0.1:{listener.getsockname()[1]}/kdray"
    plant_ledger(paths, url)
    with pytest.raises(StorageError, match=rf"sweep\.json: names the ledger {url}, .* --ledger {url}, or set KDRAY_"):
        read(paths, make_sweep())
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_fresh_does_not_connect_to_a_database_that_a_file_names(
    make_sweep: MakeSweep, paths: SweepPaths, listener: socket.socket
) -> None:
    start_sweep(make_sweep(), paths)
    plant_ledger(paths, f"postgresql://kdray@127.0.0.1:{listener.getsockname()[1]}/kdray")
    assert len(claim_folder(make_sweep().identity(), paths, True)) == 0
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_file_outside_of_the_storage_is_not_opened(make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path) -> None:
    start_sweep(make_sweep(), paths)
    plant_ledger(paths, f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(StorageError, match="which you have not given to kdray on this machine"):
        open_ledger(paths)
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("url", [1, ["sqlite:///x.db"], {"a": 1}])
def test_an_address_that_is_no_text_is_refused(make_sweep: MakeSweep, paths: SweepPaths, url: Any) -> None:
    start_sweep(make_sweep(), paths)
    plant_ledger(paths, url)
    with pytest.raises(StorageError, match=r"sweep\.json: does not hold the settings of a sweep \(search\.ledger: "):
        read_ledger(paths)


def test_a_database_that_the_sweep_names_is_read_by_later_commands(
    make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep().with_changes(database(tmp_path))
    start_sweep(sweep, paths)
    monkeypatch.setattr(trust, "_accepted", set())  # as in a later command
    assert len(read_ledger(paths)) == 1
    trust.trusted_file().unlink()
    with pytest.raises(StorageError, match="which you have not given"):
        read_ledger(paths)
    assert accept_ledger(f"sqlite:///{tmp_path}/ledger.db") == f"sqlite:///{tmp_path}/ledger.db"
    assert len(read_ledger(paths)) == 1


def test_a_database_in_the_storage_needs_no_question(
    make_sweep: MakeSweep, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_sweep(make_sweep().with_changes(database(paths.storage)), paths)
    monkeypatch.setattr(trust, "_accepted", set())
    trust.trusted_file().unlink()
    assert len(read_ledger(paths)) == len(open_ledger(paths)) == 1
