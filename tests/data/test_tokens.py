"""Token ids in the cache, memory-mapped rows, padded batches, and the order in which they come."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kdray.data.batches import epoch_batches, ordered_batches
from kdray.data.generated import GeneratedReviews
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise, tokenizer_key
from kdray.errors import TeacherError
from kdray.models.fresh import word_tokenizer
from kdray.storage.paths import StoragePaths
from kdray.tasks.text_classification import TextClassification

TASK = TextClassification(max_length=12)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(Data(source=GeneratedReviews(train_rows=100, validation_rows=20, test_rows=20)), TASK)


@pytest.fixture(scope="module")
def tokenizer(splits: Splits) -> PreTrainedTokenizerFast:
    return word_tokenizer(list(splits.train["text"]), 200, 64)


@pytest.fixture
def tokens(splits: Splits, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> TokenSet:
    return tokenise(splits, TASK, tokenizer, StoragePaths(tmp_path))


def test_a_batch_is_what_the_tokenizer_itself_would_give(
    splits: Splits, tokens: TokenSet, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows, chosen = tokens.rows("train"), np.array([7, 3, 99, 0])
    batch = rows.batch(chosen)
    texts = [splits.train[int(row)]["text"] for row in chosen]
    expected = tokenizer(texts, truncation=True, max_length=12, padding=True, pad_to_multiple_of=4, return_tensors="pt")
    assert batch.inputs.keys() == {name for name in expected if name in tokenizer.model_input_names}
    for name, values in batch.inputs.items():
        assert torch.equal(values, expected[name])
    assert batch.labels_B.tolist() == [splits.train[int(row)]["label"] for row in chosen]
    assert batch.ids.tolist() == [7, 3, 99, 0]


@pytest.mark.parametrize("multiple", [1, 8])
def test_texts_without_a_token_are_one_of_padding(multiple: int, tmp_path: Path) -> None:
    """A decoder's tokenizer frames nothing, and so makes nothing of an empty text."""
    (tmp_path / "train.jsonl").write_text('{"text": "", "label": 0}\n{"text": "good film", "label": 1}\n' * 40)
    splits = load_splits(Data(source=str(tmp_path)), TASK)
    tokenizer = word_tokenizer(["good film"], 50, 64)
    tokenizer.backend_tokenizer.post_processor = None
    rows = tokenise(splits, TASK, tokenizer, StoragePaths(tmp_path)).rows("train")
    empty = np.flatnonzero(rows.lengths == 0)
    assert len(empty) > 10
    inputs = rows.batch(empty[:2], multiple).inputs
    assert inputs["input_ids"].shape == (2, multiple)
    assert (inputs["input_ids"] == tokenizer.pad_token_id).all()
    assert not inputs["attention_mask"].any()


def test_padding_goes_to_a_multiple_of_8_but_not_beyond_the_maximum(tokens: TokenSet) -> None:
    rows = tokens.rows("train")
    assert rows.lengths.max() == 12
    for row, length in enumerate(rows.lengths):
        width = rows.batch(np.array([row]), 8).inputs["input_ids"].shape[1]
        assert width == min(-(-length // 8) * 8, 12)
    assert rows.batch(np.arange(len(rows)), 8).inputs["input_ids"].shape == (100, 12)


def test_pairs_have_token_types(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lines = "text\tsecond\tlabel\nthe plot is bad\tthe cast is good\tyes\nthe plot\tgood\tno\n"
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text(lines)
    task = TextClassification(pair="second", max_length=12)
    pairs = load_splits(Data(source=str(tmp_path)), task)
    rows = tokenise(pairs, task, tokenizer, StoragePaths(tmp_path / "storage")).rows("train")
    inputs = rows.batch(np.array([0])).inputs
    assert inputs["input_ids"].shape == inputs["token_type_ids"].shape
    assert tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == "the plot is bad the cast is good"
    assert inputs["token_type_ids"][0].sum() > 0


def test_rows_are_mapped_not_copied_and_travel_by_name(tokens: TokenSet) -> None:
    rows = tokens.rows("train")
    assert not rows._values["input_ids"].flags.owndata
    sent = pickle.dumps(rows)
    assert len(sent) < 1000
    assert torch.equal(
        pickle.loads(sent).batch(np.array([5])).inputs["input_ids"], rows.batch(np.array([5])).inputs["input_ids"]
    )


def test_teacher_logits_travel_with_the_batch(tokens: TokenSet) -> None:
    rows = tokens.rows("validation")
    assert rows.batch(np.array([0])).teacher_logits_BxC is None
    with pytest.raises(LookupError):
        rows.teacher_logits(np.array([0]))
    logits = np.arange(40, dtype=np.float64).reshape(20, 2)
    batch = rows.with_logits(logits).batch(np.array([3, 1]))
    assert batch.to(torch.device("cpu")).teacher_logits_BxC.tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert batch.teacher_logits_BxC.dtype == torch.float32


def test_the_cache_is_used_while_sound_and_made_anew_when_not(
    splits: Splits, tokens: TokenSet, tokenizer: PreTrainedTokenizerFast
) -> None:
    paths, file = StoragePaths(tokens.folder.parent.parent.parent), tokens.folder / "train.arrow"
    written = file.stat().st_mtime_ns
    assert tokenise(splits, TASK, tokenizer, paths) == tokens
    assert file.stat().st_mtime_ns == written
    whole = file.read_bytes()
    file.write_bytes(whole[:-500] + bytes(500))
    assert tokenise(splits, TASK, tokenizer, paths) == tokens
    assert file.read_bytes() == whole


def test_other_text_length_or_tokenizer_is_another_set(
    splits: Splits, tokens: TokenSet, tokenizer: PreTrainedTokenizerFast
) -> None:
    paths = StoragePaths(tokens.folder.parent.parent.parent)
    shorter = tokenise(splits, TextClassification(max_length=10), tokenizer, paths)
    assert shorter.key != tokens.key
    assert shorter.rows("train").lengths.max() == 10
    other = word_tokenizer(list(splits.train["text"]), 30, 64)
    assert tokenise(splits, TASK, other, paths).key != tokens.key
    tokens.check_tokenizer(tokenizer, "teacher")
    with pytest.raises(TeacherError, match="teacher x: its tokenizer is not the one"):
        tokens.check_tokenizer(other, "teacher x")


def test_the_tokenizer_key_survives_saving_and_use(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    before = tokenizer_key(tokenizer)
    tokenizer(["a b"], truncation=True, max_length=5, padding="max_length")
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_key(tokenizer) == before
    assert tokenizer_key(TASK.tokenizer(tmp_path)) == before


@given(lengths=st.lists(st.integers(2, 128), min_size=1, max_size=300), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_row_once_an_epoch(lengths: list[int], size: int, seed: int) -> None:
    batches = epoch_batches(np.array(lengths), size, seed=seed, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    in_order = ordered_batches(np.array(lengths), size)
    assert sorted(np.concatenate(in_order)) == list(range(len(lengths)))
    assert [lengths[row] for batch in in_order for row in batch] == sorted(lengths, reverse=True)


def test_batches_change_with_seed_and_epoch_and_hold_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(4, 128, 5000)
    batches = epoch_batches(lengths, 32, seed=3, epoch=1)
    assert all(np.array_equal(a, b) for a, b in zip(batches, epoch_batches(lengths, 32, seed=3, epoch=1), strict=True))
    for seed, epoch in ((4, 1), (3, 2)):
        assert not np.array_equal(batches[0], epoch_batches(lengths, 32, seed=seed, epoch=epoch)[0])
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()
    longest = [lengths[batch].max() for batch in batches]
    assert longest != sorted(longest)
