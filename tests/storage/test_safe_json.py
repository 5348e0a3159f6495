"""A JSON file that somebody else wrote gives a value of the expected kind, or a sentence that names the file."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from kdray.errors import StorageError
from kdray.storage.files import read_json
from kdray.storage.records import FIGURES, read_record, read_value
from kdray.storage.safe_json import MAX_JSON_BYTES, MAX_JSON_LEVELS, read_regular_file


class Record(BaseModel):
    times: dict[str, float]


TEXTS = {
    "200,000 levels": "[" * 200_000,
    "200,000 closed levels": "[" * 200_000 + "]" * 200_000,
    "one level too many": "[" * (MAX_JSON_LEVELS + 1) + "]" * (MAX_JSON_LEVELS + 1),
    "objects in objects": '{"a":' * 900 + "1" + "}" * 900,
    "a number of 100,000 digits": "9" * 100_000,
    "cut off": '{"times": {"a": 1',
    "empty": "",
    "two values": "{} {}",
    "no text": b"\xff\xfe\x00\x01",
    "half a character": b'{"a": "\xc3"}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_json_is_a_sentence(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "times.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.monotonic()
    for read in (read_json, lambda path: read_record(Record, path)):
        with pytest.raises(StorageError, match=r"times\.json: not a readable JSON file \(.*\)\. Restore it") as caught:
            read(file)
        assert len(str(caught.value)) < 600
        assert str(caught.value).isprintable()
    assert time.monotonic() - began < 20


def test_the_deepest_value_that_is_accepted(tmp_path: Path) -> None:
    text = "[" * MAX_JSON_LEVELS + "]" * MAX_JSON_LEVELS
    (tmp_path / "x.json").write_text(text)
    assert json.dumps(read_json(tmp_path / "x.json")) == text


def test_a_file_of_3_gb_is_not_read(tmp_path: Path) -> None:
    """It needs no space on the disk: it has a hole."""
    file = tmp_path / "times.json"
    with file.open("wb") as opened:
        opened.truncate(3 << 30)
    with pytest.raises(StorageError, match=rf"has 3,221,225,472 bytes, and at most {MAX_JSON_BYTES:,} are read"):
        read_json(file)


def test_a_named_pipe_and_a_folder_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(StorageError, match=r"is not a regular file|not a readable file"):
            read_regular_file(place)


RECORDS: dict[str, Any] = {
    "a list": [],
    "a text": "x",
    "nothing": None,
    "no field": {},
    "a text for a number": {"times": {"a": "x"}},
    "a list for an object": {"times": [1]},
}


@pytest.mark.parametrize("value", RECORDS.values(), ids=RECORDS)
def test_a_record_of_another_kind_is_a_sentence(tmp_path: Path, value: Any) -> None:
    (tmp_path / "times.json").write_text(json.dumps(value))
    with pytest.raises(StorageError, match=r"times\.json: is damaged \(.*\)\. Restore it, or start over with --fresh"):
        read_record(Record, tmp_path / "times.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "x", None, [1], {"a": 1}], ids=str)
def test_a_figure_that_is_no_number_is_a_sentence(tmp_path: Path, value: Any) -> None:
    (tmp_path / "teacher.json").write_text(json.dumps({"accuracy": value}))
    with pytest.raises(StorageError, match=r"teacher\.json: is damaged \(accuracy"):
        read_value(FIGURES, tmp_path / "teacher.json")


def test_a_whole_number_stays_one(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text('{"parameters": 10, "accuracy": 0.5}')
    assert repr(read_value(FIGURES, tmp_path / "teacher.json")) == "{'parameters': 10, 'accuracy': 0.5}"
