"""All tasks. A new task is a file with its class, and a line in `TASKS`."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, SerializeAsAny

from kdray.errors import SpecError, did_you_mean
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.counts import Metric
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification

TASKS: tuple[type[Task], ...] = (TextClassification, TokenClassification, MultiLabel, Regression, MaskedLM, CausalLM)
"""The first one is the task of a sweep that names none."""

KINDS: Mapping[str, type[Task]] = {task.model_fields["kind"].default: task for task in TASKS}
"""The value of `kind` -> the task."""

Task.kinds = KINDS


def task_of(settings: Any) -> Any:
    """The task with these settings: a task itself, or a mapping whose `kind` names one.

    Raises SpecError for an unknown kind, and for settings that the task does not have.
    """
    if not isinstance(settings, Mapping):
        return settings
    kind = settings.get("kind", next(iter(KINDS)))
    if not isinstance(kind, str) or kind not in KINDS:
        raise SpecError(f"task.kind: got {kind!r}; {did_you_mean(str(kind), KINDS)}")
    return KINDS[kind](**settings)


AnyTask: TypeAlias = Annotated[SerializeAsAny[Task], BeforeValidator(task_of)]
"""The type of a setting that holds a task."""


def task_metrics() -> dict[str, Metric]:
    """Name -> metric, of all tasks with any labels."""
    return {metric.name: metric for kind, task in KINDS.items() for metric in task(kind=kind).metrics(None)}
