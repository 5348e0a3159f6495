"""The folder of a student that somebody else wrote: its links, its labels, its ONNX graph, and the texts to predict."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from kdray.errors import StorageError
from kdray.export.card import model_card
from kdray.export.checks import EXPORT_FILE, read_export_result
from kdray.export.exporting import copy_student
from kdray.export.shipped import read_shipped
from kdray.forms.onnx_model import OnnxModel
from kdray.stages.reading import read_figures
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import TrackingTarget
from tests.cli.test_cli import kdray
from tests.safe_text.hostile import HOSTILE, assert_no_control_characters, markdown_tags

EVERY_TEXT = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


@pytest.fixture
def own(chosen: SweepPaths, tmp_path: Path) -> SweepPaths:
    """A copy of a finished sweep that a test may change."""
    shutil.copytree(chosen.root, tmp_path / "storage" / chosen.name)
    return SweepPaths(tmp_path / "storage", chosen.name)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A private file outside of the storage."""
    file = tmp_path / "private" / "id_rsa.txt"
    file.parent.mkdir()
    file.write_text("private")
    return file


# Links ----------------------------------------------------------------------------------------------------------------


def link(paths: SweepPaths, private: Path, kind: str) -> None:
    match kind:
        case "a file":
            (paths.chosen / "vocab.txt").symlink_to(private)
        case "a chain":
            (paths.root / "x").symlink_to(private)
            (paths.chosen / "vocab.txt").symlink_to(paths.root / "x")
        case "a folder":
            (paths.chosen / "onnx").symlink_to(private.parent)
        case "the folder itself":
            shutil.move(paths.chosen, private.parent / "chosen")
            paths.chosen.symlink_to(private.parent / "chosen")
        case "a pipe":
            os.mkfifo(paths.chosen / "vocab.txt")


@pytest.mark.parametrize("kind", ["a file", "a chain", "a folder", "the folder itself", "a pipe"])
@pytest.mark.parametrize("command", ["predict", "export", "register"])
def test_a_student_with_a_link_out_of_its_folder_is_refused(
    own: SweepPaths, private: Path, tmp_path: Path, command: str, kind: str
) -> None:
    link(own, private, kind)
    TrackingTarget(Tracking(), "finished").write(own)
    target = tmp_path / "there"
    options = {"predict": ["good"], "export": ["--to", target], "register": []}
    done = kdray(command, own.root, *options[command])
    assert done.code == 2
    assert "kdray follows no such link" in done.err or "is no regular file" in done.err
    assert not target.exists()


def test_a_link_inside_the_folder_is_followed(own: SweepPaths) -> None:
    (own.chosen / "copy.txt").symlink_to("config.json")
    assert read_shipped(own).folder == own.chosen


def test_only_files_of_a_model_are_copied(own: SweepPaths, tmp_path: Path) -> None:
    for name in ("run.py", ".env", "notes.pdf", "LICENSE", "onnx/model.onnx.data", "onnx/.hidden.json"):
        (own.chosen / name).parent.mkdir(exist_ok=True)
        (own.chosen / name).write_text("x")
    assert copy_student(own.chosen, tmp_path / "there") == [".env", "notes.pdf", "onnx/.hidden.json", "run.py"]
    copied = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert {"LICENSE", "config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx.data"} <= copied
    assert not copied & {"run.py", ".env", "notes.pdf", "onnx/.hidden.json"}


# ONNX -----------------------------------------------------------------------------------------------------------------


