"""Sweeps over several families of students, and students that are served by their ONNX graph."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.data.splits import Splits
from kdray.errors import SpecError
from kdray.export.card import FILE
from kdray.models.pretrained import Pretrained
from kdray.search.settings import Search
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.sweep import Sweep
from kdray.tasks.token_classification import TokenClassification
from kdray.tracking.mlflow_model import write_mlflow_model
from tests.stages.conftest import RunTiny

pytest.importorskip("onnx")

RECURRENT = RecurrentStudent(width=8, embedding_width=12)


def code_of(card: str) -> str:
    """The first block of Python code."""
    return card.partition("```python\n")[2].partition("```")[0]


def run_code(code: str, folder: Path) -> str:
    """Run the code of a card in the folder of the student, in a process that cannot import kdray and torch."""
    without = "import sys\nsys.modules['kdray'] = sys.modules['torch'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", without + code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recurrent_student_is_served_without_kdray(run_tiny: RunTiny, splits: Splits, tmp_path: Path) -> None:
    outcome, _ = run_tiny(
        student=RECURRENT,
        space={"training.learning_rate": [1e-2]},
        choose=Choose(smallest="latency_ms", retention=0.5),
        confirm=Confirm(candidates=1, seeds=1, controls=False),
    )
    assert outcome.exit_code == 0
    chosen = outcome.paths.chosen
    assert {"model.safetensors", "config.json", "tokenizer.json", "onnx", FILE} <= {
        each.name for each in chosen.iterdir()
    }
    assert "onnx_latency_ms" in outcome.figures.records[0].costs
    card = (chosen / FILE).read_text()
    assert "library_name: onnx" in card
    assert "AutoModel" not in card
    logits_C = eval(run_code(code_of(card), chosen))
    assert "onnx/model.onnx is this student in ONNX" in " ".join(outcome.figures.sentences)
    # MLflow's script answers as PyTorch does.
    served = tmp_path / "served"
    student = Pretrained(chosen, "chosen")
    sweep_task = outcome.figures.task
    write_mlflow_model(student, sweep_task, "tiny", served)
    texts = list(splits.test["text"][:5])
    load = f"mlflow.pyfunc.load_model({str(served)!r})"
    code = f'import mlflow, json\nprint(json.dumps({load}.predict({texts!r}).to_dict("list")))'
    answers = json.loads(run_code(code, tmp_path).splitlines()[-1])
    model, tokenizer = student.model(), student.tokenizer()
    inputs = tokenizer(["one text", *texts], padding=True, truncation=True, max_length=16, return_tensors="pt")
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.detach()
    np.testing.assert_allclose(logits_C, logits[0].numpy(), atol=1e-4)
    logits = logits[1:]
    assert answers["label"] == [model.config.id2label[int(label)] for label in logits.argmax(-1)]
    np.testing.assert_allclose(answers["score"], logits.softmax(-1).max(-1).values.numpy(), atol=1e-4)


@pytest.mark.slow
def test_one_front_over_several_families(run_tiny: RunTiny) -> None:
    space: dict[str, Any] = {
        "student.family": ["transformer", "recurrent", "static"],
        "student.depth": [1],
        "student.embedding_width": [12],
        "student.width": [8],
        "training.learning_rate": [1e-3, 1e-2],
    }
    outcome, _ = run_tiny(
        space=space,
        search=Search(trials=8, sampler="random", stopping=None, objectives=("accuracy", "onnx_latency_ms")),
        choose=Choose(smallest="onnx_latency_ms", retention=0.3),
    )
    assert outcome.exit_code == 0
    records = outcome.figures.records
    families = {record.params["student.family"] for record in records}
    assert len(families) > 1
    for record in records:
        has_width = record.params["student.family"] != "transformer"
        assert ("student.width" in record.params) == has_width
    costs = {(record.params["student.family"], tuple(sorted(record.costs.items()))) for record in records}
    assert len(costs) == len(families)
    on_front = [record for record in records if record.number in outcome.figures.front]
    for record in on_front:
        assert not any(
            other.metrics["accuracy"] >= record.metrics["accuracy"]
            and other.metrics["onnx_latency_ms"] < record.metrics["onnx_latency_ms"]
            for other in records
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"student": StaticStudent(), "task": TokenClassification()}, "static"),
        (
            {"space": {"student.family": ["transformer", "static"]}, "task": TokenClassification()},
            "static",
        ),
        ({"space": {"student.family": ["transformer", "recurent"]}}, "did you mean 'recurrent'?"),
        ({"space": {"student.family": ["transformer"], "student.cell": ["gru"]}}, "space['student.cell']: no such"),
        (
            {
                "space": {"student.family": ["transformer", "recurrent"], "student.cell": ["gru", "lstm"]},
                "search": Search(sampler="gp"),
            },
            "search.sampler: gp draws every setting of the space for each trial, but not every trial has student.cell",
        ),
    ],
)
def test_families_that_do_not_fit_are_refused(
    make_sweep: Callable[..., Sweep], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_sweep(**fields)
    assert message in str(caught.value)
