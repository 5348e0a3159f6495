"""`mlflow.pyfunc` answers as `kdray predict` does in a process without kdray; its folder has no pickle and no path."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import Model

from kdray.export.prediction import Predictor
from kdray.export.shipped import read_shipped
from kdray.models.pretrained import Pretrained
from kdray.storage.paths import SweepPaths
from kdray.tracking.mlflow_model import write_mlflow_model
from tests.export.conftest import BIOES, TASKS, GetSweep, read_test_rows

ROWS = 20
LOAD = """
import json, sys
sys.modules["kdray"] = None
import mlflow
given = json.loads(sys.stdin.read())
answers = {folder: mlflow.pyfunc.load_model(folder).predict(texts) for folder, texts in given.items()}
print(json.dumps({folder: answer.to_dict("records") for folder, answer in answers.items()}))
"""


def _served(folders: dict[str, Any], cwd: Path) -> dict[str, list[dict[str, Any]]]:
    """The answers of the MLflow models in these folders to their texts, from one process without kdray."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=json.dumps(folders),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _write(paths: SweepPaths, folder: Path) -> Path:
    student = read_shipped(paths)
    write_mlflow_model(Pretrained(paths.chosen, ""), student.task, paths.name, folder)
    return folder


def _texts(paths: SweepPaths) -> tuple[list[str], list[str] | None]:
    """Some test rows; a punctuation mark stands directly behind the last word of a tagger's texts."""
    rows = read_test_rows(paths)[:ROWS]
    texts = [text if isinstance(text, str) else " ".join(text).replace(" .", ".") for text in rows["text"]]
    return texts, rows.get("pair")


def test_every_task_is_served_without_kdray(finished: GetSweep, tmp_path: Path) -> None:
    names = [*TASKS, BIOES]
    given, expected = {}, {}
    for name in names:
        texts, pairs = _texts(finished(name))
        folder = str(_write(finished(name), tmp_path / name))
        answers = Predictor(read_shipped(finished(name)), "pytorch", 8).answers(texts, pairs)
        expected[name] = list(answers)
        inputs = [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs or [], strict=False)]
        given[folder] = inputs or texts
    served = dict(zip(names, _served(given, tmp_path).values(), strict=True))
    for name in ("tags", BIOES):
        assert sum(len(row["spans"]) for row in served[name]) > ROWS / 2
        for row, answer in zip(served[name], expected[name], strict=True):
            spans = [span | {"score": pytest.approx(span["score"], abs=1e-4)} for span in answer.columns()["predicted"]]
            assert row["spans"] == spans
    assert any(row["labels"] for row in served["labels"])
    for row, answer in zip(served["labels"], expected["labels"], strict=True):
        scores = {each["label"]: each["score"] for each in row["labels"]}
        assert scores == pytest.approx({label: answer.probabilities[label] for label in answer.labels}, abs=1e-4)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
    values = [row["score"] for row in served["numbers"]]
    assert values == pytest.approx([answer.value for answer in expected["numbers"]], abs=1e-4)


def test_a_served_tagger_reads_long_texts_as_predict_does(finished: GetSweep, tmp_path: Path) -> None:
    """A text of several windows, one with a word that is longer than a window, and one without words."""
    paths = finished("tags")
    model = mlflow.pyfunc.load_model(str(_write(paths, tmp_path / "model")))
    sentences, _ = _texts(paths)
    texts = [" ".join(sentences), f"{sentences[0]} {'a-' * 300}a {sentences[1]}", " ", sentences[2]]
    served = model.predict(texts)["spans"]
    answers = [
        answer.columns()["predicted"] for answer in Predictor(read_shipped(paths), "pytorch", 8).answers(texts, None)
    ]
    assert len(answers[0]) > 10
    assert answers[2] == []
    for spans, expected in zip(served, answers, strict=True):
        assert spans == [span | {"score": pytest.approx(span["score"], abs=1e-4)} for span in expected]


@pytest.mark.parametrize("name", TASKS)
def test_a_folder_has_weights_text_and_no_path(finished: GetSweep, tmp_path: Path, name: str) -> None:
    folder = _write(finished(name), tmp_path / "model")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml", ".txt", ".md", ".py", ""}
    assert [path.name for path in files if not path.suffix] == ["MLmodel"]
    for path in files:
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert str(tmp_path) not in text
            assert str(Path(mlflow.__file__).parents[2]) not in text
            assert str(Path(__file__).parents[2]) not in text
            assert "import kdray" not in text
            assert "from kdray" not in text
    required = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert required == ["mlflow", "torch", "transformers", "safetensors"]
    signature = Model.load(folder).signature
    assert signature.inputs.input_names() == (["text", "text_pair"] if name == "numbers" else [0])
    assert signature.outputs.input_names() == [{"tags": "spans", "labels": "labels", "numbers": "score"}[name]]


def test_a_data_frame_is_answered_in_the_order_of_its_rows(finished: GetSweep, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(str(_write(finished("numbers"), tmp_path / "model")))
    texts, pairs = _texts(finished("numbers"))
    table = pd.DataFrame({"text_pair": pairs, "text": texts})
    scores = model.predict(table)["score"]
    assert scores.nunique() > 1
    assert list(model.predict(table[::-1])["score"]) == pytest.approx(list(scores[::-1]), abs=1e-4)
