"""Local data of every kind go through `kdray run --smoke` to a chosen student."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.models.pretrained import Pretrained
from kdray.search.claim import describe_differences
from kdray.sweep import Sweep
from tests.sources.kinds import KINDS, Kind, folder_for_each_split, nested_json, one_zip, saved_by_datasets, semicolons

QUICK = (one_zip, saved_by_datasets, nested_json)
"""A sweep takes seconds, so only these run each time; all go through the same code after `load_splits`."""


def write_script(folder: Path, kind: Kind, data_folder: Path, teacher: Pretrained) -> Path:
    """A sweep over the rows of `data_folder`, which are written once more as this kind of data."""
    splits = {}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        with (data_folder / f"{name}.csv").open(newline="") as file:
            splits[split] = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    (folder / "data").mkdir()
    settings = {"source": str(folder / "data"), **kind(folder / "data", splits)}
    task = settings.pop("task", None)
    columns = {} if task is None else {"text": task.text, "label": task.label}
    script = folder / "mine.py"
    script.write_text(f"""
from kdray import Data, Latency, Search, SlotSettings, Sweep, Teacher, TextClassification, Tracking, Training

sweep = Sweep(
    name="mine",
    data=Data(**{settings!r}),
    task=TextClassification(max_length=16, **{columns!r}),
    teacher=Teacher(model={str(teacher.folder)!r}),
    training=Training(epochs=1, learning_rate=1e-3, precision="fp32"),
    space={{"student.depth": [1, 2]}},
    search=Search(trials=1),
    latency=Latency(length=16, warmup=1, repeats=3),
    slots=SlotSettings(cpus=1),
    tracking=Tracking(enabled=False),
    choose={{"retention": 0.1}},
    smoke={{"data.max_rows": 64}},
)
""")
    return script


def run_smoke(folder: Path, kind: Kind, data_folder: Path, teacher: Pretrained) -> str:
    """Run the smoke copy of the sweep, and return what it prints."""
    script = write_script(folder, kind, data_folder, teacher)
    arguments = ["run", str(script), "--smoke", "--local", "--storage", str(folder / "results")]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert (folder / "results" / "mine-smoke" / "chosen" / "model.safetensors").exists()
    return done.output


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.__name__)
def test_a_sweep_over_odd_data_chooses_a_student(
    tmp_path: Path, kind: Kind, data_folder: Path, teacher: Pretrained
) -> None:
    run_smoke(tmp_path, kind, data_folder, teacher)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_sweep_over_data_of_any_kind_chooses_a_student(
    tmp_path: Path, kind: Kind, data_folder: Path, teacher: Pretrained
) -> None:
    run_smoke(tmp_path, kind, data_folder, teacher)


def test_the_notes_about_the_data_are_shown(tmp_path: Path, data_folder: Path, teacher: Pretrained) -> None:
    output = run_smoke(tmp_path, semicolons, data_folder, teacher)
    assert "its columns are separated by ';'" in " ".join(output.split())


def test_a_mistake_in_the_data_ends_with_a_sentence_and_exit_code_2(
    tmp_path: Path, data_folder: Path, teacher: Pretrained
) -> None:
    script = write_script(tmp_path, folder_for_each_split, data_folder, teacher)
    (tmp_path / "data" / "train" / "part-a.csv").write_bytes(b"PK\x03\x04")
    done = CliRunner().invoke(app, ["run", str(script), "--smoke", "--local", "--storage", str(tmp_path / "results")])
    assert done.exit_code == 2
    assert "part-a.csv: the file is compressed" in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_sweep_of_an_earlier_version_continues(make_sweep: Callable[..., Sweep]) -> None:
    """Its sweep.json lacks the settings that say how files are written."""
    identity = make_sweep().identity()
    added = ("delimiter", "encoding", "field")
    before = {**identity, "data": {name: value for name, value in identity["data"].items() if name not in added}}
    assert describe_differences(before, identity) == []
    assert "max_gb" not in identity["data"]
    assert Sweep.from_identity(before).data == make_sweep().data
