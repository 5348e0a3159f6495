"""A transfer set is written once, in shards, has the logits of a live teacher, and damaged shards are written again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import StoredLogits, TransferSet
from kdray.errors import JobError, StorageError, TeacherError
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model
from kdray.slots.job import Job, Report
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.teacher.transfer import Labelling, Transfer, choose_padding, obtain_transfer_set
from tests.models.families import random_model, tiny_config

SETTINGS = Transfer(precision="fp32", shard_rows=100)
SHARDS = [f"train-{start:09d}.arrow" for start in (0, 100, 200, 300)]
ALL_FILES = sorted([*SHARDS, "validation-000000000.arrow", "test-000000000.arrow"])


class RecordingSlots(LocalSlots):
    """Slots that record the jobs they run, and raise KeyboardInterrupt instead of running more than `most` jobs."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.jobs: list[str] = []
        """The names of the files that were labelled, and "check" for the check."""
        self._most = most

    def run(self, job: Job, name: str) -> Iterator[Report]:  # type: ignore[override]
        if len(self.jobs) == self._most:
            raise KeyboardInterrupt
        self.jobs.append(name.split("-", 2)[-1] if name.startswith("label-") else name.split("-")[0])
        return super().run(job, name)


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    return StoragePaths(tmp_path)


def obtain(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, settings: Transfer = SETTINGS, most_jobs: int = 1000
) -> tuple[TransferSet, list[str]]:
    """Obtain the transfer set, and return it with the jobs that ran for it."""
    pool = RecordingSlots(most_jobs)
    transfer = obtain_transfer_set(Labelling(settings, teacher, tokens), paths, pool, lambda done, shards: None)
    return transfer, pool.jobs


def test_the_logits_are_those_of_the_live_teacher(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    transfer, _ = obtain(teacher, tokens, paths)
    model = teacher.model()
    for split in ("train", "validation", "test"):
        rows = transfer.rows(tokens, split)
        sample = np.random.default_rng(0).permutation(len(rows))[:40]
        with torch.inference_mode():
            live = model(**rows.batch(sample).inputs).logits.numpy()
        assert rows.teacher_logits(sample) == pytest.approx(live, abs=1e-5)
        assert len(transfer.logits(split)) == len(rows) == len(transfer.logits(split).all())
    assert torch.equal(rows.batch(sample).teacher_logits_AxC, torch.from_numpy(rows.teacher_logits(sample)))


def test_rows_are_labelled_once(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    progress: list[tuple[int, int]] = []
    pool = RecordingSlots()
    transfer = obtain_transfer_set(
        Labelling(SETTINGS, teacher, tokens), paths, pool, lambda *done: progress.append(done)
    )
    assert sorted(pool.jobs) == sorted([*ALL_FILES, "check"])
    assert progress == [(done, 6) for done in range(1, 7)]
    assert sorted(path.name for path in transfer.folder.iterdir()) == ["manifest.json", *ALL_FILES]
    assert obtain(teacher, tokens, paths) == (transfer, [])


def test_labelling_that_is_cut_off_continues_with_the_missing_files(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtain(teacher, tokens, paths, most_jobs=2)
    transfer, jobs = obtain(teacher, tokens, paths)
    assert jobs == [*SHARDS[2:], "validation-000000000.arrow", "test-000000000.arrow", "check"]
    assert len(transfer.rows(tokens, "train")) == 320


def test_files_that_were_not_checked_are_checked_later(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtain(teacher, tokens, paths, most_jobs=6)
    transfer, jobs = obtain(teacher, tokens, paths)
    assert jobs == ["check"]
    assert (transfer.folder / "manifest.json").exists()


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_a_file_with_a_flipped_byte_is_labelled_again(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, position: float
) -> None:
    transfer, _ = obtain(teacher, tokens, paths)
    shard = transfer.folder / SHARDS[1]
    content = shard.read_bytes()
    damaged = bytearray(content)
    damaged[int(position * len(content))] ^= 1
    shard.write_bytes(damaged)
    assert obtain(teacher, tokens, paths)[1] == [SHARDS[1], "check"]
    assert shard.read_bytes() == content


@pytest.mark.parametrize("name", ["../../precious", "{folder}/precious", "other.arrow"])
def test_a_manifest_deletes_no_other_file(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, tmp_path: Path, name: str
) -> None:
    transfer, _ = obtain(teacher, tokens, paths)
    name = name.format(folder=tmp_path)
    (transfer.folder / name).write_text("precious")
    manifest = transfer.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), name: "0" * 16}))
    obtain(teacher, tokens, paths)
    assert (transfer.folder / name).read_text() == "precious"


@pytest.mark.parametrize("manifest", [[1], "x", None])
def test_a_manifest_that_is_none_is_written_again(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, manifest: object
) -> None:
    transfer, _ = obtain(teacher, tokens, paths)
    (transfer.folder / "manifest.json").write_text(json.dumps(manifest))
    assert obtain(teacher, tokens, paths)[1] == ["check"]


