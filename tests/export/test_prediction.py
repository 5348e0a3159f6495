"""Predictions of the chosen student for texts, lines and files in every format; and the messages of its refusals.

In array names: C labels.
"""

import csv
import json
import os
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
from kdray.errors import DataError, SpecError
from kdray.export.prediction import Predictor, check_pairs, predict_file, read_lines
from kdray.export.shipped import read_shipped
from kdray.sources.opening import open_source
from kdray.sources.reading import Reading
from kdray.storage.paths import SweepPaths
from kdray.tasks.text_classification import TextClassification
from tests.cli.test_cli import TERMINAL, CommandResult, kdray

TEXTS = ["a good warm film", "the dull cold bad plot", "", "witty " * 30, "music"]


def run_with_input(content: bytes, *arguments: str | Path) -> CommandResult:
    """Run `kdray` with this content on its standard input."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=content, env={"COLUMNS": "200"})
    return CommandResult(result.exit_code, TERMINAL.sub("", result.stdout), TERMINAL.sub("", result.stderr))


@pytest.fixture(scope="module")
def predictor(chosen: SweepPaths) -> Predictor:
    return Predictor(read_shipped(chosen), "pytorch", 2)


def write_file(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write these rows in the format of the ending of `name`; return the path."""
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


def probabilities(predictor: Predictor, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """The probabilities of the labels (N x C)."""
    logits_NxC = predictor.outputs(predictor.student.task.columns_of(texts, pairs)).logits_AxC
    return np.asarray(torch.from_numpy(logits_NxC).softmax(dim=-1))


def test_the_probabilities_are_those_of_the_model(predictor: Predictor) -> None:
    model, tokenizer = predictor.student.model.model(), predictor.student.model.tokenizer()
    for text, probabilities_C in zip(TEXTS, probabilities(predictor, TEXTS), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            expected_C = model(**inputs).logits.softmax(-1)[0]
        np.testing.assert_allclose(probabilities_C, expected_C, atol=1e-5)


def test_batches_and_chunks_do_not_change_the_probabilities(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS * 3
    in_one_batch = probabilities(Predictor(predictor.student, "pytorch", 64), texts)
    monkeypatch.setattr("kdray.export.prediction.CHUNK", 4)
    progress: list[int] = []
    answers = predictor.answers(texts, None, progress.append)
    in_small_batches = np.array([list(answer.probabilities.values()) for answer in answers])  # type: ignore[attr-defined]
    np.testing.assert_allclose(in_small_batches, in_one_batch, atol=1e-5)
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
    done = run_with_input("good fresh\n\nbad stale \N{SNOWMAN}\r\n".encode(), "predict", chosen.root, "-")
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines if line[2]] == ["positive", "negative"]
    assert [line[2] for line in lines] == ["good fresh", "", "bad stale \N{SNOWMAN}"]
    refused = run_with_input(b"good\n\xff\n", "predict", chosen.root, "-")
    assert refused.code == 2
    assert "kdray: standard input, line 2: byte 0xff is not UTF-8" in refused.err


def test_pairs(chosen: SweepPaths) -> None:
    student = replace(read_shipped(chosen), task=TextClassification(pair="other", max_length=16))
    predictor = Predictor(student, "pytorch", 2)
    assert check_pairs(student, ["a", "b"], ["c", "d"]) == ["c", "d"]
    assert not np.allclose(probabilities(predictor, ["good"], ["bad"]), probabilities(predictor, ["good"], ["good"]))
    assert list(read_lines(iter([b"one\ttwo\n"]), student)) == [(["one"], ["two"])]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="line 1: this student reads pairs; put a tab between the two texts"):
        list(read_lines(iter([b"one two\n"]), student))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"reads pairs \(text, other\), but there are 2 texts and 1 second texts"):
        check_pairs(student, ["a", "b"], ["c"])
    done = kdray("predict", chosen.root, "a", "--pair", "b")
    assert done.code == 2
    assert "--pair: this student reads single texts" in done.err


def test_a_form_that_is_unknown_or_not_exported_is_refused(chosen: SweepPaths) -> None:
    done = kdray("predict", chosen.root, "good", "--form", "int8")
    assert done.code == 2
    assert "model_quantized.onnx: not exported yet. Make it with `kdray export STORAGE/NAME --form int8`" in done.err
    done = kdray("predict", chosen.root, "good", "--form", "int9")
    assert done.code == 2
    assert "--form int9: no such form" in done.err


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "json", "jsonl", "parquet"])
def test_a_file_in_any_format_is_read(predictor: Predictor, tmp_path: Path, ending: str) -> None:
    rows = [{"id": number, "text": text} for number, text in enumerate(["good, fresh", "bad \N{SNOWMAN}", "warm"])]
    source, target = write_file(tmp_path, f"in.{ending}", rows), tmp_path / "out.jsonl"
    progress: list[tuple[int, int]] = []
    assert predict_file(predictor, source, target, Reading(), lambda *done: progress.append(done)).rows == 3
    assert progress[-1] == (3, 3)
    predicted = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["text"] for row in predicted] == [row["text"] for row in rows]
    assert [int(row["id"]) for row in predicted] == [0, 1, 2]
    assert [row["predicted"] for row in predicted] == ["positive", "negative", "positive"]
    for row in predicted:
        assert row["probability"] == max(row["probability_negative"], row["probability_positive"])
        assert row["probability_negative"] + row["probability_positive"] == pytest.approx(1, abs=1e-5)


