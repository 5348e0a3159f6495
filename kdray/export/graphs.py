"""Writes a student as an ONNX graph, and that graph with its weights in eight bits.

Whether the graph still is the student is found out in `checks`.
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
EXAMPLE = (2, 7)  # rows and tokens: 1 would be taken for fixed


def write_onnx(student: Pretrained, file: Path) -> None:
    """Write the student as an ONNX graph in float32 for any number and length of examples.

    Raises ExportError, with the reason, for a model that has no such graph; ResourceError without the extra.
    """
    require_installed(NEEDED)
    model = student.model()
    model.config.use_cache = False  # of a decoder; a cache is no output of a classifier
    inputs = synthetic_inputs(model, *EXAMPLE, torch.device("cpu"))
    inputs["attention_mask"][1, -2:] = 0
    known = inspect.signature(model.forward).parameters
    names = [name for name in student.tokenizer().model_input_names if name in known]
    example = {name: inputs.get(name, torch.zeros(EXAMPLE, dtype=torch.long)) for name in names}
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in names}
    try:
        with _quiet():
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
            _forget_origin(program.model)  # type: ignore[union-attr]
            program.save(file)  # type: ignore[union-attr]  # None is what the old exporter returns
    except Exception as error:  # whatever a tracer, a decomposition or a translation comes upon
        raise ExportError(f"this {model.config.model_type} model has no ONNX graph: {_reason(error)}") from error


def write_int8(graph: Path, file: Path) -> None:
    """Write the ONNX graph with its weights in int8; activations are quantised as they come (dynamic quantisation).

    A scale for each channel and weights of seven bits keep processors without VNNI from saturating. Raises ExportError.
    """
    require_installed(NEEDED)
    import onnx  # noqa: PLC0415  (an extra)
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    try:
        with _quiet():
            model = onnx.load(graph)
            del model.graph.value_info[:]  # shapes that the quantiser works out itself, and stumbles over
            quantize_dynamic(
                model,
                file,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=model.ByteSize() > 2**31 - 1,
            )
    except Exception as error:
        raise ExportError(f"the ONNX graph cannot be quantised: {_reason(error)}") from error


def _forget_origin(model: Any) -> None:
    """Remove what the exporter notes of every node: its place in source files on this machine, mostly."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # noqa: PLC0415  (an extra)

    ClearMetadataAndDocStringPass()(model)


def _reason(error: BaseException) -> str:
    """The first line of what lies deepest: on the way up, every layer of an exporter adds advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason was given")
    return f"{type(error).__name__}: {line}"[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporter and quantiser say on the standard error goes to the log file, if there is one."""
    nowhere = logging.NullHandler()
    known = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    talkers = [log for log in known if log.handlers and log.name.startswith("torch") and "__trace" not in log.name]
    before = [(log, log.handlers, log.propagate) for log in talkers]
    for log, _, _ in before:
        log.handlers, log.propagate = [], True
    level = logging.root.level
    logging.root.addHandler(nowhere)
    logging.root.setLevel(max(level, logging.WARNING))  # a line for every tensor helps nobody
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(nowhere)
        logging.root.setLevel(level)
        for log, handlers, propagates in before:
            log.handlers, log.propagate = handlers, propagates
