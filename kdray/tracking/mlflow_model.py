"""A student as an MLflow model: a folder that `mlflow.pyfunc` and `mlflow.transformers` load without kdray.

The weights are safetensors; all other files in the folder are text.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from huggingface_hub import ModelCard
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema
from transformers import pipeline

from kdray.models.pretrained import Pretrained
from kdray.tasks.task import Task

_PACKAGES = ("torch", "transformers", "safetensors")
_OUTPUT = Schema([ColSpec("string", "label"), ColSpec("double", "score")])


def write_mlflow_model(student: Pretrained, task: Task, sweep: str, folder: Path) -> None:
    """Write the student of this sweep, with its model card, as an MLflow model; `folder` must not exist yet.

    `mlflow.pyfunc` accepts a text of any length and truncates it as training did.
    """
    model = student.model()
    # Not a possible name of the hub: MLflow would request the licence of a model with that name.
    model.name_or_path = f"kdray sweep {sweep}"
    mlflow.transformers.save_model(
        pipeline(task.pipeline, model=model, tokenizer=student.tokenizer(), device="cpu"),
        folder,
        model_card=ModelCard.load(student.folder / "README.md"),
        signature=ModelSignature(_input(task), _OUTPUT),
        input_example=_example(task),
        model_config={"truncation": True, "max_length": task.max_length},
        # Without the local part of a version, such as +cpu, which the package registry does not have.
        pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in _PACKAGES],
    )
    (folder / "LICENSE.txt").unlink()  # its only content: MLflow found no licence on the hub


def _input(task: Task) -> Schema:
    names = ("text", "text_pair") if task.pair else (None,)
    return Schema([ColSpec("string", name) for name in names])


def _example(task: Task) -> Any:
    return [{"text": "one text", "text_pair": "its second text"}] if task.pair else ["one text"]
