"""What the chosen student says: of texts, of lines, of files in every format; and sentences where it cannot."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.data.cells import text_column
from kdray.data.sources import open_source
from kdray.errors import DataError, SpecError
from kdray.export.prediction import Predictor, check_pairs, predict_file, read_lines
from kdray.export.shipped import read_shipped
from kdray.storage.paths import SweepPaths
from kdray.tasks.text_classification import TextClassification
from tests.cli.test_cli import TERMINAL, Done, kdray

TEXTS = ["a good warm film", "the dull cold bad plot", "", "witty " * 30, "music"]


def piped(given: bytes, *arguments: str | Path) -> Done:
    """`kdray` with this on its standard input."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given, env={"COLUMNS": "200"})
    return Done(done.exit_code, TERMINAL.sub("", done.stdout), TERMINAL.sub("", done.stderr))


@pytest.fixture(scope="module")
def predictor(chosen: SweepPaths) -> Predictor:
    return Predictor(read_shipped(chosen), "pytorch", 2)


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """A file of these rows in the format that its name ends in."""
    file, table = folder / name, pd.DataFrame(rows)
    match file.suffix:
        case ".csv":
            table.to_csv(file, index=False)
        case ".tsv" | ".txt":
            file.write_text("\n".join("\t".join(str(cell) for cell in line) for line in [table.columns, *table.values]))
        case ".json":
            file.write_text(json.dumps(rows))
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            table.to_parquet(file)
    return file


# Texts ----------------------------------------------------------------------------------------------------------------


def test_the_answers_are_the_model_s_own(predictor: Predictor) -> None:
    model, tokenizer = predictor.student.model.model(), predictor.student.model.tokenizer()
    for text, found_C in zip(TEXTS, predictor.probabilities(TEXTS, None), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            expected_C = model(**inputs).logits.softmax(-1)[0]
        np.testing.assert_allclose(found_C, expected_C, atol=1e-5)


def test_batches_and_chunks_change_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TEXTS * 3
    whole = Predictor(predictor.student, "pytorch", 64).probabilities(texts, None)
    monkeypatch.setattr("kdray.export.prediction.CHUNK", 4)
    progress: list[int] = []
    np.testing.assert_allclose(predictor.probabilities(texts, None, progress.append), whole, atol=1e-5)
    assert progress == sorted(progress)
    assert progress[-1] == len(texts)


def test_texts_on_the_command_line(chosen: SweepPaths) -> None:
    done = kdray("predict", chosen.root, "a good\twarm film", "the dull cold bad plot")
    assert done.code == 0, done.err
    first, second = (line.split("\t") for line in done.out.splitlines())
    assert (first[0], first[2]) == ("positive", "a good warm film")
    assert second[0] == "negative"
    assert 0.5 < float(first[1]) <= 1
    assert done.err == ""


def test_lines_of_standard_input(chosen: SweepPaths) -> None:
    done = piped("good fresh\n\nbad stale \N{SNOWMAN}\r\n".encode(), "predict", chosen.root, "-")
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines if line[2]] == ["positive", "negative"]
    assert [line[2] for line in lines] == ["good fresh", "", "bad stale \N{SNOWMAN}"]
    refused = piped(b"good\n\xff\n", "predict", chosen.root, "-")
    assert refused.code == 2
    assert "kdray: standard input, line 2: byte 0xff is not UTF-8" in refused.err


def test_pairs(chosen: SweepPaths) -> None:
    student = replace(read_shipped(chosen), task=TextClassification(pair="other", max_length=16))
    asked = Predictor(student, "pytorch", 2)
    assert check_pairs(student, ["a", "b"], ["c", "d"]) == ["c", "d"]
    both = asked.probabilities(["good"], ["bad"])
    assert not np.allclose(both, asked.probabilities(["good"], ["good"]))
    assert list(read_lines(iter([b"one\ttwo\n"]), student)) == [(["one"], ["two"])]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="line 1: this student reads pairs; put a tab between the two texts"):
        list(read_lines(iter([b"one two\n"]), student))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"reads pairs \(text, other\), and there are 2 texts and 1 second ones"):
        check_pairs(student, ["a", "b"], ["c"])
    done = kdray("predict", chosen.root, "a", "--pair", "b")
    assert done.code == 2
    assert "--pair: this student was taught single texts" in done.err


