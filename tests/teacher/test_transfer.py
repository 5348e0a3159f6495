"""A transfer set is written once, shard by shard, holds what a live teacher says, and is mended where it rotted."""

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
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Job, Report
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.teacher.transfer import Labelling, Transfer, obtain_transfer_set

SETTINGS = Transfer(precision="fp32", shard_rows=100)
SHARDS = [f"train-{start:09d}.arrow" for start in (0, 100, 200, 300)]
ALL = sorted([*SHARDS, "validation-000000000.arrow", "test-000000000.arrow"])


class Listing(LocalSlots):
    """Slots that remember what they ran; with `killed_after`, the process ends after so many jobs."""

    def __init__(self, killed_after: int = 1000) -> None:
        super().__init__()
        self.ran: list[str] = []
        self.killed_after = killed_after

    def run(self, job: Job, name: str) -> Iterator[Report]:  # type: ignore[override]
        if len(self.ran) == self.killed_after:
            raise KeyboardInterrupt
        self.ran.append(name.split("-", 2)[-1] if name.startswith("label-") else name.split("-")[0])
        return super().run(job, name)


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    return StoragePaths(tmp_path)


def obtained(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, settings: Transfer = SETTINGS, killed_after: int = 1000
) -> tuple[TransferSet, list[str]]:
    """The transfer set, and the jobs that were run for it."""
    pool = Listing(killed_after)
    return obtain_transfer_set(Labelling(settings, teacher, tokens), paths, pool, lambda done, shards: None), pool.ran


def test_the_logits_are_those_of_the_live_teacher(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    made, _ = obtained(teacher, tokens, paths)
    model = teacher.model()
    for split in ("train", "validation", "test"):
        rows = made.rows(tokens, split)
        some = np.random.default_rng(0).permutation(len(rows))[:40]
        with torch.inference_mode():
            live = model(**rows.batch(some).inputs).logits.numpy()
        assert rows.teacher_logits(some) == pytest.approx(live, abs=1e-5)
        assert len(made.logits(split)) == len(rows) == len(made.logits(split).all())
    assert torch.equal(rows.batch(some).teacher_logits_BxC, torch.from_numpy(rows.teacher_logits(some)))


def test_rows_are_labelled_once(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    progress: list[tuple[int, int]] = []
    pool = Listing()
    made = obtain_transfer_set(Labelling(SETTINGS, teacher, tokens), paths, pool, lambda *done: progress.append(done))
    assert sorted(pool.ran) == sorted([*ALL, "check"])
    assert progress == [(done, 6) for done in range(1, 7)]
    assert sorted(path.name for path in made.folder.iterdir()) == ["manifest.json", *ALL]
    assert obtained(teacher, tokens, paths) == (made, [])


def test_labelling_that_is_cut_off_goes_on(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtained(teacher, tokens, paths, killed_after=2)
    made, ran = obtained(teacher, tokens, paths)
    assert ran == [*SHARDS[2:], "validation-000000000.arrow", "test-000000000.arrow", "check"]
    assert len(made.rows(tokens, "train")) == 320


def test_labelling_that_is_cut_off_before_the_check(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtained(teacher, tokens, paths, killed_after=6)
    made, ran = obtained(teacher, tokens, paths)
    assert ran == ["check"]
    assert (made.folder / "manifest.json").exists()


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_flipped_byte_is_labelled_again(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, where: float
) -> None:
    made, _ = obtained(teacher, tokens, paths)
    shard = made.folder / SHARDS[1]
    whole = shard.read_bytes()
    at = int(where * len(whole))
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert obtained(teacher, tokens, paths)[1] == [SHARDS[1], "check"]
    assert shard.read_bytes() == whole


def test_a_lost_shard_is_labelled_again(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    made, _ = obtained(teacher, tokens, paths)
    (made.folder / SHARDS[3]).unlink()
    assert obtained(teacher, tokens, paths)[1] == [SHARDS[3], "check"]


def test_shards_of_another_size_do_not_mix(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    one, _ = obtained(teacher, tokens, paths)
    other, _ = obtained(teacher, tokens, paths, Transfer(precision="fp32", shard_rows=50))
    for made in (one, other):
        assert len(made.rows(tokens, "train")) == 320
    assert other.logits("train").all() == pytest.approx(one.logits("train").all(), abs=1e-5)


def test_bf16_is_another_set_and_measures_in_fp32(teacher: Pretrained, tokens: TokenSet, paths: StoragePaths) -> None:
    exact, _ = obtained(teacher, tokens, paths)
    rough, _ = obtained(teacher, tokens, paths, SETTINGS.model_copy(update={"precision": "bf16"}))
    assert rough.folder != exact.folder
    assert np.array_equal(rough.logits("validation").all(), exact.logits("validation").all())
    assert not np.array_equal(rough.logits("train").all(), exact.logits("train").all())
    assert rough.logits("train").all() == pytest.approx(exact.logits("train").all(), abs=0.1)


def test_another_tokenizer_is_refused(
    teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher.folder, tmp_path / "other"))
    word_tokenizer(["quite other words", "than before"], 30, 16).save_pretrained(folder)
    with pytest.raises(TeacherError, match=f"teacher {folder}: its tokenizer is not the one .* Tokenise the data"):
        obtained(Pretrained(folder, "other"), tokens, paths)
    assert not paths.cache.exists()


def test_logits_of_another_teacher_are_noticed(
    teacher: Pretrained, source: Pretrained, tokens: TokenSet, paths: StoragePaths
) -> None:
    """What lies under the teacher's key was written by another one."""
    other, _ = obtained(Pretrained(source.folder, teacher.key), tokens, paths)
    (other.folder / SHARDS[0]).unlink()
    with pytest.raises(JobError, match=r"stored logits differ from the live teacher's by .* Remove that folder"):
        obtained(teacher, tokens, paths)


def test_rows_of_other_data_are_refused(transfer: TransferSet, tokens: TokenSet) -> None:
    with pytest.raises(StorageError, match="its example ids are not the data's"):
        transfer.logits("test").of(tokens.rows("validation"))


def test_logits_are_read_from_every_shard(transfer: TransferSet) -> None:
    files = sorted(transfer.folder.glob("train-*.arrow"))
    assert len(files) == 3
    logits, indices = StoredLogits(files), np.array([319, 0, 128, 127, 0, 256])
    assert np.array_equal(logits[indices], logits.all()[indices])
    assert logits[np.array([], int)].shape == (0, 2)
