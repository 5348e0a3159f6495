"""What is measured of a model: its logits on given rows, its agreement with the teacher, its size and its latency.

Quality metrics are the task's; when evaluations happen is `training`'s, and where costs are kept `costs`'s business.
"""

import copy
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdray.errors import SpecError
from kdray.settings import Settings
from kdray.tokens import Rows, ordered_batches
from kdray.worker import Worker, torch_threads

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64"}


class Latency(Settings):
    """How latency is measured: the time of one forward pass in float32."""

    batch_size: int = Field(1, ge=1)
    length: int = Field(64, ge=1)
    """Tokens in each example."""
    threads: int = Field(1, ge=1)
    """Processor threads that the model may use."""
    warmup: int = Field(5, ge=0)
    """Passes before the measured ones."""
    repeats: int = Field(30, ge=1)


@dataclass(frozen=True)
class LatencyResult:
    """Percentiles over the measured passes, in milliseconds."""

    p50: float
    p95: float


def predictions(
    model: nn.Module, rows: Rows, batch_size: int, worker: Worker, autocast: torch.dtype | None
) -> np.ndarray:
    """The logits of all rows (N x C, float32, in row order), on every rank. A collective call.

    Each rank computes its share of the same batches, so the numbers do not depend on how many ranks there are.
    """
    share = ordered_batches(rows.lengths, batch_size)[worker.rank :: worker.world]
    outputs: list[Tensor] = []
    with _evaluating(model), torch.autocast(worker.device.type, dtype=autocast, enabled=autocast is not None):
        for indices in share:
            inputs = rows.batch(indices, worker.multiple).to(worker.device).inputs
            outputs.append(model(**inputs).logits)
            worker.beats += 1
    # One copy from the device at the end: copying each batch would wait for it.
    logits = torch.cat(outputs).float().cpu().numpy() if outputs else None
    return _in_row_order(len(rows), worker.gathered((share, logits)))


def agreement(student_logits_NxC: np.ndarray, teacher_logits_NxC: np.ndarray) -> float:
    """The share of rows for which the student's class is the teacher's."""
    return float(np.mean(student_logits_NxC.argmax(axis=-1) == teacher_logits_NxC.argmax(axis=-1)))


def parameters(model: nn.Module) -> int:
    """The number of parameters; those used in two places count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_mb(model: nn.Module) -> float:
    """The size of the model's safetensors file in millions of bytes, without writing it."""
    unique = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(model.state_dict().items())}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # As the format's own writer orders them, since the header holds the offsets: wide types first, then by name.
    for name, tensor in sorted(unique.values(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        header[name] = {
            "dtype": SAFETENSORS_NAMES.get(dtype, dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header_bytes = len(json.dumps(header, separators=(",", ":")))
    return (8 + -(-header_bytes // 8) * 8 + end) / 1e6


def measured_latency(model: PreTrainedModel, latency: Latency, device: torch.device) -> LatencyResult:
    """The time of a forward pass on synthetic full-length examples, on this device; the model is not changed.

    Raises SpecError when the model cannot read examples of that length.
    """
    if latency.length > _positions(model, latency.length):
        raise SpecError(
            f"latency.length: got {latency.length}, but this {model.config.model_type} model reads at most "
            f"{_positions(model, latency.length)} tokens; give a length up to that."
        )
    if model.device != device or model.dtype != torch.float32:
        model = copy.deepcopy(model).to(device, torch.float32)
    inputs = _synthetic(model, latency, device)
    with _evaluating(model), torch_threads(latency.threads):
        for _ in range(latency.warmup):
            _milliseconds(model, inputs, device)
        times = [_milliseconds(model, inputs, device) for _ in range(latency.repeats)]
    p50, p95 = np.percentile(times, [50, 95])
    return LatencyResult(float(p50), float(p95))


def costs(model: PreTrainedModel, latency: Latency, device: torch.device) -> dict[str, float]:
    """What an architecture costs: latency_ms, latency_p95_ms, parameters, size_mb."""
    measured = measured_latency(model, latency, device)
    return {
        "latency_ms": measured.p50,
        "latency_p95_ms": measured.p95,
        "parameters": parameters(model),
        "size_mb": size_mb(model),
    }


def hardware(device: torch.device | None = None) -> str:
    """The name of what this device computes on: the GPU's, or the processor's. None: the CPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients, and back in its mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _in_row_order(rows: int, shares: list[tuple[list[np.ndarray], np.ndarray | None]]) -> np.ndarray:
    computed = [(np.concatenate(batches), logits) for batches, logits in shares if logits is not None]
    logits_NxC = np.empty((rows, computed[0][1].shape[1]), dtype=np.float32)
    for indices, logits in computed:
        logits_NxC[indices] = logits
    return logits_NxC


def _positions(model: PreTrainedModel, enough: int) -> int:
    """How many tokens the model has places for; `enough` where it numbers no places."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin number places from the padding token's id on.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - taken)
    return enough


def _synthetic(model: PreTrainedModel, latency: Latency, device: torch.device) -> dict[str, Tensor]:
    """Full examples of tokens that are not padding."""
    shape = (latency.batch_size, latency.length)
    ids = torch.randint(model.config.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))
    padding = model.config.pad_token_id
    ids += (ids >= padding).long() if padding is not None else 0
    return {"input_ids": ids.to(device), "attention_mask": torch.ones(shape, dtype=torch.long, device=device)}


def _milliseconds(model: PreTrainedModel, inputs: dict[str, Tensor], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter_ns()
    model(**inputs)
    _wait(device)
    return (time.perf_counter_ns() - start) / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
