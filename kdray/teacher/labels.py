"""Whether an already fine-tuned teacher is a model for the task of the sweep, with the labels of its data."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from kdray.errors import TeacherError
from kdray.models.checks import loading_errors
from kdray.models.families import VOCABULARY_HEADS
from kdray.tasks.heads import head_of
from kdray.tasks.kinds import TASKS
from kdray.tasks.task import Task

FINE_TUNE = "fine-tune the teacher, Teacher(..., training=Training())"


def check_head(task: Task, folder: Path, labels: Sequence[str]) -> None:
    """Raise TeacherError if the config in this folder is that of a model for another task.

    A model whose config does not say what it is for is accepted here; whether it has a trained head is known when it is
    loaded.
    """
    with loading_errors(folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    head = head_of(config)
    if head is None or (head == task.head and _can_answer(task, config, labels)):
        return
    outputs = "1 output" if config.num_labels == 1 else f"{config.num_labels} outputs"
    if head in VOCABULARY_HEADS:
        outputs = "the outputs of a vocabulary"
    problem = f", problem_type {config.problem_type}" if config.problem_type else ""
    kind = _kind_of(config, head)
    raise TeacherError(
        f"teacher.model {folder}: a model for {kind.replace('_', ' ')} ({config.architectures[0]} with {outputs}"
        f"{problem}), but the task is {task.name} (task.kind={task.kind}). Give a teacher of this task, or "
        f"{FINE_TUNE}; or change the task: --set task.kind={kind}."
    )


def check_labels(labels: Sequence[str], given: Sequence[str] | None, task: Task, folder: Path) -> None:
    """Raise TeacherError if the outputs of a teacher are not the data's labels, in their order.

    `given` is the setting `teacher.labels`. A task without labels has one output, which has no name.
    """
    if not labels:
        if given:
            raise TeacherError(f"teacher.labels: {task.name} has no labels; its only output is a number. Leave it out.")
        return
    with loading_errors(folder):
        outputs = given or task.model_labels(folder)
    is_same = [name.casefold() for name in outputs] == [name.casefold() for name in labels]
    is_unnamed = len(outputs) == len(labels) and all(name == f"LABEL_{i}" for i, name in enumerate(outputs))
    is_ordered_by_user = given is not None and sorted(outputs) == sorted(labels)
    # Outputs without names may be in any order. Only the validation quality shows it, in `check_quality`.
    if is_same or is_ordered_by_user or is_unnamed:
        return
    where = "teacher.labels" if given else f"teacher.model {folder}"
    difference = f"{where}: the teacher's labels are {', '.join(outputs)}; the data's are {', '.join(labels)}."
    raise TeacherError(f"{difference} {_remedy(outputs, labels, task)}")


def _can_answer(task: Task, config: PreTrainedConfig, labels: Sequence[str]) -> bool:
    """Whether a model with this configuration, and with the head of the task, may be one for the task."""
    if task.problem_type is None:
        return True
    has_one_output = (config.num_labels == 1) == (not labels)
    return has_one_output and config.problem_type in (None, task.problem_type)


def _kind_of(config: PreTrainedConfig, head: str) -> str:
    """The kind of the task that this model is for."""
    # Without a problem type, transformers takes a model with one output for a regression, too.
    default = "regression" if config.num_labels == 1 else "single_label_classification"
    problem = config.problem_type or default
    kinds = [task for task in TASKS if task.head == head and task.problem_type in (None, problem)]
    return str(kinds[0].model_fields["kind"].default)


def _remedy(outputs: Sequence[str], labels: Sequence[str], task: Task) -> str:
    """What to do about other labels."""
    has_names = any(name != f"LABEL_{i}" for i, name in enumerate(outputs))
    if has_names and (difference := task.label_difference(outputs, labels)) is not None:
        if difference.meanings is not None:
            return f"{difference.sentence} Say --set teacher.labels={','.join(difference.meanings)}."
        return f"{difference.sentence} Write the data's labels like the teacher's, or {FINE_TUNE}."
    if len(outputs) != len(labels):
        return f"Their number differs: {FINE_TUNE}."
    spelling = {name.casefold(): name for name in labels}
    if {name.casefold() for name in outputs} == spelling.keys():
        order = ",".join(spelling[name.casefold()] for name in outputs)
        return f"Only the order differs: say --set teacher.labels={order}."
    return (
        f"Say what each output means in the data's words, in the teacher's order, such as --set "
        f"teacher.labels={','.join(labels)}."
    )
