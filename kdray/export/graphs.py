"""Writes a student as an ONNX graph, and that graph with int8 weights.

`checks` finds out whether a graph gives the same answers as the student.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdray.errors import ExportError
from kdray.evaluation.measuring import synthetic_inputs
from kdray.export.forms import require_installed
from kdray.models.pretrained import Pretrained

NEEDED = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE = (2, 7)
"""Rows and tokens of the example that is traced; the exporter would take a size of 1 for a constant."""


def write_onnx(student: Pretrained, file: Path) -> None:
    """Write the student as an ONNX graph in float32, for any number and length of texts.

    Raises ExportError, with the reason, for a model that has no such graph; ResourceError if a library is missing.
    """
    require_installed(NEEDED)
    model = student.model()
    model.config.use_cache = False  # a decoder would return its cache as further outputs; a classifier needs none
    inputs = synthetic_inputs(model, *EXAMPLE, torch.device("cpu"))
    inputs["attention_mask"][1, -2:] = 0  # padding, as in a batch of texts of different lengths
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in student.tokenizer().model_input_names if name in parameters]
    example = {name: inputs.get(name, torch.zeros(EXAMPLE, dtype=torch.long)) for name in names}
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in names}
    try:
        with _quiet_libraries():
            program = torch.onnx.export(
                model,
                args=(),
                kwargs=example,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=axes,
                dynamo=True,
                verbose=False,
            )
            _remove_metadata(program.model)  # type: ignore[union-attr]
            program.save(file)  # type: ignore[union-attr]  # only the old exporter returns None
    except Exception as error:  # tracing, decomposing and translating a model may raise any error
        raise ExportError(f"this {model.config.model_type} model has no ONNX graph: {_root_cause(error)}") from error


def write_int8(graph: Path, file: Path) -> None:
    """Write the ONNX graph with int8 weights; activations are quantised at run time (dynamic quantisation).

    Raises ExportError, with the reason, if the graph cannot be quantised; ResourceError if a library is missing.
    """
    require_installed(NEEDED)
    import onnx  # noqa: PLC0415  (an extra)
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    try:
        with _quiet_libraries():
            model = onnx.load(graph)
            del model.graph.value_info[:]  # the quantiser infers shapes itself, and fails on those of the exporter
            # One scale per channel agrees with float32 more often than one per matrix (docs/experiments.md). Weights of
            # seven bits (reduce_range) do not saturate on processors without VNNI.
            quantize_dynamic(
                model,
                file,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=model.ByteSize() > 2**31 - 1,
            )
    except Exception as error:
        raise ExportError(f"the ONNX graph cannot be quantised: {_root_cause(error)}") from error


def _remove_metadata(model: Any) -> None:
    """Remove the exporter's notes at every node: most are paths of source files on this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # noqa: PLC0415  (an extra)

    ClearMetadataAndDocStringPass()(model)


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost error: every layer of the exporter wraps it in a message with general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason was given")
    return f"{type(error).__name__}: {line}"[:300]


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Send the messages of the exporter and the quantiser to the log file, if there is one, instead of stderr."""
    null_handler = logging.NullHandler()
    loggers = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    # torch's own handlers write to stderr. Its trace logger writes to a file, on request only.
    on_stderr = [log for log in loggers if log.handlers and log.name.startswith("torch") and "__trace" not in log.name]
    before = [(log, log.handlers, log.propagate) for log in on_stderr]
    for log, _, _ in before:
        log.handlers, log.propagate = [], True
    level = logging.root.level
    logging.root.addHandler(null_handler)  # without any handler, Python would print warnings to stderr
    logging.root.setLevel(max(level, logging.WARNING))  # below it, the quantiser logs a line for every tensor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(null_handler)
        logging.root.setLevel(level)
        for log, handlers, propagates in before:
            log.handlers, log.propagate = handlers, propagates
