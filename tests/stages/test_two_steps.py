"""The two steps: a general student of a language model, from which the students of a sweep with labels begin."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, load_splits
from kdray.errors import SpecError, TeacherError
from kdray.export.card import FILE
from kdray.models.fresh import FreshTransformer
from kdray.models.lineage import EarlierSweep, Lineage
from kdray.models.pretrained import Head, find_model, import_model
from kdray.report.files import markdown
from kdray.run import Outcome
from kdray.stages.ancestry import data_name, sweep_of_checkpoint
from kdray.storage.paths import StoragePaths
from kdray.storage.records import read_record
from kdray.students.transformer import TransformerStudent
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import Teacher
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training
from tests.models.language_models import language_model, save_language_model
from tests.stages.conftest import RunTiny

TRAINED = Training(epochs=4, batch_size=16, learning_rate=5e-3, precision="fp32")
TINY = FreshTransformer(layers=2, width=32, heads=2, feed_forward=24, vocabulary=200)
GENERAL: dict[str, Any] = {
    "name": "general",
    "task": MaskedLM(block=16, maskings=1),
    "teacher": Teacher(model=TINY, training=TRAINED, above_chance=0.0),
    "training": TRAINED.model_copy(update={"epochs": 1}),
    "space": {"student.depth": [1]},
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts in which two words are repeated, so that a tiny model learns to fill masks."""
    folder = tmp_path_factory.mktemp("corpus")
    pairs = np.random.default_rng(0).permutation(400)
    for split, rows in (("train", pairs[:300]), ("validation", pairs[300:350]), ("test", pairs[350:])):
        texts = [" ".join([f"w{pair // 20}"] * 8 + [f"w{pair % 20}"] * 5) for pair in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def general(run_tiny: RunTiny, corpus: Path) -> Callable[..., Outcome]:
    """A function that runs the first step with these changes."""
    return lambda **changes: run_tiny(**{**GENERAL, "data": Data(source=str(corpus)), **changes})[0]


def second(outcome: Outcome, **fields: Any) -> dict[str, Any]:
    """The fields of a second step whose students begin from the student of the first one."""
    student = TransformerStudent(checkpoint=str(outcome.paths.chosen))
    return {"name": "second", "student": student, "space": {"student.depth": [1]}, **fields}


def test_a_general_student_becomes_a_classifier(
    run_tiny: RunTiny, general: Callable[..., Outcome], corpus: Path, tmp_path: Path
) -> None:
    first = general()
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    confirm = Confirm(candidates=1, seeds=1, controls=False)
    # The teacher of the second step has another tokenizer; the student is cut further.
    student = TransformerStudent(checkpoint=str(first.paths.chosen), feed_forward=12, vocabulary=20)
    outcome, notes = run_tiny(**second(first, student=student, tracking=tracking, confirm=confirm))
    assert any(
        "is the student of the sweep general (masked language modelling), whose teacher was from scratch." in note
        for note in notes
    )
    before, lineage = (read_record(Lineage, each.paths.lineage) for each in (first, outcome))
    assert before is not None
    assert lineage is not None
    assert not before.checkpoints
    (checkpoint,) = lineage.checkpoints
    assert checkpoint.name == str(first.paths.chosen)
    assert checkpoint.earlier.teacher_weights == before.teacher_weights
    assert (checkpoint.earlier.data, checkpoint.earlier.read_from) == (before.data, str(corpus))
    assert (checkpoint.earlier.task, checkpoint.earlier.teacher) == ("masked language modelling", "from scratch")
    assert list(lineage.earlier_sweeps()) == [checkpoint.earlier]

    card = (outcome.paths.chosen / FILE).read_text()
    page = (outcome.paths.report / "report.html").read_text()
    for text in (markdown(outcome.figures), card, page):
        assert "begin from the student of the sweep general (masked language modelling)" in text
        assert before.teacher_weights in text
        assert "The teacher is the student of an earlier sweep" not in text
    assert str(tmp_path) not in card

    client = mlflow.MlflowClient(tracking.uri)
    (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
    runs = client.search_runs([experiment.experiment_id])
    (sweep_run,) = (run for run in runs if run.info.run_name == "second")
    tags = sweep_run.data.tags
    assert tags["kdray.checkpoint_sweeps"] == "general"
    assert tags["kdray.checkpoint_data"] == before.data
    trials = [run for run in runs if run.info.run_name.startswith("trial 000")]
    assert trials
    assert all(trial.data.params["student.checkpoint"] == str(first.paths.chosen) for trial in trials)


def test_rows_that_both_steps_may_have_are_noted(general: Callable[..., Outcome], corpus: Path) -> None:
    first = general()
    task = GENERAL["task"]
    same, other = load_splits(Data(source=str(corpus)), task), Data(source=str(corpus), seed=1, test=None)
    name, rows = str(first.paths.chosen), read_record(Lineage, first.paths.lineage).test_rows
    earlier, notes = sweep_of_checkpoint(name, same, data_name(other), rows)
    assert earlier is not None
    assert earlier.is_on_same_rows
    assert not any("may have been trained on" in note for note in notes)
    _, notes = sweep_of_checkpoint(name, load_splits(other, task), data_name(other), "others")
    assert any(f"The sweep general read {corpus}, too" in note and "data.test" in note for note in notes)
    _, notes = sweep_of_checkpoint(name, load_splits(other, task), "elsewhere", "others")
    assert len(notes) == 1
    first.paths.settings.write_text("{")
    found, notes = sweep_of_checkpoint(name, same, "elsewhere", rows)
    assert found is None
    assert "the records of its sweep cannot be read" in notes[0]


@pytest.mark.parametrize(
    ("task", "labels"),
    [(TokenClassification(max_length=16), ("B-A", "I-A", "O")), (Regression(label="score", max_length=16), ())],
    ids=["tagging", "regression"],
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_general_student_gets_the_head_of_each_task(
    family: str, task: Task, labels: tuple[str, ...], tmp_path: Path
) -> None:
    source = language_model(family)
    folder = find_model(save_language_model(source, tmp_path / "chosen"), None, "student.checkpoint")
    imported = import_model(folder, task, Head(labels), StoragePaths(tmp_path), 0)
    model = TransformerStudent(depth=2).build(imported.model(), 0)
    outputs = model(input_ids=torch.tensor([[4, 5, 6]]), attention_mask=torch.ones(1, 3).long()).logits
    assert outputs.shape[-1] == max(1, len(labels))
    assert torch.equal(model.get_input_embeddings().weight, source.get_input_embeddings().weight)


def test_lineages_of_earlier_versions_are_read(tmp_path: Path) -> None:
    earlier = {"name": "first", "teacher": "t", "metric": "accuracy", "is_on_same_rows": True}
    model = {"name": "m", "weights": "w", "share": 1.0, "seed": 0, "earlier": earlier}
    record = {"teacher": "m", "teacher_weights": "w", "data": "d", "test_rows": "r", "models": [model]}
    (tmp_path / "lineage.json").write_text(json.dumps(record))
    lineage = read_record(Lineage, tmp_path / "lineage.json")
    assert lineage is not None
    assert lineage.checkpoints == ()
    assert [each.name for each in lineage.earlier_sweeps()] == ["first"]
    # Without a checkpoint a record is what it was.
    assert "checkpoints" not in lineage.model_dump()
    assert EarlierSweep(**earlier).model_dump().keys() == {*earlier, "on_test", "figures", "measured", "earlier"}


@pytest.mark.parametrize("maskings", [1, None], ids=["stored", "live"])
def test_a_checkpoint_with_the_tokenizer_of_the_teacher(
    run_tiny: RunTiny, general: Callable[..., Outcome], corpus: Path, maskings: int | None
) -> None:
    first = general(space={"student.depth": [2]})
    task = MaskedLM(block=16, maskings=maskings)
    fields = {**GENERAL, **second(first), "task": task, "data": Data(source=str(corpus))}
    outcome, _ = run_tiny(**fields)
    (record,) = outcome.figures.records
    assert record.state == "completed"
    assert record.metrics["perplexity"] > 1


def test_a_checkpoint_with_another_tokenizer_is_refused_before_anything_starts(
    run_tiny: RunTiny, tmp_path: Path
) -> None:
    checkpoint = save_language_model(language_model("bert"), tmp_path / "other")
    student = TransformerStudent(checkpoint=checkpoint)
    with pytest.raises(TeacherError, match=r"student\.checkpoint .*other: its tokenizer is not that of the teacher"):
        run_tiny(**{**GENERAL, "student": student})
    assert not list(tmp_path.glob("**/transfer*/**/*.arrow"))


@pytest.mark.parametrize("language", [MaskedLM(block=16), CausalLM(block=16)], ids=["masked", "causal"])
@pytest.mark.parametrize(
    "fields",
    [{"student": TransformerStudent(vocabulary=50)}, {"space": {"student.vocabulary": [50, 60]}}],
    ids=["set", "searched"],
)
def test_a_language_model_has_one_vocabulary(
    make_sweep: Callable[..., Any], language: Task, fields: dict[str, Any]
) -> None:
    with pytest.raises(
        SpecError, match=r"student\.vocabulary: .* language modelling has one vocabulary, the teacher's"
    ):
        make_sweep(**{**GENERAL, "task": language, **fields})
