"""`kdray predict` with a tagger, with a student for several labels, and with one for numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdray.export.prediction import Predictor
from kdray.export.shipped import read_shipped
from tests.cli.test_cli import kdray
from tests.export.conftest import GetSweep, read_test_rows
from tests.export.test_prediction import run_with_input, write_file

ENDINGS = ("csv", "jsonl", "parquet")
SPAN_KEYS = {"text", "start", "end", "label", "score"}


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows of a predicted file; lists in a csv file are JSON."""
    match file.suffix:
        case ".csv":
            with file.open() as stream:
                return list(csv.DictReader(stream))
        case ".jsonl":
            return [json.loads(line) for line in file.read_text().splitlines()]
        case _:
            rows: list[dict[str, Any]] = json.loads(pd.read_parquet(file).to_json(orient="records"))
            return rows


def _predict(sweep: Path, source: Path, ending: str) -> list[dict[str, Any]]:
    target = source.with_name(f"out.{ending}")
    done = kdray("predict", sweep, "--file", source, "--to", target)
    assert done.code == 0, done.err
    return _read(target)


def _check_spans(text: str, spans: list[dict[str, Any]]) -> None:
    for span in spans:
        assert span.keys() == SPAN_KEYS
        assert text[span["start"] : span["end"]] == span["text"]
        assert span["label"] in ("person", "place", "work", "product")
        assert 0 < span["score"] <= 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_of_words_or_of_texts_gets_spans(finished: GetSweep, tmp_path: Path, ending: str) -> None:
    paths = finished("tags")
    lists = [list(words) for words in read_test_rows(paths)["text"][:20]]
    by_kind = []
    for name, cells in (("words", lists), ("texts", [" ".join(words) for words in lists])):
        rows = [{"id": number, "tokens": cell} for number, cell in enumerate(cells)]
        predicted = _predict(paths.root, write_file(tmp_path, f"{name}.jsonl", rows), ending)
        cells_read = [row["tokens"] for row in predicted]
        spans = [row["predicted"] for row in predicted]
        if ending == "csv":
            spans = [json.loads(cell) for cell in spans]
            cells_read = [json.loads(cell) if name == "words" else cell for cell in cells_read]
        assert cells_read == cells
        for words, found in zip(lists, spans, strict=True):
            _check_spans(" ".join(words), found)
        by_kind.append(spans)
    assert sum(map(len, by_kind[0])) > 10
    assert by_kind[0] == by_kind[1]  # the words of these texts have spaces between them


def test_a_list_of_words_keeps_its_words(finished: GetSweep) -> None:
    predictor = Predictor(read_shipped(finished("tags")), "pytorch", 2)
    columns = predictor.student.task.columns_of([["New York", "left", "."], "New York left."], None)
    assert [list(words) for words in columns["text"]] == [["New York", "left", "."], ["New", "York", "left", "."]]
    outputs = predictor.outputs(columns)
    assert outputs.logits_AxC.shape == (7, len(predictor.labels))


def test_a_parquet_file_of_words_is_read(finished: GetSweep, tmp_path: Path) -> None:
    paths = finished("tags")
    lists = [list(words) for words in read_test_rows(paths)["text"][:5]]
    source = write_file(tmp_path, "in.parquet", [{"tokens": words} for words in lists])
    expected = write_file(tmp_path, "in.jsonl", [{"tokens": words} for words in lists])
    assert _predict(paths.root, source, "jsonl") == _predict(paths.root, expected, "jsonl")


def test_texts_and_lines_get_spans(finished: GetSweep) -> None:
    paths = finished("tags")
    texts = [" ".join(words) for words in read_test_rows(paths)["text"][:5]]
    done = kdray("predict", paths.root, *texts)
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[1] for line in lines] == texts
    for text, (spans, _) in zip(texts, lines, strict=True):
        _check_spans(text, json.loads(spans))
    content = "\n".join(texts).encode()
    assert run_with_input(content, "predict", paths.root, "-").out == done.out


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_gets_several_labels(finished: GetSweep, tmp_path: Path, ending: str) -> None:
    paths = finished("labels")
    texts = list(read_test_rows(paths)["text"][:20])
    source = write_file(tmp_path, "in.csv", [{"text": text} for text in texts])
    config = json.loads((paths.chosen / "config.json").read_text())
    predicted = _predict(paths.root, source, ending)
    assert len({row["predicted"] for row in predicted}) > 1
    for row, text in zip(predicted, texts, strict=True):
        assert row["text"] == text
        scores = [float(row[f"probability_{label}"]) for label in config["label2id"]]
        above = [
            label
            for label, score, threshold in zip(config["label2id"], scores, config["thresholds"], strict=True)
            if score > threshold
        ]
        assert row["predicted"] == ",".join(above)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_of_pairs_gets_numbers(finished: GetSweep, tmp_path: Path, ending: str) -> None:
    paths = finished("numbers")
    rows = read_test_rows(paths)[:10]
    pairs = [{"text": text, "pair": pair} for text, pair in zip(rows["text"], rows["pair"], strict=True)]
    predicted = _predict(paths.root, write_file(tmp_path, "in.parquet", pairs), ending)
    assert [{"text": row["text"], "pair": row["pair"]} for row in predicted] == pairs
    done = kdray("predict", paths.root, *rows["text"], *(word for pair in rows["pair"] for word in ("--pair", pair)))
    assert done.code == 0, done.err
    printed = [float(line.split("\t")[0]) for line in done.out.splitlines()]
    assert [float(row["predicted"]) for row in predicted] == pytest.approx(printed, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "row", "part"),
    [
        ("tags", {"text": ["a"]}, "no column 'tokens', which this student reads"),
        ("tags", {"tokens": [["a"]]}, "row 1, column 'tokens'"),
        ("numbers", {"text": "a"}, "no column 'pair', which this student reads"),
    ],
)
def test_a_file_with_wrong_columns_is_refused(
    finished: GetSweep, tmp_path: Path, name: str, row: dict[str, Any], part: str
) -> None:
    source = write_file(tmp_path, "in.jsonl", [row])
    done = kdray("predict", finished(name).root, "--file", source, "--to", tmp_path / "out.csv")
    assert done.code == 2
    assert part in " ".join(done.err.split())
    assert not (tmp_path / "out.csv").exists()


def test_the_help_speaks_of_no_single_task() -> None:
    text = kdray("predict", "--help").out
    assert "Classify" not in text
    assert "label" not in text.lower()
