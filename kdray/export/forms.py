"""The forms of a student, each read as a torch module: whoever measures or predicts need not know which one it is.

They lie where transformers, optimum and transformers.js look for them: model.safetensors, onnx/model.onnx and
onnx/model_quantized.onnx.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from kdray.errors import ResourceError, StorageError
from kdray.models.pretrained import Pretrained

Form: TypeAlias = Literal["pytorch", "onnx", "int8"]
FORMS: tuple[Form, ...] = get_args(Form)

FOLDER = "onnx"
FILES: dict[Form, str] = {
    "pytorch": "model.safetensors",
    "onnx": f"{FOLDER}/model.onnx",
    "int8": f"{FOLDER}/model_quantized.onnx",
}
INSTALL = "pip install 'kdray[onnx]'"


def open_form(student: Pretrained, form: Form, threads: int = 0) -> nn.Module:
    """The student in this form, called like a transformers model. `threads`: of an ONNX session; 0: all there are.

    Raises StorageError for a form that has not been exported, ResourceError when what runs it is not installed.
    """
    if form == "pytorch":
        return student.model()
    file = student.folder / FILES[form]
    if not file.exists():
        raise StorageError(f"{file}: not exported yet. Make it with `kdray export STORAGE/NAME --form {form}`.")
    return OnnxModel(file, threads)


def require_installed(libraries: Sequence[str]) -> None:
    """Raise ResourceError with the command that installs them when one of these libraries is not there."""
    lacking = [name for name in libraries if importlib.util.find_spec(name) is None]
    if lacking:
        raise ResourceError(f"ONNX needs {', '.join(lacking)}, not installed here: {INSTALL}")


class OnnxModel(nn.Module):
    """An ONNX file on the processor, through onnxruntime."""

    def __init__(self, file: Path, threads: int = 0) -> None:
        super().__init__()
        require_installed(["onnxruntime"])
        import onnxruntime  # noqa: PLC0415  (an extra)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """The logits; what is not given (token types) is zeros, as transformers has it."""
        nothing = torch.zeros_like(inputs["input_ids"])
        fed = {name: inputs.get(name, nothing).numpy() for name in self._names}
        (logits_BxC,) = self._session.run(["logits"], fed)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits_BxC))
