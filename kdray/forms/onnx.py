"""The form ONNX: the graph of the student in float32."""

from pathlib import Path
from typing import ClassVar

from kdray.forms.form import Form


class OnnxForm(Form):
    """The ONNX graph in float32."""

    name: ClassVar[str] = "onnx"
    label: ClassVar[str] = "ONNX"
    title: ClassVar[str] = "ONNX"
    file_name: ClassVar[str] = "model.onnx"

    def write(self, graph: Path) -> Path:
        """See `Form`: the graph is this form."""
        return graph
