"""What a worker's machine must have in common with the driver's."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from kdray.errors import ResourceError, StorageError
from kdray.slots import environment
from kdray.slots.environment import DriverEnvironment


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "SEEN_WITHIN_S", 0.2)
    path = tmp_path / "sweep" / "owner.json"
    path.parent.mkdir()
    path.write_text("the driver")
    return path


def test_the_same_code_and_storage_are_welcome(proof: Path) -> None:
    assert DriverEnvironment.here(proof).refusal() is None
    assert DriverEnvironment.here(None).refusal() is None


@pytest.mark.parametrize(("name", "known"), [("kdray", "0.0.9 (12345678)"), ("torch", "1.0"), ("Python", "3.9")])
def test_other_code_is_refused_with_both_versions(proof: Path, name: str, known: str) -> None:
    here = DriverEnvironment.here(proof)
    there = replace(here, versions=here.versions | {name: known}, machine="head")
    refusal = there.refusal()
    assert isinstance(refusal, ResourceError)
    assert f"{name} {here.versions[name]} (the driver: {known})" in str(refusal)
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)


def test_on_the_drivers_own_machine_a_line_of_code_may_change(proof: Path) -> None:
    here = DriverEnvironment.here(proof)
    assert replace(here, versions=here.versions | {"kdray": "another"}).refusal() is None


def test_a_folder_that_only_has_the_same_name_is_refused(proof: Path) -> None:
    common = DriverEnvironment.here(proof)
    proof.write_text("another driver")
    assert "sees another one" in str(common.refusal())
    proof.unlink()
    refusal = common.refusal()
    assert isinstance(refusal, StorageError)
    assert f"{proof.parent}: the driver wrote owner.json there, and the machine" in str(refusal)
    assert "sees nothing" in str(refusal)


def test_what_a_file_server_shows_late_is_waited_for(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = DriverEnvironment.here(proof)
    proof.unlink()
    monkeypatch.setattr(environment, "SEEN_WITHIN_S", 5.0)
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: proof.write_text("the driver"))
    assert common.refusal() is None


def test_a_storage_that_cannot_be_written_is_refused(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment, "TemporaryFile", read_only)
    assert "cannot write there (Permission denied)" in str(DriverEnvironment.here(proof).refusal())
