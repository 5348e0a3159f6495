"""Rows and batches with every shape of gold: one label, several labels, a number, and a tag for each word."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdray.data.gold import SeveralLabels
from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet, tokenise
from kdray.models.fresh import word_tokenizer
from kdray.storage.paths import StoragePaths
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]


def token_set(folder: Path, task: Task, columns: Mapping[str, Any], labels: tuple[str, ...]) -> TokenSet:
    """The token ids of these columns, which are those of all splits."""
    columns = {"id": list(range(len(columns["label"]))), **columns}
    splits: Any = SimpleNamespace(labels=labels, key="rows", more_key=None, blocks=lambda split: iter([columns]))
    return tokenise(splits, task, word_tokenizer(WORDS, 50, 64), StoragePaths(folder))


def tagged(folder: Path, max_length: int = 8) -> Rows:
    """Sentences of 3, 11, 1 and 4 words; the second one is divided into windows. The tag of a word is its number."""
    texts = [WORDS[:3], WORDS, WORDS[:1], WORDS[3:7]]
    tags = [[WORDS.index(word) for word in text] for text in texts]
    task = TokenClassification(max_length=max_length, scheme="plain")
    return token_set(folder, task, {"text": texts, "label": tags}, tuple(WORDS)).rows("train")


def test_one_label(tmp_path: Path) -> None:
    columns = {"text": ["one two", "three", "four five six"], "label": [1, 0, 1]}
    rows = token_set(tmp_path, TextClassification(max_length=8), columns, ("a", "b")).rows("train")
    assert (rows.gold.dtype, rows.gold.tolist()) == (np.int64, [1, 0, 1])
    assert rows.answer_starts.tolist() == rows.example_starts.tolist() == [0, 1, 2, 3]
    batch = rows.batch(np.array([2, 1]))
    assert batch.places_A is None
    assert batch.gold.tolist() == [1, 0]
    logits = torch.randn(2, 2)
    assert batch.answers(logits) is logits
    assert rows.count_answers(np.array([0, 2])) == (2, 2)
    assert rows.labels == ("a", "b")


def test_several_labels(tmp_path: Path) -> None:
    columns = {"text": ["one", "two", "three"], "label": [[2, 0], [], [1]]}
    rows = token_set(tmp_path, MultiLabel(max_length=8), columns, ("a", "b", "c")).rows("train")
    assert (rows.gold.dtype, rows.gold.tolist()) == (np.int64, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert rows.batch(np.array([2, 0])).gold.tolist() == [[0, 1, 0], [1, 0, 1]]
    # A row without labels has gold: none of them holds.
    assert rows.count_answers(np.arange(3)) == (3, 3)
    assert rows.part(1, 3).gold.tolist() == [[0, 0, 0], [0, 1, 0]]


def test_numbers(tmp_path: Path) -> None:
    columns = {"text": ["one", "two", "three"], "pair": ["two", "one", "six"], "label": [0.5, -3.25, float("nan")]}
    rows = token_set(tmp_path, Regression(pair="pair", max_length=8), columns, ()).rows("train")
    assert rows.gold.dtype == np.float64
    assert rows.gold[:2].tolist() == [0.5, -3.25]
    assert rows.batch(np.array([1])).gold.tolist() == [-3.25]
    assert rows.count_answers(np.arange(3)) == (3, 2)
    assert rows.labels == ()


def test_tags_of_words(tmp_path: Path) -> None:
    rows = tagged(tmp_path)
    assert rows.ids.tolist() == sorted(rows.ids.tolist())
    assert np.bincount(rows.ids).tolist() == [1, 3, 1, 1]  # the windows of each sentence
    assert rows.gold.tolist() == [*range(3), *range(11), 0, *range(3, 7)]
    assert rows.example_starts.tolist() == [0, 3, 14, 15, 19]
    assert rows.answer_starts[-1] == 19
    assert np.bincount(rows.answer_ids).tolist() == [3, 11, 1, 4]


@pytest.mark.parametrize("indices", [[0], [3, 0, 2], [5, 4, 3, 2, 1, 0], [2, 2, 1]])
@pytest.mark.parametrize("multiple", [1, 8])
def test_each_answer_is_read_at_the_first_token_of_its_word(tmp_path: Path, indices: list[int], multiple: int) -> None:
    """In this tokenizer a word is one token, so the id at the place of an answer is that of its word."""
    rows, tokenizer = tagged(tmp_path), word_tokenizer(WORDS, 50, 64)
    batch = rows.batch(np.array(indices), multiple)
    ids = batch.inputs["input_ids"]
    at_answers = batch.answers(ids[:, :, None].float())[:, 0].long()
    assert tokenizer.convert_ids_to_tokens(at_answers) == [WORDS[tag] for tag in batch.gold]
    assert rows.gold[rows.answers(np.array(indices))].tolist() == batch.gold.tolist()
    assert rows.count_answers(np.array(indices)) == (len(batch.gold), len(batch.gold))


def test_a_part_has_the_answers_of_its_rows(tmp_path: Path) -> None:
    rows = tagged(tmp_path)
    parts = [rows.part(start, min(start + 2, len(rows))) for start in range(0, len(rows), 2)]
    assert np.array_equal(np.concatenate([part.gold for part in parts]), rows.gold)
    assert np.array_equal(np.concatenate([part.answer_ids for part in parts]), rows.answer_ids)
    for start, part in zip(range(0, len(rows), 2), parts, strict=True):
        own, whole = part.batch(np.arange(len(part))), rows.batch(np.arange(start, start + len(part)))
        assert own.gold.tolist() == whole.gold.tolist()
        assert own.places_A is not None
        assert whole.places_A is not None
        assert torch.equal(own.places_A, whole.places_A)
        assert torch.equal(own.inputs["input_ids"], whole.inputs["input_ids"])


def test_the_token_ids_are_those_of_the_rows_and_of_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdray.data.rows.TOKENS_AT_ONCE", 3)
    rows = tagged(tmp_path)
    for part in (rows, rows.first(1), rows.part(2, len(rows)), rows.part(1, 1)):
        texts = [part.batch(np.array([number])).inputs["input_ids"].flatten().tolist() for number in range(len(part))]
        assert part.token_ids is not None
        assert part.token_ids.tolist() == sorted({0}.union(*texts))


def test_a_part_of_a_part_has_the_rows_of_the_file(tmp_path: Path) -> None:
    rows = tagged(tmp_path)
    part = rows.part(1, 5)
    assert part.part(1, 3).ids.tolist() == rows.ids[2:4].tolist()
    assert part.first(2).ids.tolist() == rows.ids[1:3].tolist()


def test_teacher_logits_are_those_of_the_answers(tmp_path: Path) -> None:
    rows = tagged(tmp_path)
    logits_AxC = np.arange(19 * 2, dtype=np.float32).reshape(19, 2)
    with_logits = rows.with_logits(logits_AxC)
    assert np.array_equal(with_logits.teacher_logits(), logits_AxC)
    indices = np.array([4, 1])
    batch = with_logits.batch(indices)
    assert batch.teacher_logits_AxC is not None
    assert np.array_equal(batch.teacher_logits_AxC.numpy(), logits_AxC[rows.answers(indices)])
    assert len(batch.teacher_logits_AxC) == len(batch.gold)
    moved = batch.to(torch.device("cpu"))
    assert moved.places_A is not None
    with pytest.raises(LookupError, match="no teacher logits"):
        rows.teacher_logits()


def test_rows_of_words_survive_pickling(tmp_path: Path) -> None:
    rows = tagged(tmp_path).part(1, 4)
    loaded = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(loaded.gold, rows.gold)
    assert np.array_equal(loaded.example_starts, rows.example_starts)


def test_cached_rows_of_words_are_read_again(tmp_path: Path) -> None:
    """The second call finds the files of the first one, and checks a sample of them."""
    assert np.array_equal(tagged(tmp_path).gold, tagged(tmp_path).gold)
    (files,) = {path.parent for path in tmp_path.rglob("train.arrow")}
    written = (files / "train.arrow").stat().st_mtime_ns
    tagged(tmp_path)
    assert (files / "train.arrow").stat().st_mtime_ns == written
    tagged(tmp_path, max_length=16)
    assert len(list(tmp_path.rglob("train.arrow"))) == 2


@pytest.mark.parametrize(
    ("task", "labels", "gold"),
    [
        (TextClassification(max_length=8), ("a", "b"), [1, 0, -1, 1]),
        (MultiLabel(max_length=8), ("a", "b", "c"), [[2, 0], None, [], [1]]),
        (Regression(max_length=8), (), [0.5, float("nan"), -3.25, 1.0]),
        (TokenClassification(max_length=8, scheme="plain"), tuple(WORDS), [[0, 1, 2], [], [5] * 11, [3]]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
@pytest.mark.parametrize("limit", [{"ENCODED_AT_ONCE": 1}, {"ENCODED_AT_ONCE": 3}, {"CHARACTERS_AT_ONCE": 12}], ids=str)
def test_a_file_that_is_written_in_pieces_is_the_file_that_is_written_at_once(
    task: Task,
    labels: tuple[str, ...],
    gold: list[Any],
    limit: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [WORDS[:3], [], WORDS, WORDS[3:4]]
    columns = {"text": words if task.kind == "token_classification" else [*map(" ".join, words)], "label": gold}
    whole = token_set(tmp_path / "whole", task, columns, labels)
    for name, value in limit.items():
        monkeypatch.setattr(f"kdray.data.tokens.{name}", value)
    pieces = token_set(tmp_path / "pieces", task, columns, labels)
    assert sorted(file.name for file in pieces.folder.iterdir()) == sorted(file.name for file in whole.folder.iterdir())
    for file in whole.folder.iterdir():
        assert (pieces.folder / file.name).read_bytes() == file.read_bytes()


def test_sets_of_labels_are_equal_in_whatever_order_their_cells_name_them() -> None:
    names, numbers = ("b", "a", "c"), {"a": 0, "b": 1, "c": 2}
    codes, starts = np.array([0, 1, 1, 0, 1, 2]), np.array([0, 2, 5, 5, 6])
    labels = SeveralLabels(codes, names, starts, np.zeros(4, bool), is_set=True)
    assert labels.numbered(numbers).to_pylist() == [[0, 1], [0, 1], [], [2]]
    in_order = SeveralLabels(codes, names, starts, np.zeros(4, bool))
    assert in_order.numbered(numbers).to_pylist() == [[1, 0], [0, 1, 0], [], [2]]