def test_an_exported_form_answers_alike(chosen: SweepPaths) -> None:
    done = kdray("predict", chosen.root, "good", "--form", "int8")
    assert done.code == 2
    assert "model_quantized.onnx: not exported yet. Make it with `kdray export STORAGE/NAME --form int8`" in done.err
    done = kdray("predict", chosen.root, "good", "--form", "int9")
    assert done.code == 2
    assert "--form int9: no such form" in done.err


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "json", "jsonl", "parquet"])
def test_a_file_of_any_format(predictor: Predictor, tmp_path: Path, ending: str) -> None:
    rows = [{"id": number, "text": text} for number, text in enumerate(["good, fresh", "bad \N{SNOWMAN}", "warm"])]
    source, target = written(tmp_path, f"in.{ending}", rows), tmp_path / "out.jsonl"
    progress: list[tuple[int, int]] = []
    assert predict_file(predictor, source, target, (), lambda *done: progress.append(done)) == 3
    assert progress[-1] == (3, 3)
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert [int(row["id"]) for row in found] == [0, 1, 2]
    assert [row["predicted"] for row in found] == ["positive", "negative", "positive"]
    for row in found:
        assert row["probability"] == max(row["probability_negative"], row["probability_positive"])
        assert row["probability_negative"] + row["probability_positive"] == pytest.approx(1, abs=1e-5)


def test_a_file_is_written_in_any_format(chosen: SweepPaths, tmp_path: Path) -> None:
    rows = [{"text": 'said "good",\nthen left', "stars": 5}, {"text": "bad", "stars": 1}]
    source = written(tmp_path, "in.parquet", rows)
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet), ("jsonl", pd.read_json)):
        done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / f"out.{ending}")
        assert done.code == 0, done.err
        assert done.out == f"2 rows  {tmp_path}/out.{ending}\n"
        assert "rows: 2 of 2" in done.err
        table = read(tmp_path / f"out.{ending}", **({"lines": True} if ending == "jsonl" else {}))  # type: ignore[operator]
        assert list(table["text"]) == [row["text"] for row in rows]
        assert list(table["stars"]) == [5, 1]
        assert list(table["predicted"]) == ["positive", "negative"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.csv", "out.jsonl", "out.parquet"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_odd_characters_keep_their_rows(chosen: SweepPaths, tmp_path: Path, ending: str) -> None:
    """A lone carriage return within a text, and half an emoji beside it."""
    (tmp_path / "in.jsonl").write_text('{"text": "good\\rfilm", "user": "a\\ud83d"}\n{"text": "bad", "user": "b"}\n')
    done = kdray("predict", chosen.root, "--file", tmp_path / "in.jsonl", "--to", tmp_path / f"out.{ending}")
    assert done.code == 0, done.err
    (table,) = open_source(str(tmp_path / f"out.{ending}"), None, None, ()).read("train")
    assert text_column(table, "text", "task.text").to_pylist() == ["good\rfilm", "bad"]
    assert text_column(table, "user", "task.text").to_pylist() == ["a?", "b"]


def test_a_text_that_is_no_utf8_is_a_sentence(chosen: SweepPaths) -> None:
    done = kdray("predict", chosen.root, "caf\udce9")
    assert done.code == 2
    assert "'caf?': the text is not UTF-8" in done.err


def test_a_decoder_reads_an_empty_text(chosen: SweepPaths) -> None:
    predictor = Predictor(read_shipped(chosen), "pytorch", 2)
    predictor._tokenizer.backend_tokenizer.post_processor = None
    assert np.isfinite(predictor.probabilities(["", ""], None)).all()


def test_somebody_elses_sweep_answers_too(chosen: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: SweepPaths) -> None:
        raise PermissionError

    monkeypatch.setattr("kdray.cli.student.log_to", refuse)
    source = written(tmp_path, "in.jsonl", [{"text": "good"}])
    done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / "out.jsonl")
    assert done.code == 0, done.err


