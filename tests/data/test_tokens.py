"""Token ids in the cache, memory-mapped rows, padded batches, and the order of the batches."""

import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kdray.data.batches import batches_of_equal_length, epoch_batches, ordered_batches
from kdray.data.column_files import ColumnFiles
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise, tokenizer_key
from kdray.data.truncation import describe_truncation
from kdray.errors import SpecError, TeacherError
from kdray.models.fresh import word_tokenizer
from kdray.sources.generated.reviews import GeneratedReviews
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


def test_a_batch_equals_what_the_tokenizer_gives(
    splits: Splits, tokens: TokenSet, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows, chosen = tokens.rows("train"), np.array([7, 3, 99, 0])
    batch = rows.batch(chosen)
    texts = [splits.train[int(row)]["text"] for row in chosen]
    expected = tokenizer(texts, truncation=True, max_length=12, padding=True, pad_to_multiple_of=4, return_tensors="pt")
    assert batch.inputs.keys() == {name for name in expected if name in tokenizer.model_input_names}
    for name, values in batch.inputs.items():
        assert torch.equal(values, expected[name])
    assert batch.gold.tolist() == [splits.train[int(row)]["label"] for row in chosen]
    assert batch.ids.tolist() == [7, 3, 99, 0]


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_text_without_tokens_becomes_padding(multiple: int, tmp_path: Path) -> None:
    """A decoder's tokenizer adds no special tokens, so an empty text has no tokens at all."""
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


def test_padding_reaches_a_multiple_of_8_but_at_most_the_maximum_length(tokens: TokenSet) -> None:
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


def test_rows_are_memory_mapped_and_pickled_as_a_file_name(tokens: TokenSet) -> None:
    rows = tokens.rows("train")
    assert not rows._values["input_ids"].flags.owndata
    pickled = pickle.dumps(rows)
    assert len(pickled) < 1000
    unpickled, row = pickle.loads(pickled), np.array([5])
    assert torch.equal(unpickled.batch(row).inputs["input_ids"], rows.batch(row).inputs["input_ids"])


def test_a_batch_has_the_teacher_logits_of_its_rows(tokens: TokenSet) -> None:
    rows = tokens.rows("validation")
    assert rows.batch(np.array([0])).teacher_logits_AxC is None
    with pytest.raises(LookupError):
        rows.teacher_logits(np.array([0]))
    logits = np.arange(40, dtype=np.float64).reshape(20, 2)
    batch = rows.with_logits(logits).batch(np.array([3, 1]))
    assert batch.to(torch.device("cpu")).teacher_logits_AxC.tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert batch.teacher_logits_AxC.dtype == torch.float32


def test_cached_token_ids_are_used_until_a_file_is_damaged(
    splits: Splits, tokens: TokenSet, tokenizer: PreTrainedTokenizerFast
) -> None:
    paths, file = StoragePaths(tokens.folder.parent.parent.parent), tokens.folder / "train.arrow"
    modified_ns = file.stat().st_mtime_ns
    assert tokenise(splits, TASK, tokenizer, paths) == tokens
    assert file.stat().st_mtime_ns == modified_ns
    content = file.read_bytes()
    file.write_bytes(content[:-500] + bytes(500))
    assert tokenise(splits, TASK, tokenizer, paths) == tokens
    assert file.read_bytes() == content


def test_another_maximum_length_or_tokenizer_makes_another_token_set(
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


def test_the_tokenizer_key_is_the_same_after_saving_and_use(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    key = tokenizer_key(tokenizer)
    tokenizer(["a b"], truncation=True, max_length=5, padding="max_length")
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_key(tokenizer) == key
    assert tokenizer_key(TASK.tokenizer(tmp_path)) == key


@given(lengths=st.lists(st.integers(2, 128), min_size=1, max_size=300), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_row_is_in_one_batch_of_an_epoch(lengths: list[int], size: int, seed: int) -> None:
    batches = epoch_batches(np.array(lengths), size, seed=seed, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    in_order = ordered_batches(np.array(lengths), size)
    assert sorted(np.concatenate(in_order)) == list(range(len(lengths)))
    assert [lengths[row] for batch in in_order for row in batch] == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(1, 5))
def test_batches_of_equal_length_need_no_padding(lengths: list[int], size: int) -> None:
    batches = batches_of_equal_length(np.array(lengths), size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= size and len({lengths[row] for row in batch}) == 1 for batch in batches)
    first = [lengths[batch[0]] for batch in batches]
    assert first == sorted(first, reverse=True)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 100))
def test_batches_have_at_most_so_many_tokens(lengths: list[int], size: int, most: int) -> None:
    batches = ordered_batches(np.array(lengths), size, most)
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths, reverse=True)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        longest = lengths[batch[0]]
        assert len(batch) == 1 or (len(batch) <= size and len(batch) * longest <= most)
        if following is not None:  # the next row had no place
            assert len(batch) == size or (len(batch) + 1) * longest > most


def test_batches_differ_by_seed_and_epoch_and_have_rows_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(4, 128, 5000)
    batches = epoch_batches(lengths, 32, seed=3, epoch=1)
    again = epoch_batches(lengths, 32, seed=3, epoch=1)
    assert all(np.array_equal(first, second) for first, second in zip(batches, again, strict=True))
    for seed, epoch in ((4, 1), (3, 2)):
        assert not np.array_equal(batches[0], epoch_batches(lengths, 32, seed=seed, epoch=epoch)[0])
    padded_tokens = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded_tokens < 1.05 * lengths.sum()
    longest = [lengths[batch].max() for batch in batches]
    assert longest != sorted(longest)


# Many rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column whose cells exist while they are read."""

    rows: int
    cell: Callable[[int], Any]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> list[Any]:
        return [self.cell(row) for row in range(self.rows)[rows]]


@dataclass(frozen=True)
class Texts:
    """Labelled rows, and more texts, for `tokenise`."""

    more: int
    labels: tuple[str, ...] = ("a", "b")
    key: str = "texts"
    more_key: str = "more"

    def blocks(self, split: str) -> Iterator[dict[str, Any]]:
        for rows in (20, self.more) if split == "train" else (20,):
            text = Column(rows, lambda row: f"the plot {row} is good")
            yield {"id": Column(rows, int), "text": text, "label": Column(rows, lambda row: row % 2)}


def test_the_memory_for_tokenising_does_not_grow_with_the_rows(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdray.data.tokens.ENCODED_AT_ONCE", 200)
    peaks = []
    for rows in (200, 400, 4000):  # the first one loads what every call needs
        tracemalloc.start()
        tokens = tokenise(Texts(rows), TASK, tokenizer, StoragePaths(tmp_path / str(rows)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert tokens.train_ends == (20, 20 + rows)
    assert peaks[2] < 1.2 * peaks[1]


class WatchedTask(TextClassification):
    """Notes how many rows are encoded at once."""

    def encode(self, tokenizer: Any, columns: Any, for_training: bool = False) -> Any:
        ENCODED_ROWS.append(len(columns["text"]))
        return super().encode(tokenizer, columns)


ENCODED_ROWS: list[int] = []


def test_few_long_texts_are_encoded_at_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ENCODED_ROWS.clear()
    monkeypatch.setattr("kdray.data.tokens.CHARACTERS_AT_ONCE", 100)
    tokenise(Texts(0), WatchedTask(max_length=12), tokenizer, StoragePaths(tmp_path))
    # 20 texts of 18 and 19 characters in each split, five of which fit into 100 characters.
    assert ENCODED_ROWS[:4] == [5, 5, 5, 5]
    monkeypatch.setattr("kdray.data.tokens.CHARACTERS_AT_ONCE", 1)
    ENCODED_ROWS.clear()
    tokenise(Texts(0), WatchedTask(max_length=11), tokenizer, StoragePaths(tmp_path))
    assert set(ENCODED_ROWS) == {1}


class FailingTask(TextClassification):
    """Cannot encode a certain text."""

    def encode(self, tokenizer: Any, columns: Any, for_training: bool = False) -> Any:
        if "the plot 30 is good" in columns["text"]:
            raise SpecError("text 30")
        return super().encode(tokenizer, columns)


def test_nothing_is_left_of_token_files_that_could_not_be_completed(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdray.data.tokens.ENCODED_AT_ONCE", 10)
    with pytest.raises(SpecError, match="text 30"):
        tokenise(Texts(40), FailingTask(max_length=12), tokenizer, StoragePaths(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pieces_have_the_same_columns(tmp_path: Path) -> None:
    columns = ColumnFiles(tmp_path)
    columns.append(pa.record_batch({"id": [1, 2]}))
    with pytest.raises(ValueError, match="these rows have the columns id: double"):
        columns.append(pa.record_batch({"id": [1.5]}))
    assert columns.rows == 2


# Truncation -----------------------------------------------------------------------------------------------------------


def notes_about_truncation(folder: Path, texts: list[str], pairs: list[str] | None = None) -> list[str]:
    header = "text\tother\tlabel"
    rows = [f"{text}\t{pairs[n] if pairs else 'x'}\t{n % 2}" for n, text in enumerate(texts)]
    (folder / "train.tsv").write_text("\n".join([header, *rows, *(f"a {n}\tx\t{n % 2}" for n in range(40))]))
    task = TextClassification(max_length=12, pair="other" if pairs else None)
    splits = load_splits(Data(source=str(folder)), task)
    tokenizer = word_tokenizer(["a b x"], 50, 64)
    return describe_truncation(tokenise(splits, task, tokenizer, StoragePaths(folder)), splits, task, tokenizer)


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    # With two special tokens, ten words have exactly the maximum length.
    assert notes_about_truncation(tmp_path, [" ".join("a" * 10)] * 20) == []
    long = [" ".join("b" * words) for words in (11, 15, 15, 110)] * 10
    (note,) = [note for note in notes_about_truncation(tmp_path, long) if note.startswith("train:")]
    assert " of 65 texts are cut to 12 tokens (task.max_length); half of them lose 5 tokens or more" in note
    assert "the longest 100; for example 'b b b b" in note


def test_pairs_that_are_cut_are_counted(tmp_path: Path) -> None:
    texts, pairs = [" ".join("a" * 6)] * 10, [" ".join("b" * 7)] * 10
    assert "are cut to 12 tokens" in notes_about_truncation(tmp_path, texts, pairs)[0]
