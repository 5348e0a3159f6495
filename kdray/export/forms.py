"""The forms of a student. Each is loaded as a torch module, so that measuring and predicting is the same for all forms.

The file names are those that transformers, optimum and transformers.js expect: model.safetensors, onnx/model.onnx and
onnx/model_quantized.onnx.

In tensor names: B texts of a batch, L tokens, C outputs.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from kdray.errors import ResourceError, StorageError
from kdray.models.checks import check_safety
from kdray.models.pretrained import Pretrained
from kdray.safe_text.escaping import printable

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
    """Load the student in this form; the module is called like a transformers model.

    `threads` is the number of threads of an ONNX session; 0 uses one per core. Raises StorageError for a form that has
    not been exported, ResourceError if onnxruntime is missing, TeacherError if the folder is not safe to load.
    """
    if form == "pytorch":
        return student.model()
    # The tokenizer and the labels of this form come from the same folder, which PyTorch's form checks by itself.
    check_safety(student.folder, "student")
    file = student.folder / FILES[form]
    if not file.exists():
        raise StorageError(f"{file}: not exported yet. Make it with `kdray export STORAGE/NAME --form {form}`.")
    return OnnxModel(file, threads)


def require_installed(libraries: Sequence[str]) -> None:
    """Raise ResourceError, with the command to install, if one of these libraries is missing."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(f"ONNX needs {', '.join(missing)}, not installed here: {INSTALL}")


class OnnxModel(nn.Module):
    """An ONNX file that onnxruntime runs on the CPU."""

    def __init__(self, file: Path, threads: int = 0) -> None:
        """Load the file. Raises StorageError for a file that onnxruntime cannot load."""
        super().__init__()
        require_installed(["onnxruntime"])
        import onnxruntime  # noqa: PLC0415  (an extra)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            # onnxruntime refuses a graph whose weights are in a file outside of its folder, also through a link.
            self._session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common
            raise StorageError(
                f"{file}: onnxruntime cannot load it ({printable(error, 300)}). Make it again with `kdray export`."
            ) from None
        self._input_names = [entry.name for entry in self._session.get_inputs()]

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Compute the logits, B x C or B x L x C.

        A missing input (token types) is zeros, which is the default of transformers.
        """
        zeros = torch.zeros_like(inputs["input_ids"])
        arrays = {name: inputs.get(name, zeros).numpy() for name in self._input_names}
        (logits,) = self._session.run(["logits"], arrays)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))