def test_places_that_cannot_be_written_are_refused_before_anything_is_read(
    chosen: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path, "in.jsonl", [{"text": "good"}])
    (tmp_path / "folder.csv").mkdir()
    done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / "folder.csv")
    assert done.code == 2
    assert "folder.csv: is a folder. Name a file." in done.err
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and may(path, mode))  # as for another user
    done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / "out.csv")
    assert done.code == 2
    assert "you may not write into" in done.err
    done = kdray("export", chosen.root, "--to", tmp_path / "new" / "student")
    assert done.code == 2
    assert f"you may not write into {tmp_path}" in done.err


def test_a_file_without_a_header(chosen: SweepPaths, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\n")
    done = kdray(
        "predict", chosen.root, "--file", tmp_path / "in.txt", "--to", tmp_path / "out.csv", "--columns", "text"
    )
    assert done.code == 0, done.err
    with (tmp_path / "out.csv").open() as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == ["positive", "negative"]


@pytest.mark.parametrize(
    ("name", "content", "to", "part"),
    [
        ("in.csv", b"text\ngood\n", "out.xlsx", "cannot write files ending in '.xlsx'. Allowed: .csv, .jsonl"),
        ("in.csv", b"text\ngood\n", "in.csv", "is the file that is read"),
        ("in.csv", b"text\ngood\n", "no/out.csv", "there is no folder"),
        ("in.doc", b"text\ngood\n", "out.csv", "in.doc: cannot read files ending in '.doc'"),
        ("other.csv", b"", "out.csv", "in.csv: no such file"),
        ("in.csv", b"", "out.csv", "in.csv: the file is empty"),
        ("in.csv", b"text\n", "out.csv", "in.csv: no rows in it"),
        ("in.csv", b"body\ngood\n", "out.csv", "no column 'text', which this student was taught to read; there are"),
        ("in.csv", b"text\ngood\n\xffbad\n", "out.csv", "row 2, column 'text': byte 0xff is not UTF-8"),
        ("in.csv", b"text,a\ngood\n", "out.csv", "row 1: 1 column where there should be 2 columns"),
        ("in.jsonl", b'{"text": 7}\n', "out.csv", "row 1, column 'text': 7 is not a text"),
        ("in.csv", b"text,predicted\ngood,x\n", "out.csv", "it has a column 'predicted', which is to be added"),
        ("in.json", b'[{"text": "a", "n": 1}, {"text": "b", "n": "x"}]', "out.parquet", "Write jsonl instead"),
    ],
)
def test_refusals(chosen: SweepPaths, tmp_path: Path, name: str, content: bytes, to: str, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    source = tmp_path / (name if not name.startswith("other") else "in.csv")
    done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / to)
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("kdray: ")
    assert part in last
    assert "data.source" not in last
    assert "data.columns" not in last
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--file", "x.csv", "--to", "y.csv"], ["--file", "x.csv"], ["a", "--to", "y.csv"]]
)
def test_what_to_predict_is_said_once(chosen: SweepPaths, arguments: list[str]) -> None:
    done = kdray("predict", chosen.root, *arguments)
    assert done.code == 2
    assert "predict: give texts, or - for lines of standard input, or --file FILE and --to FILE" in done.err


def test_help_names_every_option() -> None:
    said: Callable[[str], str] = lambda command: kdray(command, "--help").out  # noqa: E731
    for option in ("--pair", "--file", "--to", "--columns", "--form", "--batch-size"):
        assert option in said("predict")
    for option in ("--form", "--to"):
        assert option in said("export")
