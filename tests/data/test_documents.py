"""The rows of language models: texts without labels, which are cut into splits as documents and read in blocks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.data.truncation import describe_truncation
from kdray.errors import DataError
from kdray.models.fresh import word_tokenizer
from kdray.sources.generated.articles import GeneratedArticles
from kdray.storage.paths import StoragePaths
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.language_model import LanguageModel
from kdray.tasks.masked_lm import MaskedLM

MASKED, CAUSAL = MaskedLM(block=16, maskings=3), CausalLM(block=16)
DOCUMENTS = [f"document {number} " + "word " * (number % 40) for number in range(60)]

both_tasks = pytest.mark.parametrize("task", [MASKED, CAUSAL], ids=lambda task: task.kind)


def jsonl(path: Path, texts: list[Any]) -> None:
    path.write_text("".join(json.dumps({"text": text, "label": number}) + "\n" for number, text in enumerate(texts)))


def json_list(path: Path, texts: list[Any]) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts]))


def parquet(path: Path, texts: list[Any]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "other": list(range(len(texts)))}), path)


def feather(path: Path, texts: list[Any]) -> None:
    pa.feather.write_feather(pa.table({"text": pa.array(texts, pa.string())}), path)


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    "rows.jsonl": jsonl,
    "rows.json": json_list,
    "rows.parquet": parquet,
    "rows.arrow": feather,
}

every_format = pytest.mark.parametrize("name", WRITERS)


def load(path: Path, task: LanguageModel, **settings: Any) -> Splits:
    return load_splits(Data(source=str(path), **settings), task)


def refusal(path: Path, task: LanguageModel, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, task, **settings)
    return str(caught.value)


def texts_of(splits: Splits) -> list[list[str]]:
    return [list(splits.columns(split)["text"]) for split in ("train", "validation", "test")]


@every_format
@both_tasks
def test_every_format_gives_the_texts_of_one_column(tmp_path: Path, name: str, task: LanguageModel) -> None:
    WRITERS[name](tmp_path / name, DOCUMENTS)
    splits = load(tmp_path / name, task)
    assert sorted(text for texts in texts_of(splits) for text in texts) == sorted(DOCUMENTS)
    assert (splits.labels, {*splits.train["label"]}) == ((), {None})
    assert [note.removeprefix(f"{tmp_path / name}: ") for note in splits.notes] == [
        "6 rows were cut from train for validation, at random.",
        "5 rows were cut from train for test, at random.",
    ]


def test_a_hub_dataset_that_is_saved(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"body": DOCUMENTS})}).save_to_disk(tmp_path / "saved")
    splits = load(tmp_path / "saved", CausalLM(text="body"))
    assert sum(map(len, texts_of(splits))) == len(DOCUMENTS)


@every_format
def test_blank_texts_are_left_out_with_a_note(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ["", " \n\t", *DOCUMENTS])
    splits = load(tmp_path / name, CAUSAL)
    assert f"{tmp_path / name}: 2 of 62 texts are blank and are left out." in splits.notes
    assert sum(map(len, texts_of(splits))) == len(DOCUMENTS)


@every_format
def test_a_file_of_blank_texts_is_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ["", "  "])
    assert refusal(tmp_path / name, MASKED).endswith("column 'text': all 2 texts are blank. Give a file with text.")


@every_format
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [])
    message = refusal(tmp_path / name, MASKED)
    assert str(tmp_path / name) in message
    assert "label" not in message


@every_format
def test_a_cell_without_a_text_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ["a text", None, "another"])
    assert f"{tmp_path / name}, row 2, column 'text': " in refusal(tmp_path / name, CAUSAL)


@pytest.mark.parametrize("cell", [7, ["a", "list"], {"text": "x"}, True])
def test_a_json_cell_of_another_type_is_refused_with_its_row(tmp_path: Path, cell: Any) -> None:
    jsonl(tmp_path / "rows.jsonl", ["a text", cell])
    assert "row 2, column 'text': " in refusal(tmp_path / "rows.jsonl", CAUSAL)


@every_format
def test_a_wrong_column_is_refused_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, DOCUMENTS)
    message = refusal(tmp_path / name, CausalLM(text="txt"))
    assert "no column 'txt' (task.text); did you mean 'text'?" in message


@both_tasks
@pytest.mark.parametrize("seed", [0, 1])
def test_no_document_stands_in_two_splits(tmp_path: Path, task: LanguageModel, seed: int) -> None:
    jsonl(tmp_path / "rows.jsonl", DOCUMENTS)
    settings = {"validation_fraction": 0.25, "test_fraction": 0.2, "seed": seed}
    splits = load(tmp_path / "rows.jsonl", task, **settings)
    assert [*map(len, texts_of(splits))] == [36, 15, 9]
    tokenizer = word_tokenizer(DOCUMENTS, 100, task.max_length, task.is_causal)
    tokens = tokenise(splits, task, tokenizer, StoragePaths(tmp_path / "storage"))
    numbers = [numbers_in(tokens, split, tokenizer, task.is_causal) for split in ("train", "validation", "test")]
    assert [*map(len, numbers)] == [36, 15, 9]
    assert len(set[str]().union(*numbers)) == len(DOCUMENTS)


def numbers_in(tokens: TokenSet, split: str, tokenizer: Any, is_causal: bool) -> set[str]:
    """The numbers that the blocks of a split have, with their masked tokens: each document has one of its own."""
    rows = tokens.all_rows(split)
    assert len(rows) > len({*rows.ids})  # some documents are several blocks
    batch = rows.batch(np.arange(len(rows)))
    assert batch.places_A is not None
    ids = batch.inputs["input_ids"].view(-1)
    ids[batch.places_A + is_causal] = batch.gold
    return {word for word in tokenizer.convert_ids_to_tokens(ids.tolist()) if word.isdecimal()}


@pytest.mark.parametrize("settings", [{"max_rows": 10}, {"max_rows": 10, "seed": 3}])
def test_max_rows_draws_documents_of_each_split(tmp_path: Path, settings: dict[str, int]) -> None:
    jsonl(tmp_path / "rows.jsonl", DOCUMENTS)
    texts = texts_of(load(tmp_path / "rows.jsonl", CAUSAL, test_fraction=0.4, **settings))
    assert [*map(len, texts)] == [10, 6, 10]
    assert all(text in DOCUMENTS for some in texts for text in some)
    assert len({text for some in texts for text in some}) == 26


def test_too_few_documents_to_cut_a_split_from(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("One book\n\nwith two paragraphs.\n")
    message = refusal(tmp_path / "book.txt", CAUSAL, format="documents")
    assert "train's 1 rows are too few to cut 10% off for validation (data.validation_fraction)" in message


def test_findings_speak_of_texts_and_not_of_labels(tmp_path: Path) -> None:
    invisible = "\u200b"
    jsonl(tmp_path / "train.jsonl", [*DOCUMENTS, DOCUMENTS[0], invisible])
    jsonl(tmp_path / "validation.jsonl", [*DOCUMENTS[:2], "new"])
    jsonl(tmp_path / "test.jsonl", ["new", "newer"])
    notes = load(tmp_path, MASKED).notes
    assert [re.sub(", for example .*?;", ";", note) for note in notes] == [
        f"{tmp_path}/train.jsonl: 1 of 62 texts are blank and are left out.",
        "validation: 2 of 3 texts stand in train, too; they are used, and make its figures look better than for new "
        "texts.",
        "test: 1 of 2 texts stand in validation, too; they are used.",
        "train: 1 of 61 rows repeat an earlier row; they are used, and count as often as they occur.",
    ]


@both_tasks
def test_a_validation_split_of_training_texts_is_refused(tmp_path: Path, task: LanguageModel) -> None:
    jsonl(tmp_path / "train.jsonl", DOCUMENTS)
    jsonl(tmp_path / "validation.jsonl", DOCUMENTS[:30])
    jsonl(tmp_path / "test.jsonl", ["a new text"])
    assert "validation: all its 30 rows stand in train, too" in refusal(tmp_path, task)


def notes_about_blocks(folder: Path, task: LanguageModel, **splits: list[str]) -> list[str]:
    for split, texts in splits.items():
        jsonl(folder / f"{split}.jsonl", texts)
    loaded = load(folder, task)
    tokenizer = word_tokenizer(DOCUMENTS, 100, task.max_length, task.is_causal)
    tokens = tokenise(loaded, task, tokenizer, StoragePaths(folder / "storage"))
    return describe_truncation(tokens, loaded, task, tokenizer)


@pytest.mark.parametrize("maskings", [None, 3])
def test_a_note_counts_documents_blocks_and_tokens(tmp_path: Path, maskings: int | None) -> None:
    # A block has 14 words: two tokens are special. However many maskings are stored, a block counts once.
    texts = {"train": ["word " * 28, "word " * 14, "word"], "validation": ["word " * 3, "word " * 6], "test": ["a"]}
    assert notes_about_blocks(tmp_path, MaskedLM(block=16, maskings=maskings), **texts) == [
        "train: 3 documents in 4 blocks of at most 16 tokens (task.block), 51 tokens in all; 1 document is shorter "
        "than half a block.",
        "validation: 2 documents in 2 blocks of at most 16 tokens (task.block), 13 tokens in all; 1 document is "
        "shorter than half a block. No document fills a block: the longest has 8 tokens. If the rows are parts of "
        "longer texts, give these as documents (data.format); otherwise a smaller task.block reads the same.",
        "test: 1 document in 1 block of at most 16 tokens (task.block), 3 tokens in all; 1 document is shorter than "
        "half a block. No document fills a block: the longest has 3 tokens. If the rows are parts of longer texts, "
        "give these as documents (data.format); otherwise a smaller task.block reads the same.",
    ]


def test_a_causal_model_has_a_note_too(tmp_path: Path) -> None:
    texts = {"train": ["word " * 30, "word " * 15], "validation": ["word " * 30], "test": ["word " * 20]}
    train = notes_about_blocks(tmp_path, CAUSAL, **texts)[0]
    # A text ends with a token; the second block begins with the last token of the first one.
    assert train.startswith("train: 2 documents in 3 blocks of at most 16 tokens (task.block), 48 tokens in all; 0 ")


def test_generated_articles_need_no_labels() -> None:
    splits = load_splits(Data(source=GeneratedArticles(train_rows=50, validation_rows=5, test_rows=5)), MASKED)
    assert ([*map(len, texts_of(splits))], splits.labels, splits.notes) == ([50, 5, 5], (), ())
