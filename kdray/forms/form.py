"""Form: what every form has that is made from the student's ONNX graph.

A new form is a file with a subclass, and a line in `forms`. The file names are those that optimum and transformers.js
expect: onnx/model.onnx and onnx/model_quantized.onnx.
"""

from pathlib import Path
from typing import ClassVar

from torch import nn

from kdray.forms.onnx_model import OnnxModel

FOLDER = "onnx"
"""The folder with the forms, in the folder of the student."""


class Form:
    """A form that is made from the student's ONNX graph in float32."""

    name: ClassVar[str]
    """Its name in settings and on the command line; the names of its metrics begin with it."""
    label: ClassVar[str]
    """Its name in headings and sentences."""
    title: ClassVar[str]
    """Its full name, for the screen."""
    file_name: ClassVar[str]
    """The name of its file in `FOLDER`."""

    @property
    def file(self) -> str:
        """Its file, relative to the folder of the student."""
        return f"{FOLDER}/{self.file_name}"

    def write(self, graph: Path) -> Path:
        """Write the form beside the graph in float32, from which it is made; return its file.

        Raises ExportError, with the reason, if it cannot be made from this graph; ResourceError if a library is
        missing.
        """
        raise NotImplementedError

    def open(self, file: Path, threads: int) -> nn.Module:
        """Load the form as a module that is called like a transformers model, and uses this many processor threads.

        Raises StorageError for a file that cannot be loaded, ResourceError if a library is missing.
        """
        return OnnxModel(file, threads)


def size_mb(file: Path) -> float:
    """The size of this file, and of other files with its weights, in millions of bytes."""
    # Large models have weights in other files, such as model.onnx.data or model-00001-of-00002.safetensors.
    files = [*file.parent.glob(f"{file.name}*"), *file.parent.glob("model-*-of-*.safetensors")]
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6
