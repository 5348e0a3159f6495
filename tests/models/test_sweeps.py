"""Local folders of several families run to a chosen student, or are refused before a slot starts."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from kdray.data.splits import Splits
from kdray.errors import TeacherError
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import save_model
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.stages.shipping import Outcome
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training
from tests.models.families import tiny_config

LABELS = ("negative", "positive")
FINE_TUNED = Training(epochs=8, learning_rate=3e-3, precision="fp32")


class NoteScreen(NullScreen):
    """A screen that stores the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def config_of(family: str) -> PreTrainedConfig:
    """A tiny model of this family with the labels of the data, and with weights that are large enough to learn from."""
    config = tiny_config(family)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {name: number for number, name in enumerate(LABELS)}
    config.initializer_range = 0.1
    return config


@pytest.fixture
def save_folder(splits: Splits, tmp_path: Path) -> Callable[[str], Path]:
    """A function that saves a tiny untrained model of a family, with a tokenizer of the data's words."""

    def save(family: str) -> Path:
        torch.manual_seed(0)
        tokenizer = word_tokenizer(list(splits.train["text"]), 60, 16)
        save_model(AutoModelForSequenceClassification.from_config(config_of(family)), tokenizer, tmp_path / family)
        return tmp_path / family

    return save


@pytest.fixture
def run_sweep(make_sweep: Callable[..., Sweep], tmp_path: Path) -> Callable[..., tuple[Outcome, list[str]]]:
    """A function that runs a small sweep, and returns its outcome and its notes."""

    def run_it(**fields: Any) -> tuple[Outcome, list[str]]:
        sweep, screen = make_sweep(slots=SlotSettings(cpus=1), **fields), NoteScreen()
        paths = SweepPaths(tmp_path / "storage", sweep.name)
        return run(sweep, paths, RunOptions(local=True), screen=screen), screen.notes

    return run_it


@pytest.mark.parametrize("family", ["deberta-v2", "albert"])
def test_a_local_folder_of_this_family_runs_to_a_chosen_student(
    family: str, save_folder: Callable[[str], Path], run_sweep: Callable[..., tuple[Outcome, list[str]]]
) -> None:
    teacher = Teacher(model=str(save_folder(family)), training=FINE_TUNED)
    search = Search(trials=2, stopping=None)
    outcome, _ = run_sweep(teacher=teacher, search=search, space={"student.depth": [1, 2]})
    assert outcome.exit_code == 0
    student = AutoModelForSequenceClassification.from_pretrained(outcome.paths.chosen)
    assert student.config.model_type == family
    assert student.config.num_hidden_layers in (1, 2)
    assert all(record.costs["multiply_adds"] > 0 for record in outcome.figures.records)


def train_without_padding(folder: Path, splits: Splits) -> None:
    """Fine-tune the model in this folder, one row after the other."""
    tokenizer = word_tokenizer(list(splits.train["text"]), 60, 16)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = list(zip(splits.train["text"], splits.train["label"], strict=True))
    for text, label in [row for epoch in range(3) for row in random.Random(epoch).sample(rows, len(rows))]:
        inputs = tokenizer(text, return_tensors="pt")
        loss = model(**inputs, labels=torch.tensor([label])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.mark.slow
def test_a_teacher_whose_answer_depends_on_padding_teaches_students_of_another_model(
    save_folder: Callable[[str], Path], run_sweep: Callable[..., tuple[Outcome, list[str]]], splits: Splits
) -> None:
    folder = save_folder("fnet")
    train_without_padding(folder, splits)
    space = {"student.depth": [1], "student.checkpoint": [str(save_folder("bert"))]}
    outcome, notes = run_sweep(
        teacher=Teacher(model=str(folder), above_chance=0.01), search=Search(trials=1, stopping=None), space=space
    )
    assert outcome.exit_code == 0
    assert sum("labelled in batches of equal length, without padding" in note for note in notes) == 1


def test_students_of_a_teacher_whose_answer_depends_on_padding_are_refused(
    save_folder: Callable[[str], Path], run_sweep: Callable[..., tuple[Outcome, list[str]]]
) -> None:
    with pytest.raises(TeacherError, match=r"the answer of this fnet model .* depends on the padding .*checkpoint"):
        run_sweep(teacher=Teacher(model=str(save_folder("fnet"))))


def test_fine_tuning_a_model_whose_answer_depends_on_padding_is_refused(
    save_folder: Callable[[str], Path], run_sweep: Callable[..., tuple[Outcome, list[str]]]
) -> None:
    with pytest.raises(TeacherError, match=r"teacher\.training: the answer of a xlnet model for a text depends on"):
        run_sweep(teacher=Teacher(model=str(save_folder("xlnet")), training=FINE_TUNED))


def test_students_of_blocks_that_shorten_the_text_are_refused(
    save_folder: Callable[[str], Path], run_sweep: Callable[..., tuple[Outcome, list[str]]]
) -> None:
    with pytest.raises(TeacherError, match=r"its layers stand in blocks \(block_sizes=\[2, 1, 1\]\)"):
        run_sweep(teacher=Teacher(model=str(save_folder("funnel"))))
