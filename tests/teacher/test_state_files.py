"""Hidden states are written once, in shards, equal those of a live teacher, and damaged files are written again."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdray.data.copies import WithCopies
from kdray.data.splits import Data, load_splits
from kdray.data.state_store import TENSOR, StateSet
from kdray.data.tokens import TokenSet, tokenise
from kdray.errors import JobError, StorageError, TeacherError
from kdray.losses.states import Needs
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model
from kdray.slots.job import Job, Report, Worker
from kdray.slots.local import LocalSlots
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.storage.paths import StoragePaths, storage_path
from kdray.students.layers import transformer_layers
from kdray.students.recording import Recorder
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.state_files import RecordShards, obtain_states, states_key
from kdray.teacher.transfer import Labelling, Transfer
from tests.models.families import random_model, tiny_config
from tests.training.test_more_text import write_copy

SETTINGS = Transfer(precision="fp32", shard_rows=100, batch_size=32)
FILES = [f"{start:09d}.safetensors" for start in (0, 100, 200, 300)]


class RecordingSlots(LocalSlots):
    """Slots that record the jobs they run, and raise KeyboardInterrupt after `most` files of states."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.jobs: list[str] = []
        self._most = most

    def run(self, job: Job, name: str) -> Iterator[Report]:  # type: ignore[override]
        if not isinstance(job, RecordShards):
            self.jobs.append("check")
            return super().run(job, name)
        self.jobs += [f"{start}:{','.join(map(str, sorted(layers)))}" for start, layers in job.shards]
        return super().run(_CutOff(job, self._most), name)


class _CutOff:
    """A job that is killed after so many shards."""

    def __init__(self, job: RecordShards, most: int) -> None:
        self._job, self._most = job, most

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield from replace(self._job, shards=self._job.shards[: self._most])(worker)
        if len(self._job.shards) > self._most:
            raise KeyboardInterrupt


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    return StoragePaths(tmp_path)


@pytest.fixture
def labelling(teacher: Pretrained, tokens: TokenSet) -> Labelling:
    return Labelling(SETTINGS, teacher, tokens)


def obtain(
    labelling: Labelling, paths: StoragePaths, layers: tuple[int, ...] = (0, 4), most: int = 1000
) -> tuple[StateSet, list[str], list[str]]:
    """The states, the jobs that ran for them, and the notes."""
    pool, notes = RecordingSlots(most), list[str]()
    states = obtain_states(labelling, layers, paths, pool, lambda done, shards: None, notes.append)
    return states, pool.jobs, notes


def live_states(teacher: Pretrained, tokens: TokenSet, rows: np.ndarray, layer: int) -> Tensor:
    """B x L x H in bf16."""
    model = teacher.model()
    with Recorder(model, transformer_layers(model), Needs(frozenset((layer,)))) as recorder, torch.no_grad():
        model(**tokens.all_rows("train").batch(rows).inputs)
        return recorder.take().hidden[layer].bfloat16()


