"""The costs of one model in its forms: it is written as in an export, into a folder that is deleted, and timed.

The weights do not matter for costs, so a model need not be trained. `costs` decides which models are measured, and
caches the results.

In tensor names: B rows of a batch, L tokens, C outputs.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdray.errors import ExportError, StorageError
from kdray.evaluation.measuring import Latency, measure_form
from kdray.evaluation.outputs import evaluation_mode
from kdray.forms.form import Form, size_mb
from kdray.forms.forms import FORM_OF, ONNX
from kdray.forms.graphs import root_cause, write_graph
from kdray.forms.libraries import require_installed
from kdray.forms.synthetic import synthetic_inputs
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Report, Worker
from kdray.storage.files import scratch_folder
from kdray.students.student import Student
from kdray.tasks.task import LARGEST_LOGIT_DIFFERENCE

REASON = "reason"
"""The key of the only value in the report for a model that cannot be exported: why not."""

NOISE = 1e-3
"""The standard deviation of what is added to the weights. See `_make_distinct`."""


@dataclass(frozen=True)
class MeasureForms:
    """The job that measures one model in some forms: a student of this architecture, or the source if it is None.

    It reports name of a form -> the model's costs in it, by the names in `forms.metrics.MEASURED`; for a model that
    cannot be exported only the reason. Raises ResourceError if a library is missing.
    """

    source: Pretrained
    student: Student | None
    latency: Latency
    forms: tuple[str, ...]

    def __call__(self, worker: Worker) -> Iterator[Report]:
        require_installed()
        if worker.rank:
            return  # the other ranks would only take processor time from the one that is timed
        model = worker.cached(("source", self.source.key), self.source.model)
        # A copy of the source, because the export and the noise change the model.
        model = self.student.build(model, seed=0) if self.student else copy.deepcopy(model)
        model = model.to("cpu", torch.float32).eval()
        try:
            yield self._measure(model, worker)
        except ExportError as error:
            yield {REASON: str(error)}

    def _measure(self, model: PreTrainedModel, worker: Worker) -> Report:
        _make_distinct(model)
        costs: Report = {}
        with scratch_folder() as folder:
            graph = folder / ONNX.file_name
            write_graph(model, self.source.tokenizer().model_input_names, graph)
            _check_answers(model, _open(ONNX, graph, self.latency), self.latency)
            for form in map(FORM_OF.__getitem__, self.forms):
                worker.progress += 1  # a large model takes minutes, and a job without progress counts as hung
                file = form.write(graph)
                speed = measure_form(_open(form, file, self.latency), model, self.latency)
                costs[form.name] = {**speed, "size_mb": size_mb(file)}
        return costs


def _make_distinct(model: nn.Module) -> None:
    """Add a little noise to all weights.

    The exporter stores equal tensors once, such as the biases of layers that were not trained yet, so the file of an
    untrained model would be smaller than that of the trained one.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=NOISE)


def _open(form: Form, file: Path, latency: Latency) -> nn.Module:
    """Load the form. Raises ExportError, with the reason, for a graph that onnxruntime does not load."""
    try:
        return form.open(file, latency.threads)
    except StorageError as error:
        raise ExportError(f"onnxruntime cannot load its {form.label} graph: {root_cause(error)}") from error


def _check_answers(model: PreTrainedModel, onnx: nn.Module, latency: Latency) -> None:
    """Raise ExportError if the ONNX graph does not answer as the model does, for other sizes than those traced.

    `export` checks the trained student on the test rows. A graph that is wrong for any weights is refused here, before
    a student is trained.
    """
    inputs = synthetic_inputs(model, 3, latency.length, torch.device("cpu"))
    inputs["attention_mask"][1, latency.length // 2 + 1 :] = 0
    try:
        with evaluation_mode(model):
            expected, logits = (_read_logits(each, inputs) for each in (model, onnx))
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ExportError(f"onnxruntime cannot run its ONNX graph: {root_cause(error)}") from error
    difference = (logits - expected).abs().max()
    # The numbers of a regression may be large, such as prices, and are then rounded more coarsely.
    allowed = LARGEST_LOGIT_DIFFERENCE * expected.abs().max().clamp(min=1.0)
    if not difference <= allowed:  # not `>`, which would let NaN pass
        raise ExportError(f"the ONNX graph does not answer as the model does: an output is off by {difference:.3g}")


def _read_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logits (B x C) of a classifier; those of a tagger (B x L x C) without the ones of padding."""
    logits: Tensor = model(**inputs).logits
    return logits[inputs["attention_mask"].bool()] if logits.ndim == 3 else logits