def graph_with_weights_in(location: str) -> bytes:
    """A graph whose only weight is in this file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["logits"])], "g", [], [output], [weight])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["../weights", "{folder}/weights", "link", "/dev/zero"])
def test_a_graph_with_weights_outside_of_its_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights").write_bytes(b"\0\0\0\0")
    file = tmp_path / "onnx" / "model.onnx"
    file.parent.mkdir()
    (file.parent / "link").symlink_to(tmp_path / "weights")
    file.write_bytes(graph_with_weights_in(location.format(folder=tmp_path)))
    with pytest.raises(StorageError, match=r"model\.onnx: onnxruntime cannot load it"):
        OnnxModel(file)


@pytest.mark.parametrize("content", [b"", b"no graph", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_graph_is_a_sentence(own: SweepPaths, content: bytes) -> None:
    file = own.chosen / "onnx" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(content)
    done = kdray("predict", own.root, "good", "--form", "onnx")
    assert done.code == 2
    assert "model.onnx: onnxruntime cannot load it" in done.err


@pytest.mark.parametrize("form", ["pytorch", "onnx", "int8"])
def test_each_form_needs_a_folder_that_is_safe_to_load(own: SweepPaths, private: Path, form: str) -> None:
    """A form of ONNX also takes its tokenizer from the folder, and `vocab` would make it read any file."""
    tokenizer = read_json(own.chosen / "tokenizer_config.json")
    write_json(own.chosen / "tokenizer_config.json", {**tokenizer, "vocab": str(private)})
    for name in ("model", "model_quantized"):
        (own.chosen / "onnx").mkdir(exist_ok=True)
        (own.chosen / "onnx" / f"{name}.onnx").write_bytes(b"")
    done = kdray("predict", own.root, "good", "--form", form)
    assert done.code == 2
    assert "tokenizer_config.json has vocab=" in done.err


# Texts ----------------------------------------------------------------------------------------------------------------


def write_labels(paths: SweepPaths, *labels: str) -> None:
    config = read_json(paths.chosen / "config.json")
    config["id2label"] = dict(enumerate(labels))
    config["label2id"] = {label: number for number, label in enumerate(labels)}
    write_json(paths.chosen / "config.json", config)


@EVERY_TEXT
def test_predict_shows_labels_and_texts(own: SweepPaths, text: str) -> None:
    write_labels(own, f"a {text}", f"b {text}")
    done = kdray("predict", own.root, f"good {text}")
    assert done.code == 0, done.err
    assert_no_control_characters(done.out)
    assert len(done.out.splitlines()) == 1
    assert len(done.out.split("\t")) == 3


def test_predict_writes_texts_as_they_are_on_request(own: SweepPaths) -> None:
    write_labels(own, "a\x1b[1m", "b\x1b[1m")
    done = kdray("predict", own.root, "good \u202efilm", "--raw")
    assert "\u202efilm" in done.out


@EVERY_TEXT
def test_a_card_has_the_structure_of_an_ordinary_card(own: SweepPaths, text: str) -> None:
    def card(text: str) -> str:
        write_labels(own, f"a {text}", f"b {text}")
        student, figures = read_shipped(own), read_figures(own)
        settings: dict[str, Any] = {**student.settings, "data": {"source": text}, "teacher": {"model": text}}
        hostile = replace(
            figures, name=text, sentences=(text,), conditions=text, teacher={**figures.teacher, text: 0.5}
        )
        return model_card(replace(student, settings=settings), hostile, own.chosen)

    hostile, ordinary = card(text), card("ordinary")
    assert_no_control_characters(hostile)
    head, body = hostile.removeprefix("---\n").split("\n---\n", 1)
    assert markdown_tags(body) == markdown_tags(ordinary.removeprefix("---\n").split("\n---\n", 1)[1])
    assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "tags", "metrics", "model-index"}


def test_a_damaged_result_of_an_export_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / EXPORT_FILE
    for content in ([], {"forms": 7}, {"split": "test", "rows": "many", "conditions": "", "forms": [], "missing": {}}):
        write_json(file, content)
        with pytest.raises(StorageError, match=r"export\.json: is damaged"):
            read_export_result(file)


ROWS = [{"text": "good", "=cmd": "=1+1"}, {"text": "=2+2", "=cmd": "-3"}]


@pytest.mark.parametrize("raw", [False, True])
def test_a_csv_file_with_predictions_has_no_formulas_unless_raw(own: SweepPaths, tmp_path: Path, raw: bool) -> None:
    write_labels(own, "=a", "=b")
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = kdray("predict", own.root, "--file", source, "--to", tmp_path / "out.csv", *(["--raw"] if raw else []))
    assert done.code == 0, done.err
    cells = [cell for row in csv.reader((tmp_path / "out.csv").open()) for cell in row]
    assert sum(cell.startswith("=") for cell in cells) == (5 if raw else 0)  # a column, two cells, two labels
    note = "5 cells now begin with an apostrophe, because a spreadsheet would take them for formulas, such as '=2+2'"
    assert (note in " ".join(done.err.split())) is not raw
    assert "-3" in cells
