"""Stored and live states of the teacher give the same losses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdray.augmentation.settings import Augmentation
from kdray.errors import JobError, StorageError
from kdray.losses.distillation import Distillation
from kdray.losses.states import Needs
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.students.recurrent import RecurrentStudent
from kdray.students.transformer import TransformerStudent
from kdray.teacher.state_files import obtain_states
from kdray.teacher.transfer import Labelling, Transfer
from kdray.training.settings import Training
from kdray.training.signal import LiveSignal
from kdray.training.stored_signal import StoredOrLiveSignal, StoredSignal
from kdray.training.trial import Recipe, Trial, TrialInputs
from tests.training.test_more_text import make_inputs

TRAINING = Training(epochs=2, batch_size=16, learning_rate=1e-3, precision="fp32")
HIDDEN = Distillation(hidden_mse=1.0, hidden_cosine=0.5, hidden_first=0.5, embeddings=0.3)
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> StoragePaths:
    return StoragePaths(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def inputs_of(storage: StoragePaths) -> Callable[[str], TrialInputs]:
    """Gives the inputs of a task with texts without labels and with copies, with stored states of all layers."""
    made: dict[str, TrialInputs] = {}

    def inputs_of(kind: str) -> TrialInputs:
        if kind not in made:
            inputs = make_inputs(kind, storage)
            labelling = Labelling(Transfer(precision="fp32", shard_rows=64), inputs.source, inputs.tokens)
            with LocalSlots() as slots:
                stored = obtain_states(labelling, (0, 1, 2), storage, slots, lambda done, shards: None, print)
            made[kind] = replace(inputs, signal=StoredSignal(stored, layers=2))
        return made[kind]

    return inputs_of


def train(inputs: TrialInputs, recipe: Recipe, folder: Path) -> list[Report]:
    with LocalSlots() as slots:
        reports = list(slots.run(Trial(recipe, inputs, seed=0, target=folder / "student"), "trial"))
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


def live(inputs: TrialInputs) -> TrialInputs:
    return replace(inputs, signal=LiveSignal(inputs.source, "fp32"))


@pytest.mark.parametrize(
    ("kind", "student"),
    [
        ("text_classification", TransformerStudent(depth=1)),
        ("text_classification", RecurrentStudent(width=8)),  # of another width: with projections
        ("token_classification", TransformerStudent(depth=1)),
        ("regression", TransformerStudent(depth=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.family,
)
def test_stored_and_live_states_give_the_same_losses(
    kind: str, student: Any, inputs_of: Callable[[str], TrialInputs], tmp_path: Path
) -> None:
    recipe = Recipe(
        student=student, distillation=HIDDEN, training=TRAINING, augmentation=Augmentation(copies=2, ways=("delete",))
    )
    inputs = inputs_of(kind)
    stored = train(inputs, recipe, tmp_path / "stored")
    of_live = train(live(inputs), recipe, tmp_path / "live")
    assert len(stored) == len(of_live) == 2
    assert {f"share_{name}" for name in HIDDEN.inner_terms} <= stored[0].keys()
    for ours, theirs in zip(stored, of_live, strict=True):
        assert ours.keys() == theirs.keys()
        # A number at the border of two bf16 numbers may be rounded to either, because the batches differ.
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("rows", [[0, 1, 2], [479, 3, 170, 100]], ids=["labelled", "without labels and copies"])
def test_stored_and_live_states_of_a_batch_are_the_same(
    rows: list[int], inputs_of: Callable[[str], TrialInputs]
) -> None:
    inputs, worker, needs = inputs_of("text_classification"), Worker(), Needs(hidden=frozenset((0, 2)))
    numbers = np.array(rows)
    batch = inputs.tokens.all_rows("train").batch(numbers, multiple=8)
    is_token = batch.inputs["attention_mask"].bool()
    assert inputs.signal is not None
    with inputs.signal.open(needs, worker) as stored, LiveSignal(inputs.source, "fp32").open(needs, worker) as running:
        assert stored.widths == running.widths == {0: 32, 2: 32}
        ours, theirs = stored.states(batch, numbers), running.states(batch, numbers)
    assert ours.hidden.keys() == theirs.hidden.keys() == {0, 2}
    for layer, states in ours.hidden.items():
        assert states.dtype == theirs.hidden[layer].dtype == torch.bfloat16
        assert states.shape == theirs.hidden[layer].shape
        torch.testing.assert_close(states[is_token], theirs.hidden[layer][is_token], rtol=2**-7, atol=1e-4)


def test_files_stay_open_in_the_worker(inputs_of: Callable[[str], TrialInputs], tmp_path: Path) -> None:
    inputs, worker = inputs_of("text_classification"), Worker()
    assert inputs.signal is not None
    with inputs.signal.open(Needs(frozenset((2,))), worker):
        pass
    opened = dict(worker.cache)
    with inputs.signal.open(Needs(frozenset((2,))), worker):
        pass
    assert worker.cache == opened


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(hidden=frozenset((2, 3))), "have layers 0, 1, 2, and this training needs layers 3. Set"),
        (Needs(attention=frozenset((1,))), "needs layers 1, with their attention. Set transfer.signal=live"),
    ],
)
def test_states_that_are_not_stored_are_refused(
    needs: Needs, message: str, inputs_of: Callable[[str], TrialInputs]
) -> None:
    signal = inputs_of("text_classification").signal
    assert signal is not None
    with pytest.raises(StorageError, match=message), signal.open(needs, Worker()):
        pass


def test_only_a_training_with_attention_runs_the_teacher(
    inputs_of: Callable[[str], TrialInputs], tmp_path: Path
) -> None:
    inputs = inputs_of("text_classification")
    assert isinstance(inputs.signal, StoredSignal)
    lost = Pretrained(tmp_path / "lost", "lost")
    both = replace(inputs, signal=StoredOrLiveSignal(inputs.signal, LiveSignal(lost, "fp32")))
    hidden = Recipe(student=TransformerStudent(depth=1), distillation=HIDDEN, training=TRAINING)
    assert train(both, hidden, tmp_path / "both") == train(inputs, hidden, tmp_path / "stored")
    compares_attention = hidden.with_dotted({"distillation.relations": 1.0})
    with pytest.raises(JobError, match="lost"):
        train(both, compares_attention, tmp_path)


def test_a_file_that_is_lost_stops_the_training(inputs_of: Callable[[str], TrialInputs], tmp_path: Path) -> None:
    inputs = inputs_of("text_classification")
    assert isinstance(inputs.signal, StoredSignal)
    lost = replace(inputs.signal.stored, folders={2: tmp_path})
    recipe = Recipe(student=TransformerStudent(depth=1), distillation=Distillation(hidden_mse=1.0), training=TRAINING)
    with pytest.raises(StorageError, match=rf"{tmp_path}/000000000.safetensors: is missing"):
        train(replace(inputs, signal=StoredSignal(lost, layers=2)), recipe, tmp_path)
