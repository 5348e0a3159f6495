"""A student as an MLflow model: a folder that `mlflow.pyfunc` and `mlflow.transformers` load where kdray is not.

The weights are safetensors, all else in it is text.
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
from kdray.tasks.text_classification import TextClassification

_PACKAGES = ("torch", "transformers", "safetensors")
_ANSWER = Schema([ColSpec("string", "label"), ColSpec("double", "score")])


def write_mlflow_model(student: Pretrained, task: TextClassification, sweep: str, folder: Path) -> None:
    """Write the student of this sweep, with its card, as an MLflow model into a folder that is not there yet.

    By `mlflow.pyfunc` a text of any length is answered, cut as it was in training.
    """
    model = student.model()
    model.name_or_path = f"kdray sweep {sweep}"  # no name that the hub may have: MLflow would ask it for a licence
    mlflow.transformers.save_model(
        pipeline(task.name.replace(" ", "-"), model=model, tokenizer=student.tokenizer(), device="cpu"),
        folder,
        model_card=ModelCard.load(student.folder / "README.md"),
        signature=ModelSignature(_question(task), _ANSWER),
        input_example=_example(task),
        model_config={"truncation": True, "max_length": task.max_length},
        pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in _PACKAGES],
    )
    (folder / "LICENSE.txt").unlink()  # says only that MLflow found none on the hub


def _question(task: TextClassification) -> Schema:
    names = ("text", "text_pair") if task.pair else (None,)
    return Schema([ColSpec("string", name) for name in names])


def _example(task: TextClassification) -> Any:
    return [{"text": "one text", "text_pair": "and what goes with it"}] if task.pair else ["one text"]
