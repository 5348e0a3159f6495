"""Writes a model as an ONNX graph in float32, from which every other form is made.

`export.checks` finds out whether a graph gives the same answers as the student.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdray.errors import ExportError
from kdray.forms.libraries import require_installed
from kdray.forms.synthetic import synthetic_inputs
from kdray.models.pretrained import Pretrained

EXAMPLE = (2, 7)
"""Rows and tokens of the example that is traced; the exporter would take a size of 1 for a constant."""

RECURRENT = ("LSTM", "GRU")
"""The operators of ONNX for recurrent layers."""
LARGEST = 2**31 - 1
"""The size of a file with its weights inside, in bytes."""


def write_onnx(student: Pretrained, file: Path) -> None:
    """Write the student as an ONNX graph in float32, for any number and length of texts.

    Raises ExportError, with the reason, for a model that has no such graph; ResourceError if a library is missing.
    """
    write_graph(student.model(), student.tokenizer().model_input_names, file)


def write_graph(model: PreTrainedModel, input_names: Sequence[str], file: Path) -> None:
    """Write a model in float32 as an ONNX graph, for any number and length of texts; `model` must be on the CPU.

    `input_names` are the inputs that the tokenizer gives; the graph has those that the model reads. Sets the model's
    `use_cache`. Raises ExportError, with the reason, for a model that has no such graph; ResourceError if a library is
    missing.
    """
    require_installed()
    model.config.use_cache = False  # a decoder would return its cache as further outputs; a classifier needs none
    inputs = synthetic_inputs(model, *EXAMPLE, torch.device("cpu"))
    inputs["attention_mask"][1, -2:] = 0  # padding, as in a batch of texts of different lengths
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in input_names if name in parameters]
    example = {name: inputs.get(name, torch.zeros(EXAMPLE, dtype=torch.long)) for name in names}
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in names}
    try:
        with quiet_libraries():
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
            _fold_cell_weights(program.model)  # type: ignore[union-attr]
            _remove_metadata(program.model)  # type: ignore[union-attr]
            program.save(file)  # type: ignore[union-attr]  # only the old exporter returns None
    except Exception as error:  # tracing, decomposing and translating a model may raise any error
        raise ExportError(f"this {model.config.model_type} model has no ONNX graph: {root_cause(error)}") from error


def _fold_cell_weights(model: Any) -> None:
    """Store the weights of an LSTM or a GRU in the order of ONNX, instead of nodes that reorder them.

    The exporter folds small constants only. Without this, the quantiser does not see the weights, which are results of
    other nodes, and an LSTM of 256 stays in float32: 4.6 MB instead of 2.7, and 2.6 ms instead of 0.9. Other models are
    left as they are, because a weight that several nodes use would be stored several times.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass  # noqa: PLC0415  (an extra)
    from onnxscript.optimizer import fold_constants  # noqa: PLC0415

    if any(node.op_type in RECURRENT for node in model.graph):
        fold_constants(model, input_size_limit=LARGEST, output_size_limit=LARGEST)
        RemoveUnusedNodesPass()(model)


def _remove_metadata(model: Any) -> None:
    """Remove the exporter's notes at every node: most are paths of source files on this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # noqa: PLC0415  (an extra)

    ClearMetadataAndDocStringPass()(model)


def root_cause(error: BaseException) -> str:
    """The first line of the innermost error: every layer of the exporter wraps it in a message with general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason was given")
    return f"{type(error).__name__}: {line}"[:300]


@contextmanager
def quiet_libraries() -> Iterator[None]:
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
