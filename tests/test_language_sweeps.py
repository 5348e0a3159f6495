"""Settings of a sweep that a language model does not have: refused with a sentence, before anything is read."""

from typing import Any

import pytest

from kdray.data.splits import Data
from kdray.errors import SpecError
from kdray.models.fresh import FreshTransformer
from kdray.settings import dotted_values
from kdray.sources.generated.articles import GeneratedArticles
from kdray.students.kinds import STUDENTS
from kdray.sweep import Sweep
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.kinds import TASKS
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.task import Task
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training

FRESH = FreshTransformer(layers=2)
NO_LABELS = "language modelling learns from all its texts, and none needs a label. "

both_tasks = pytest.mark.parametrize("task", [MaskedLM(), CausalLM()], ids=lambda task: task.kind)


def sweep_of(task: Task) -> Sweep:
    return Sweep(
        name="language",
        task=task,
        data=Data(source=GeneratedArticles()),
        teacher=Teacher(model=FRESH, training=Training()),
        space={"student.depth": [1, 2]},
    )


def refusal(task: Task, changes: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        sweep_of(task).with_changes(changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.unlabelled": "more.jsonl"}, f"{NO_LABELS}Add the texts to data.train."),
        ({"data.keep_unlabelled": True}, f"{NO_LABELS}Add the texts to data.train."),
        ({"data.max_labelled": 10}, f"{NO_LABELS}Add the texts to data.train."),
        ({"data.max_unlabelled": 10}, f"{NO_LABELS}Add the texts to data.train."),
        ({"task.label": "label"}, f"{NO_LABELS}Leave it out."),
        (
            {"task.max_length": 64},
            "language modelling cuts no text off: it reads long texts in blocks. Set task.block.",
        ),
        ({"augmentation.ways": ("mask",), "augmentation.copies": 2}, "learns the texts as they are"),
        ({"augmentation.ways": ("mask",), "space.augmentation.copies": [0, 2]}, "learns the texts as they are"),
        ({"training.quantised": "int8"}, "computes its outputs in parts, which int8 rounds in different ways"),
        ({"space.training.quantised": ["no", "int8"]}, "computes its outputs in parts"),
        ({"teacher.model": (FRESH, FRESH)}, "has no mean of several teachers"),
        ({"teacher": Teacher(outputs="answers.parquet")}, "needs a teacher that answers at every token"),
        ({"teacher": Teacher(model="folder", labels=("a", "b"))}, "has tokens as outputs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@both_tasks
def test_a_setting_of_other_tasks_is_refused(task: Task, changes: dict[str, Any], expected: str) -> None:
    message = refusal(task, changes)
    assert expected in message
    assert task.name in message
    assert any(message.startswith(f"{name.removeprefix('space.')}") for name in (*changes, "teacher."))


@both_tasks
def test_defaults_and_settings_that_all_tasks_have_are_allowed(task: Task) -> None:
    changes = {"data.unlabelled": None, "data.max_rows": 20, "augmentation.copies": 0, "training.quantised": "no"}
    assert sweep_of(task).with_changes(changes).data.max_rows == 20


def test_the_task_of_the_change_decides_which_settings_there_are() -> None:
    sweep = sweep_of(CausalLM())
    assert "task.block" in refusal(CausalLM(), {"task.kind": "masked_lm", "task.max_length": 64})
    labelled = {"task.kind": "text_classification", "task.label": "label", "data.max_labelled": 10}
    assert sweep.with_changes(labelled).data.max_labelled == 10


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_refused_setting_is_one_of_a_sweep_or_is_not_one_of_the_task(task: type[Task]) -> None:
    of_students = {f"student.{name}" for student in STUDENTS for name in student.model_fields}
    known = {*dotted_values(sweep_of(CausalLM())), *of_students}
    for name in task.refused:
        is_of_task = name.startswith("task.")
        assert name.removeprefix("task.") not in task.model_fields if is_of_task else name in known
