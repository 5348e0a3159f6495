"""An ONNX file as a torch module, so that measuring and predicting is the same for all forms.

In tensor names: B texts of a batch, L tokens, C outputs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from kdray.errors import StorageError
from kdray.forms.libraries import require_installed
from kdray.safe_text.escaping import printable


class OnnxModel(nn.Module):
    """An ONNX file that onnxruntime runs on the CPU."""

    def __init__(self, file: Path, threads: int = 0) -> None:
        """Load the file; `threads` is the number of threads, 0 uses one per core.

        Raises StorageError for a file that onnxruntime cannot load, ResourceError if onnxruntime is missing.
        """
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