def test_a_file_is_written_in_any_format(chosen: SweepPaths, tmp_path: Path) -> None:
    rows = [{"text": 'said "good",\nthen left', "stars": 5}, {"text": "bad", "stars": 1}]
    source = write_file(tmp_path, "in.parquet", rows)
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet), ("jsonl", pd.read_json)):
        done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / f"out.{ending}")
        assert done.code == 0, done.err
        assert done.out == f"2 rows  {tmp_path}/out.{ending}\n"
        assert "rows: 2 of 2" in done.err
        options = {"lines": True} if ending == "jsonl" else {}
        table = read(tmp_path / f"out.{ending}", **options)  # type: ignore[operator]
        assert list(table["text"]) == [row["text"] for row in rows]
        assert list(table["stars"]) == [5, 1]
        assert list(table["predicted"]) == ["positive", "negative"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.csv", "out.jsonl", "out.parquet"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_unusual_characters_do_not_move_rows(chosen: SweepPaths, tmp_path: Path, ending: str) -> None:
    """A single carriage return in a text, and half of an emoji in another column."""
    (tmp_path / "in.jsonl").write_text('{"text": "good\\rfilm", "user": "a\\ud83d"}\n{"text": "bad", "user": "b"}\n')
    done = kdray("predict", chosen.root, "--file", tmp_path / "in.jsonl", "--to", tmp_path / f"out.{ending}")
    assert done.code == 0, done.err
    (table,) = open_source(str(tmp_path / f"out.{ending}"), Reading()).read("train")
    assert text_column(table, "text", "task.text").to_pylist() == ["good\rfilm", "bad"]
    assert text_column(table, "user", "task.text").to_pylist() == ["a?", "b"]


def test_a_text_that_is_not_utf8_is_refused(chosen: SweepPaths) -> None:
    done = kdray("predict", chosen.root, "caf\udce9")
    assert done.code == 2
    assert "'caf?': the text is not UTF-8" in done.err


def test_a_decoder_reads_an_empty_text(chosen: SweepPaths) -> None:
    predictor = Predictor(read_shipped(chosen), "pytorch", 2)
    predictor.tokenizer.backend_tokenizer.post_processor = None
    assert np.isfinite(probabilities(predictor, ["", ""])).all()


def test_a_sweep_of_another_user_can_be_used(
    chosen: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(paths: SweepPaths) -> None:
        raise PermissionError

    monkeypatch.setattr("kdray.cli.student.log_to", refuse)
    source = write_file(tmp_path, "in.jsonl", [{"text": "good"}])
    done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / "out.jsonl")
    assert done.code == 0, done.err


def test_targets_that_cannot_be_written_are_refused_before_anything_is_read(
    chosen: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_file(tmp_path, "in.jsonl", [{"text": "good"}])
    (tmp_path / "folder.csv").mkdir()
    done = kdray("predict", chosen.root, "--file", source, "--to", tmp_path / "folder.csv")
    assert done.code == 2
    assert "folder.csv: is a folder. Name a file." in done.err
    access = os.access
    # As for a user without write permission.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
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
        ("in.csv", b"text\ngood\n", "in.csv", "is the input file"),
        ("in.csv", b"text\ngood\n", "no/out.csv", "there is no folder"),
        ("in.doc", b"text\ngood\n", "out.csv", "in.doc: cannot read files ending in '.doc'"),
        ("other.csv", b"", "out.csv", "in.csv: no such file"),
        ("in.csv", b"", "out.csv", "in.csv: the file is empty"),
        ("in.csv", b"text\n", "out.csv", "in.csv: no rows in it"),
        ("in.csv", b"body\ngood\n", "out.csv", "no column 'text', which this student reads; the file has"),
        ("in.csv", b"text\ngood\n\xffbad\n", "out.csv", "row 2, column 'text': byte 0xff is not UTF-8"),
        ("in.csv", b"text,a\ngood\n", "out.csv", "row 1: 1 column where there should be 2 columns"),
        ("in.jsonl", b'{"text": 7}\n', "out.csv", "row 1, column 'text': 7 is not a text"),
        ("in.csv", b"text,predicted\ngood,x\n", "out.csv", "it already has a column 'predicted'"),
        ("in.json", b'[{"text": "a", "n": 1}, {"text": "b", "n": "x"}]', "out.parquet", "Write jsonl instead"),
    ],
)
def test_wrong_files_are_refused_and_nothing_is_written(
    chosen: SweepPaths, tmp_path: Path, name: str, content: bytes, to: str, part: str
) -> None:
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
def test_texts_and_a_file_together_or_neither_are_refused(chosen: SweepPaths, arguments: list[str]) -> None:
    done = kdray("predict", chosen.root, *arguments)
    assert done.code == 2
    assert "predict: give texts, or - for lines of standard input, or --file FILE and --to FILE" in done.err


def test_help_names_every_option() -> None:
    predict_help = kdray("predict", "--help").out
    for option in ("--pair", "--file", "--to", "--columns", "--form", "--batch-size"):
        assert option in predict_help
    export_help = kdray("export", "--help").out
    for option in ("--form", "--to"):
        assert option in export_help
