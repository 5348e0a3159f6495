"""A student as an MLflow model: a folder that `mlflow.pyfunc` loads without kdray.

The weights are safetensors, or those of an ONNX graph for a student that plain transformers does not load; all other
files in the folder are text. Where the pipeline of transformers answers as the task demands, the folder is one of
`mlflow.transformers`; otherwise it has the script `served_student`.
"""

import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from huggingface_hub import ModelCard
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, Object, Property, Schema
from transformers import pipeline

from kdray.forms.forms import ONNX
from kdray.models.pretrained import Pretrained, save_model
from kdray.tasks.task import Task

_PACKAGES = ("torch", "transformers", "safetensors")
_GRAPH_PACKAGES = ("onnxruntime", "transformers")
"""What the script needs that runs an ONNX graph; transformers reads the tokenizer."""
_SCRIPT = Path(__file__).with_name("served_student.py")
_STUDENT = "student"
"""The folder with the files of the student, in the folder of a model with the script."""
_CARD = "README.md"


def write_mlflow_model(student: Pretrained, task: Task, sweep: str, folder: Path) -> None:
    """Write the student of this sweep, with its model card, as an MLflow model; `folder` must not exist yet.

    `mlflow.pyfunc` accepts a text of any length and reads it as training did.
    """
    serving = task.serving(task.model_labels(student.folder))
    settings = {
        "signature": ModelSignature(_input(task), _output(serving.columns)),
        "input_example": _example(task),
        # Without the local part of a version, such as +cpu, which the package registry does not have.
        "pip_requirements": [
            f"{name}=={metadata.version(name).partition('+')[0]}"
            for name in (_PACKAGES if student.is_plain else _GRAPH_PACKAGES)
        ],
    }
    if serving.has_pipeline and student.is_plain:
        _write_pipeline(student, task, sweep, folder, settings)
    else:
        _write_script(student, {**serving.script, "max_length": task.max_length}, folder, settings)


def _write_pipeline(student: Pretrained, task: Task, sweep: str, folder: Path, settings: dict[str, Any]) -> None:
    model = student.model()
    # Not a possible name of the hub: MLflow would request the licence of a model with that name.
    model.name_or_path = f"kdray sweep {sweep}"
    mlflow.transformers.save_model(
        pipeline(task.pipeline, model=model, tokenizer=student.tokenizer(), device="cpu"),
        folder,
        model_card=ModelCard.load(student.folder / _CARD),
        model_config={"truncation": True, "max_length": task.max_length},
        **settings,
    )
    (folder / "LICENSE.txt").unlink()  # its only content: MLflow found no licence on the hub


def _write_script(student: Pretrained, script: Mapping[str, Any], folder: Path, settings: dict[str, Any]) -> None:
    mlflow.pyfunc.save_model(folder, python_model=str(_SCRIPT), model_config=dict(script), **settings)
    files = folder / "artifacts" / _STUDENT
    files.mkdir(parents=True)
    save_model(student.model(), student.tokenizer(), files)
    shutil.copyfile(student.folder / _CARD, files / _CARD)
    if not student.is_plain:
        shutil.copyfile(student.folder / ONNX.file, files / ONNX.file_name)
    # MLflow would copy the files itself, but with a progress bar, and it records paths of this machine.
    model = Model.load(folder)
    function = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    function["artifacts"] = {_STUDENT: {"path": str(files.relative_to(folder))}}
    function["model_code_path"] = _SCRIPT.name
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(folder / "MLmodel")


def _input(task: Task) -> Schema:
    names = ("text", "text_pair") if task.pair else (None,)
    return Schema([ColSpec("string", name) for name in names])


def _output(columns: Mapping[str, Any]) -> Schema:
    """The schema of these columns: see `Serving.columns`."""
    return Schema([ColSpec(_type(kind), name) for name, kind in columns.items()])


def _type(kind: Any) -> Any:
    if isinstance(kind, str):
        return kind
    (fields,) = kind
    return Array(Object([Property(name, _type(each)) for name, each in fields.items()]))


def _example(task: Task) -> Any:
    return [{"text": "one text", "text_pair": "its second text"}] if task.pair else ["one text"]
