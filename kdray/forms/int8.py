"""The form int8: the ONNX graph of the student with int8 weights (dynamic quantisation)."""

from pathlib import Path
from typing import ClassVar

from kdray.errors import ExportError
from kdray.forms.form import Form
from kdray.forms.graphs import quiet_libraries, root_cause
from kdray.forms.libraries import require_installed


class Int8Form(Form):
    """The ONNX graph with int8 weights; activations are quantised at run time."""

    name: ClassVar[str] = "int8"
    label: ClassVar[str] = "int8"
    title: ClassVar[str] = "ONNX in int8"
    file_name: ClassVar[str] = "model_quantized.onnx"

    def write(self, graph: Path) -> Path:
        """See `Form`."""
        file = graph.with_name(self.file_name)
        write_int8(graph, file)
        return file


def write_int8(graph: Path, file: Path) -> None:
    """Write the ONNX graph with int8 weights; activations are quantised at run time (dynamic quantisation).

    Convolutions stay in float32: onnxruntime computes them two to three times slower in int8 (docs/experiments.md).
    Raises ExportError, with the reason, if the graph cannot be quantised; ResourceError if a library is missing.
    """
    require_installed()
    import onnx  # noqa: PLC0415  (an extra)
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    try:
        with quiet_libraries():
            model = onnx.load(graph)
            del model.graph.value_info[:]  # the quantiser infers shapes itself, and fails on those of the exporter
            # One scale per channel agrees with float32 more often than one per matrix (docs/experiments.md). Weights of
            # seven bits (reduce_range) do not saturate on processors without VNNI.
            quantize_dynamic(
                model,
                file,
                per_channel=True,
                reduce_range=True,
                nodes_to_exclude=[node.name for node in model.graph.node if node.op_type == "Conv"],
                weight_type=QuantType.QInt8,
                use_external_data_format=model.ByteSize() > 2**31 - 1,
            )
    except Exception as error:
        raise ExportError(f"the ONNX graph cannot be quantised: {root_cause(error)}") from error
