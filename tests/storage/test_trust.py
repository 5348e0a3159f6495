"""An address that a file remembers is used only if the user gave it, or if it is a SQLite file of the storage."""

import os
from pathlib import Path

import pytest

from kdray.errors import StorageError
from kdray.storage import trust
from kdray.storage.trust import AddressKind, accept_address, check_address, is_below, trusted_file

LEDGER = AddressKind("ledger", option="--ledger", variable="KDRAY_LEDGER")
URL = "postgresql://ben@db.example/kdray"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without trusted addresses."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trust, "_accepted", set())
    monkeypatch.delenv("KDRAY_LEDGER", raising=False)
    return tmp_path / "config"


def check(address: str, storage: Path) -> None:
    check_address(address, storage / "sweep" / "sweep.json", storage, LEDGER)


def forget_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a later command of the same user."""
    monkeypatch.setattr(trust, "_accepted", set())


def test_an_unknown_address_is_refused_with_all_that_confirms_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        check(URL, tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path}/sweep/sweep.json: names the ledger {URL}, which you have not given")
    assert f"run the same command with --ledger {URL}, or set KDRAY_LEDGER to it" in sentence
    assert caught.value.exit_code == 2


def test_the_sentence_is_safe_to_print_and_to_copy(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        check("postgresql://x/$(touch out)\x1b[2J;\nrm -rf /", tmp_path)
    assert str(caught.value).isprintable()
    assert "--ledger 'postgresql://x/$(touch out)\\x1b[2J;\\nrm -rf /'," in str(caught.value)


def test_another_remedy_names_the_folder_of_the_file(tmp_path: Path) -> None:
    kind = AddressKind("ledger", "--ledger", "KDRAY_LEDGER", remedy="first run: kdray show {folder} {option} {address}")
    with pytest.raises(StorageError, match=f"first run: kdray show {tmp_path}/sweep --ledger {URL}, or set"):
        check_address(URL, tmp_path / "sweep" / "sweep.json", tmp_path, kind)


def test_an_address_is_trusted_by_this_command_and_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_address(f" {URL}/ ")
    check(URL, tmp_path)
    forget_this_process(monkeypatch)
    check(URL, tmp_path)
    accept_address(URL)
    assert trusted_file().read_text() == f"{URL}\n"


def test_the_environment_confirms_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDRAY_LEDGER", f"{URL}/")
    check(URL, tmp_path)
    assert not trusted_file().exists()


@pytest.mark.parametrize(
    "address",
    [
        f"{URL}?host=evil.example",
        f"{URL}?hostaddr=203.0.113.1",
        "postgresql://ben@db.example/other",
        "postgresql://ben@db.example:5433/kdray",
        "postgresql://db.example/kdray",
        "postgresql+psycopg2://ben@db.example/kdray",
        "postgresql://ben@db.example.evil.example/kdray",
        "POSTGRESQL://ben@db.example/kdray",
    ],
)
def test_a_similar_address_is_another_one(tmp_path: Path, address: str) -> None:
    accept_address(URL)
    with pytest.raises(StorageError, match="which you have not given"):
        check(address, tmp_path)


@pytest.mark.parametrize(
    "address", ["postgresql://ben:pw@db/kdray", "postgresql://ben@db/kdray?password=pw", "a\nb://c"]
)
def test_a_secret_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    accept_address(address)
    check(address, tmp_path)
    forget_this_process(monkeypatch)
    with pytest.raises(StorageError, match="which you have not given"):
        check(address, tmp_path)
    assert not trusted_file().exists()


def test_the_file_is_born_private_whatever_the_umask_is(home: Path) -> None:
    before = os.umask(0)
    try:
        accept_address(URL)
    finally:
        os.umask(before)
    assert trusted_file().stat().st_mode & 0o777 == 0o600
    assert trusted_file().parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    accept_address(URL)
    forget_this_process(monkeypatch)
    trusted_file().chmod(mode)
    with pytest.raises(StorageError, match="which you have not given"):
        check(URL, tmp_path)


def test_a_link_in_place_of_the_file_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").write_text(f"{URL}\n")
    trusted_file().parent.mkdir(parents=True)
    trusted_file().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="which you have not given"):
        check(URL, tmp_path)
    accept_address("postgresql://other/x")
    assert (tmp_path / "elsewhere").read_text() == f"{URL}\n"


def test_a_relative_configuration_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a file in the folder in which the command runs, such as a checkout of somebody else."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trusted_file() == tmp_path / "home" / ".config" / "kdray" / "trusted_addresses"


def test_without_a_home_the_address_is_trusted_by_this_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    accept_address(URL)
    check(URL, tmp_path)


def test_a_sqlite_file_of_the_storage_needs_no_question(tmp_path: Path) -> None:
    check(f"sqlite:///{tmp_path}/sweep/ledger.db", tmp_path)
    check(f"sqlite+pysqlite:///{tmp_path}/mlflow.db", tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///{storage}/../other.db",
        "sqlite:////etc/passwd",
        "sqlite:///{storage}/link/x.db",
        "sqlite:///{storage}/x.db?mode=ro",
        "sqlite:///file:{storage}/x.db?uri=true",
        "sqlite:///{storage}/%2e%2e/x.db",
        "sqlite://host/{storage}/x.db",
        "mysql:///{storage}/x.db",
        "{storage}/x.db",
        "",
    ],
)
def test_a_file_elsewhere_is_asked_for(tmp_path: Path, address: str) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    (storage / "link").symlink_to(tmp_path)
    assert not is_below(address.format(storage=storage), storage)
    with pytest.raises(StorageError, match="which you have not given"):
        check(address.format(storage=storage), storage)
