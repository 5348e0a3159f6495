"""A checkpoint that somebody else wrote runs no code, needs no memory, and never becomes a part of a training."""

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdray.errors import StorageError
from kdray.slots.job import NOTE, Worker
from kdray.storage.safe_json import MAX_JSON_BYTES
from kdray.training import checkpoint_files
from kdray.training.checkpoint import CheckpointManager, Position, RunningSums
from kdray.training.checkpoint_files import read_checkpoint, write_checkpoint
from kdray.training.settings import Training
from kdray.training.step import adamw

Change = Callable[[dict[str, Any]], object]


def make_manager(path: Path, seed: int = 0) -> tuple[CheckpointManager, nn.Module, torch.optim.Optimizer]:
    """The checkpoints of a training of a tiny model that has made one step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = adamw(model, Training())
    return (
        CheckpointManager(path=path, training=Training(), model=model, optimizer=optimizer, worker=Worker()),
        model,
        optimizer,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint after one step."""
    manager, model, optimizer = make_manager(tmp_path / "at.pt")
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    manager.reports = [{"loss": 0.5, "epoch": 1}]
    manager.save(Position(epoch=1, batch=2, step=3), RunningSums(rows=1, norm=torch.tensor(1.0)))
    return tmp_path / "at.pt"


def write_raw(path: Path, data: bytes) -> None:
    """Write a file with a right checksum."""
    path.write_bytes(hashlib.sha256(data).digest() + data)


def check_starts_again(path: Path, reason: str) -> None:
    """A training that finds this checkpoint starts from the beginning, with its own weights, and says why."""
    manager, model, optimizer = make_manager(path, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    position, sums = manager.restore()
    assert (position, sums.rows) == (Position(), 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not optimizer.state
    (note,) = manager.reports
    assert note[NOTE].startswith(f"{path}: ")
    assert reason in note[NOTE]
    assert note[NOTE].endswith("The training started again from the beginning.")


def test_an_unchanged_checkpoint_is_used(path: Path) -> None:
    manager, model, _ = make_manager(path, seed=1)
    position, sums = manager.restore()
    assert (position, sums.rows) == (Position(epoch=1, batch=2, step=3), 1)
    assert manager.reports == [{"loss": 0.5, "epoch": 1}]
    assert torch.equal(model.state_dict()["0.weight"], read_checkpoint(path)["model"]["0.weight"])


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self._marker),)


@pytest.mark.parametrize("form", ["torch", "legacy torch", "pickle"])
def test_a_pickle_runs_no_code(path: Path, tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    if form == "pickle":
        pickle.dump(Bomb(tmp_path / "marker"), buffer)
    else:
        state = {"model": Bomb(tmp_path / "marker")}
        torch.save(state, buffer, _use_new_zipfile_serialization=form == "torch")
    write_raw(path, buffer.getvalue())
    check_starts_again(path, "kdray has not written this checkpoint")
    assert not (tmp_path / "marker").exists()


def test_a_compressed_archive_is_not_expanded(path: Path) -> None:
    """200 MB of zeros become 200 kB."""
    state = io.BytesIO()
    torch.save({"model": torch.zeros(1000)}, state)
    packed = io.BytesIO()
    with zipfile.ZipFile(state) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    write_raw(path, packed.getvalue())
    check_starts_again(path, "it is compressed")


def test_a_file_that_is_too_long_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 64 GB that needs no space on the disk: it has a hole."""
    with path.open("r+b") as file:
        file.truncate(64 << 30)
    monkeypatch.setattr(checkpoint_files, "SIZE_MARGIN_BYTES", MAX_JSON_BYTES)
    check_starts_again(path, "has 68,719,476,736 bytes, and at most")


def test_a_named_pipe_does_not_stop_a_training(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    check_starts_again(path, "is not a regular file")


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x02.", b"x" * 1000], ids=["empty", "zip", "pickle", "text"])
def test_a_file_that_is_no_archive_is_not_used(path: Path, data: bytes) -> None:
    write_raw(path, data)
    check_starts_again(path, "kdray has not written this checkpoint")


CHANGES: dict[str, tuple[str, Change]] = {
    "no model": ("parts", lambda state: state.pop("model")),
    "one more part": ("parts", lambda state: state.update(more=1)),
    "another shape": ("model", lambda state: state["model"].update({"0.weight": torch.ones(4, 9)})),
    "a huge shape without memory": (
        "model",
        lambda state: state["model"].update({"0.weight": torch.ones(1).expand(1 << 20, 1 << 20)}),
    ),
    "another type": ("model", lambda state: state["model"].update({"0.weight": torch.ones(4, 3, dtype=torch.int64)})),
    "no numbers": ("model", lambda state: state["model"].update({"0.weight": torch.ones(4, 3, device="meta")})),
    "a text for a weight": ("model", lambda state: state["model"].update({"0.weight": "x"})),
    "one weight more": ("model", lambda state: state["model"].update({"more": torch.ones(1)})),
    "a list for the model": ("model", lambda state: state.update(model=[1])),
    "other groups": ("optimizer", lambda state: state["optimizer"]["param_groups"].pop()),
    "another order": ("optimizer", lambda state: state["optimizer"]["param_groups"].reverse()),
    "a text for the rate": ("optimizer", lambda state: state["optimizer"]["param_groups"][0].update(lr="x")),
    "moments of another shape": (
        "optimizer",
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.ones(7)),
    ),
    "a parameter that is none": (
        "optimizer",
        lambda state: state["optimizer"]["state"].update({99: state["optimizer"]["state"][0]}),
    ),
    "no ranks": ("ranks", lambda state: state.update(ranks=None)),
    "a random state of another size": (
        "ranks",
        lambda state: state["ranks"][0]["random"].update(cpu=torch.zeros(3, dtype=torch.uint8)),
    ),
    "a random state that is none": (
        "ranks",
        lambda state: state["ranks"][0]["random"].update(cpu=torch.full_like(torch.get_rng_state(), 255)),
    ),
    "a sum of many numbers": ("ranks", lambda state: state["ranks"][0]["sums"].update(norm=torch.ones(3))),
    "a text for the seconds": ("ranks", lambda state: state["ranks"][0]["sums"].update(seconds="x")),
    "a report that is none": ("reports", lambda state: state.update(reports=[1])),
    "a list in a report": ("reports", lambda state: state.update(reports=[{"loss": [1]}])),
    "a negative step": ("at", lambda state: state["at"].update(step=-1)),
    "another field": ("at", lambda state: state["at"].update(more=1)),
    "a text for the epoch": ("at", lambda state: state["at"].update(epoch="x")),
}


@pytest.mark.parametrize(("part", "change"), CHANGES.values(), ids=CHANGES)
def test_a_state_that_does_not_fit_is_not_used(path: Path, part: str, change: Change) -> None:
    state = read_checkpoint(path)
    change(state)
    write_checkpoint(path, state)
    check_starts_again(path, f"does not fit this training ({part})")


def test_a_value_that_is_no_state_is_refused(path: Path) -> None:
    write_checkpoint(path, [1])  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="it is no dictionary"):
        read_checkpoint(path)