def test_a_missing_file_is_labelled_again(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    transfer, _ = obtain(teacher, tokens, paths)
    (transfer.folder / SHARDS[3]).unlink()
    assert obtain(teacher, tokens, paths)[1] == [SHARDS[3], "check"]


def test_files_with_another_number_of_rows_are_another_transfer_set(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    first, _ = obtain(teacher, tokens, paths)
    other, _ = obtain(teacher, tokens, paths, Transfer(precision="fp32", shard_rows=50))
    for transfer in (first, other):
        assert len(transfer.rows(tokens, "train")) == 320
    assert other.logits("train").all() == pytest.approx(first.logits("train").all(), abs=1e-5)


def test_bf16_is_another_transfer_set_with_validation_rows_in_fp32(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    fp32, _ = obtain(teacher, tokens, paths)
    bf16, _ = obtain(teacher, tokens, paths, SETTINGS.model_copy(update={"precision": "bf16"}))
    assert bf16.folder != fp32.folder
    assert np.array_equal(bf16.logits("validation").all(), fp32.logits("validation").all())
    assert not np.array_equal(bf16.logits("train").all(), fp32.logits("train").all())
    assert bf16.logits("train").all() == pytest.approx(fp32.logits("train").all(), abs=0.1)


def test_another_tokenizer_is_refused(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher.folder, tmp_path / "other"))
    word_tokenizer(["quite other words", "than before"], 30, 16).save_pretrained(folder)
    with pytest.raises(TeacherError, match=f"teacher {folder}: its tokenizer is not the one .* Tokenise the data"):
        obtain(Pretrained(folder, "other"), tokens, paths)
    assert not paths.cache.exists()


def test_stored_logits_of_another_teacher_are_refused(
    teacher: Pretrained, source: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    """The files under the teacher's key were written by another teacher."""
    other, _ = obtain(Pretrained(source.folder, teacher.key), tokens, paths)
    (other.folder / SHARDS[0]).unlink()
    with pytest.raises(JobError, match=r"stored logits differ from the live teacher's by .* Remove that folder"):
        obtain(teacher, tokens, paths)


@pytest.fixture
def unmasked(source: Pretrained, tmp_path: Path) -> Pretrained:
    """A model without an attention mask (FNet), so that its answer depends on padding, with the teacher's tokenizer."""
    config, tokenizer = tiny_config("fnet"), source.tokenizer()
    config.id2label, config.vocab_size = {0: "negative", 1: "positive"}, len(tokenizer)
    save_model(random_model(config), tokenizer, tmp_path / "unmasked")
    return Pretrained(tmp_path / "unmasked", "unmasked")


def test_a_teacher_whose_answer_depends_on_padding_is_labelled_without_padding(
    unmasked: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    notes: list[str] = []
    pool, labelling = RecordingSlots(), Labelling(SETTINGS, unmasked, tokens)
    chosen = choose_padding(labelling, paths, pool, notes.append)
    assert (pool.jobs, chosen.padding) == (["padding"], False)
    assert chosen.key != labelling.key
    assert "answer for a text depends on the padding behind it" in notes[0]
    transfer = obtain_transfer_set(chosen, paths, pool, lambda done, shards: None)  # with its check of a sample
    rows, model = transfer.rows(tokens, "validation"), unmasked.model()
    with torch.inference_mode():
        alone = np.concatenate([model(**rows.batch(np.array([i])).inputs).logits for i in range(20)])
    assert rows.teacher_logits(np.arange(20)) == pytest.approx(alone, abs=1e-5)
    assert choose_padding(labelling, paths, RecordingSlots(most=0), notes.append) == chosen
    assert len(notes) == 2


def test_other_teachers_are_labelled_with_padding(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    labelling, notes = Labelling(SETTINGS, teacher, tokens), list[str]()
    assert choose_padding(labelling, paths, RecordingSlots(), notes.append) is labelling
    obtain(teacher, tokens, paths)
    assert choose_padding(labelling, paths, RecordingSlots(most=0), notes.append) is labelling
    assert notes == []


def test_rows_of_other_data_are_refused(transfer: TransferSet, tokens: TokenSet) -> None:
    with pytest.raises(StorageError, match="its example ids are not the data's"):
        transfer.logits("test").of(tokens.rows("validation"))


def test_logits_are_read_from_all_files(transfer: TransferSet) -> None:
    files = sorted(transfer.folder.glob("train-*.arrow"))
    assert len(files) == 3
    logits, indices = StoredLogits(files), np.array([319, 0, 128, 127, 0, 256])
    assert np.array_equal(logits[indices], logits.all()[indices])
    assert logits[np.array([], int)].shape == (0, 2)
