"""A worker's machine must have the code and the storage of the driver."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from kdray.errors import ResourceError, StorageError
from kdray.slots import environment
from kdray.slots.environment import DriverEnvironment


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "PROOF_TIMEOUT_S", 0.2)
    path = tmp_path / "sweep" / "owner.json"
    path.parent.mkdir()
    path.write_text("the driver")
    return path


def test_the_same_code_and_storage_are_accepted(proof: Path) -> None:
    assert DriverEnvironment.of_this_process(proof).refusal() is None
    assert DriverEnvironment.of_this_process(None).refusal() is None


@pytest.mark.parametrize(("name", "version"), [("kdray", "0.0.9 (12345678)"), ("torch", "1.0"), ("Python", "3.9")])
def test_other_code_is_refused_with_both_versions(proof: Path, name: str, version: str) -> None:
    own = DriverEnvironment.of_this_process(proof)
    driver = replace(own, versions=own.versions | {name: version}, machine="head")
    refusal = driver.refusal()
    assert isinstance(refusal, ResourceError)
    assert f"{name} {own.versions[name]} (the driver: {version})" in str(refusal)
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)


def test_on_the_drivers_own_machine_the_code_may_change(proof: Path) -> None:
    driver = DriverEnvironment.of_this_process(proof)
    assert replace(driver, versions=driver.versions | {"kdray": "another"}).refusal() is None


def test_another_folder_under_the_same_path_is_refused(proof: Path) -> None:
    driver = DriverEnvironment.of_this_process(proof)
    proof.write_text("another driver")
    assert "sees another one" in str(driver.refusal())
    proof.unlink()
    refusal = driver.refusal()
    assert isinstance(refusal, StorageError)
    assert f"{proof.parent}: the driver wrote owner.json there, and the machine" in str(refusal)
    assert "sees nothing" in str(refusal)


def test_a_file_that_the_file_server_shows_late_is_waited_for(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = DriverEnvironment.of_this_process(proof)
    proof.unlink()
    monkeypatch.setattr(environment, "PROOF_TIMEOUT_S", 5.0)
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: proof.write_text("the driver"))
    assert driver.refusal() is None


def test_a_storage_that_cannot_be_written_is_refused(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment, "TemporaryFile", read_only)
    assert "cannot write there (Permission denied)" in str(DriverEnvironment.of_this_process(proof).refusal())