def assert_close(stored: Tensor, live: Tensor) -> None:
    """Equal but for the last of the 8 bits of a bf16 number."""
    torch.testing.assert_close(stored.float(), live.float(), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_the_states_are_those_of_the_live_teacher(
    teacher: Pretrained, tokens: TokenSet, labelling: Labelling, paths: StoragePaths, layer: int
) -> None:
    states, _, notes = obtain(labelling, paths, (layer,))
    store, rows = states.layer(layer), np.array([319, 0, 99, 100, 0])
    live = live_states(teacher, tokens, rows, layer)
    is_token = tokens.all_rows("train").batch(rows).inputs["attention_mask"].bool()
    padded = store.padded(rows, live.shape[1] + 3)
    assert (store.width, padded.dtype, notes) == (32, torch.bfloat16, [])
    assert_close(padded[:, : live.shape[1]][is_token], live[is_token])
    assert not padded[:, : live.shape[1]][~is_token].any()
    assert not padded[:, live.shape[1] :].any()
    assert torch.equal(store.of(rows), padded[:, : live.shape[1]][is_token])


def test_texts_without_labels_and_copies_are_included(paths: StoragePaths, teacher: Pretrained) -> None:
    source = GeneratedReviews(train_rows=90, validation_rows=40, test_rows=20, unlabelled_rows=70)
    task = TextClassification(max_length=16)
    splits = load_splits(Data(source=source, unlabelled="unlabelled"), task)
    tokens = tokenise(WithCopies(splits, 2, write_copy, "copies"), task, teacher.tokenizer(), paths)
    states, jobs, _ = obtain(Labelling(SETTINGS, teacher, tokens), paths, (3,))
    assert tokens.train_ends == (90, 160, 320, 480)
    assert jobs == ["0:3", "100:3", "200:3", "300:3", "400:3", "check"]
    rows = np.array([10, 100, 170, 479])  # labelled, without a label, of the first copy, of the second one
    live = live_states(teacher, tokens, rows, 3)
    is_token = tokens.all_rows("train").batch(rows).inputs["attention_mask"].bool()
    assert_close(states.layer(3).padded(rows, live.shape[1])[is_token], live[is_token])


def test_states_are_written_once_and_layers_are_shared(labelling: Labelling, paths: StoragePaths) -> None:
    first, jobs, _ = obtain(labelling, paths, (0, 4))
    assert jobs == ["0:0,4", "100:0,4", "200:0,4", "300:0,4", "check"]
    assert obtain(labelling, paths, (0, 4))[:2] == (first, [])
    more, jobs, _ = obtain(labelling, paths, (4, 2))
    assert jobs == ["0:2", "100:2", "200:2", "300:2", "check"]
    assert more.folders[4] == first.folders[4]
    assert {path.name for path in more.folders[2].iterdir()} == {"manifest.json", *FILES}


def test_writing_that_is_cut_off_continues_with_the_missing_files(labelling: Labelling, paths: StoragePaths) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtain(labelling, paths, most=2)
    # Also cut off in the middle of a shard: one of its layers is written.
    Path(paths.states(states_key(labelling, 4)) / FILES[1]).unlink()
    _, jobs, notes = obtain(labelling, paths)
    assert jobs == ["100:4", "200:0,4", "300:0,4", "check"]
    assert notes == []


def test_files_that_were_not_checked_are_checked_later(labelling: Labelling, paths: StoragePaths) -> None:
    states, _, _ = obtain(labelling, paths)
    (states.folders[4] / "manifest.json").unlink()
    assert obtain(labelling, paths)[1] == ["check"]
    assert (states.folders[4] / "manifest.json").exists()


@pytest.mark.parametrize("position", [0.0, 0.5, 0.99])
def test_a_damaged_file_is_written_again_with_a_note(
    labelling: Labelling, paths: StoragePaths, position: float
) -> None:
    states, _, _ = obtain(labelling, paths)
    file = states.folders[0] / FILES[2]
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[int(position * len(content))] ^= 1
    file.write_bytes(damaged)
    _, jobs, notes = obtain(labelling, paths)
    assert jobs == ["200:0", "check"]
    assert notes == [f"{file}: damaged; it is written again."]
    assert file.read_bytes() == content


def test_each_worker_of_a_slot_writes_some_of_the_files(labelling: Labelling, paths: StoragePaths) -> None:
    class Rank(Worker):
        """One of two workers; the other one is not waited for."""

        def all_gather(self, value: Any) -> list[Any]:
            return [value, value]

    whole, _, _ = obtain(labelling, paths, (4,))
    expected = {file.name: file.read_bytes() for file in whole.folders[4].glob("*.safetensors")}
    folder = paths.states("by rank")
    job = RecordShards(labelling, [(start, {4: folder}) for start in (0, 100, 200, 300)])
    names = []
    for rank in range(2):
        list(job(Rank(rank=rank, world=2)))
        names.append(sorted(file.name for file in folder.iterdir()))
    assert names == [[FILES[0], FILES[2]], FILES]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == expected


def test_another_node_fetches_the_states_from_a_bucket(labelling: Labelling, bucket: str) -> None:
    states, _, _ = obtain(labelling, StoragePaths(storage_path(bucket)), (4,))
    rows = np.array([319, 0])
    expected = states.layer(4).of(rows)
    shutil.rmtree(states.folders[4])  # as on a node that has none of the files
    assert torch.equal(states.layer(4).of(rows), expected)
    assert sorted(file.name for file in states.folders[4].glob("*.safetensors")) == FILES


def test_long_rows_are_in_smaller_files(
    labelling: Labelling, paths: StoragePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = obtain(labelling, paths, (4,))
    monkeypatch.setattr("kdray.teacher.state_files.MOST_TOKENS", 16 * 40)
    divided, jobs, _ = obtain(labelling, StoragePaths(paths.storage / "other"), (4,))
    assert jobs == [*(f"{start}:4" for start in range(0, 320, 40)), "check"]
    rows = np.array([319, 40, 39, 0])
    assert_close(divided.layer(4).of(rows), whole.layer(4).of(rows))


def test_a_missing_file_is_written_again(labelling: Labelling, paths: StoragePaths) -> None:
    states, _, _ = obtain(labelling, paths)
    (states.folders[0] / FILES[3]).unlink()
    assert obtain(labelling, paths)[1] == ["300:0", "check"]


def test_the_key_depends_on_everything_that_the_states_depend_on(labelling: Labelling, teacher: Pretrained) -> None:
    changed = [
        replace(labelling, teacher=Pretrained(teacher.folder, "another")),
        replace(labelling, tokens=replace(labelling.tokens, key="another")),
        replace(labelling, padding=False),
        *(
            replace(labelling, settings=SETTINGS.model_copy(update=change))
            for change in ({"precision": "bf16"}, {"shard_rows": 50})
        ),
    ]
    keys = [states_key(labelling, 1), states_key(labelling, 2), *(states_key(each, 1) for each in changed)]
    assert len(set(keys)) == len(keys)
    same = replace(labelling, settings=SETTINGS.model_copy(update={"budget_gb": 1.0, "signal": "stored"}))
    assert states_key(same, 1) == keys[0]


def test_states_in_bf16_are_stored(labelling: Labelling, paths: StoragePaths) -> None:
    fp32, _, _ = obtain(labelling, paths, (4,))
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    bf16, _, _ = obtain(replace(labelling, settings=settings), paths, (4,))
    rows = np.arange(40)
    assert bf16.folders != fp32.folders
    stored, exact = bf16.layer(4).of(rows).float(), fp32.layer(4).of(rows).float()
    assert not torch.equal(stored, exact)
    torch.testing.assert_close(stored, exact, rtol=0.1, atol=0.1)


def test_a_teacher_whose_states_depend_on_padding(tokens: TokenSet, paths: StoragePaths, unmasked: Pretrained) -> None:
    """Its rows are in batches of equal length; the check of a sample reads them one by one."""
    labelling = Labelling(SETTINGS, unmasked, tokens, padding=False)
    states, jobs, _ = obtain(labelling, paths, (1,))
    assert jobs[-1] == "check"
    live = live_states(unmasked, tokens, np.array([7]), 1)
    assert_close(states.layer(1).of(np.array([7])), live[0])
    with pytest.raises(JobError, match="stored states differ"):
        obtain(replace(labelling, padding=True), paths, (1,))


@pytest.fixture
def unmasked(source: Pretrained, tmp_path: Path) -> Pretrained:
    """A model without an attention mask (FNet), with the teacher's tokenizer."""
    config, tokenizer = tiny_config("fnet"), source.tokenizer()
    config.vocab_size = len(tokenizer)
    save_model(random_model(config), tokenizer, tmp_path / "unmasked")
    return Pretrained(tmp_path / "unmasked", "unmasked")


def test_another_tokenizer_is_refused(labelling: Labelling, paths: StoragePaths, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    labelling.teacher.model().save_pretrained(folder)
    word_tokenizer(["quite other words", "than before"], 30, 16).save_pretrained(folder)
    with pytest.raises(TeacherError, match=f"teacher {folder}: its tokenizer is not the one .* Tokenise the data"):
        obtain(replace(labelling, teacher=Pretrained(folder, "other")), paths)


def test_states_of_another_teacher_are_refused(labelling: Labelling, source: Pretrained, paths: StoragePaths) -> None:
    """The files under the teacher's key were written by another teacher."""
    other, _, _ = obtain(replace(labelling, teacher=Pretrained(source.folder, labelling.teacher.key)), paths)
    (other.folders[4] / FILES[0]).unlink()
    with pytest.raises(JobError, match=r"stored states differ from the live teacher's by .* Remove .* and run again"):
        obtain(labelling, paths)


@pytest.mark.parametrize(
    "tensors",
    [
        {TENSOR: torch.zeros(3, 32, dtype=torch.bfloat16)},  # of other rows
        {TENSOR: torch.zeros(5, 32, dtype=torch.float32)},
        {TENSOR: torch.zeros(7, dtype=torch.bfloat16)},
        {"other": torch.zeros(3, 32, dtype=torch.bfloat16)},
        None,
        b"",
        b"\xff" * 64,
    ],
)
def test_a_file_that_has_other_content_is_refused(
    labelling: Labelling, paths: StoragePaths, tensors: dict[str, Tensor] | bytes | None
) -> None:
    states, _, _ = obtain(labelling, paths, (0,))
    file = states.folders[0] / FILES[1]
    file.unlink()
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    elif tensors is not None:
        save_file(tensors, file)
    with pytest.raises(StorageError, match=rf"{file}: .*Remove it and run again"):
        states.layer(0)


def test_files_of_different_sizes_are_refused(labelling: Labelling, paths: StoragePaths, tokens: TokenSet) -> None:
    states, _, _ = obtain(labelling, paths, (0,))
    count = int(tokens.all_rows("train").lengths[:100].sum())
    save_file({TENSOR: torch.zeros(count, 16, dtype=torch.bfloat16)}, states.folders[0] / FILES[0])
    with pytest.raises(StorageError, match="states of different sizes"):
        states.layer(0)
