"""Measure what one model costs on this machine: size, multiply-adds, latency and throughput.

A figure is useful only together with the conditions of its measurement; `describe_conditions` gives them as text.
`costs` decides which models are measured, and caches the results.
"""

import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from kdray.errors import SpecError
from kdray.evaluation.outputs import evaluation_mode
from kdray.forms.metrics import FORM_COSTS, FORM_SPEEDUPS
from kdray.forms.synthetic import synthetic_inputs
from kdray.models.pretrained import count_positions
from kdray.settings import Settings
from kdray.slots.job import torch_threads
from kdray.tasks.token_answers import LOGITS_AT_ONCE

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64"}
"""The name of a torch dtype in the header of a safetensors file."""

CPU_METRICS = {
    "latency_ms": "cpu_latency_ms",
    "latency_p95_ms": "cpu_latency_p95_ms",
    "throughput_per_s": "cpu_throughput_per_s",
}
"""The metrics that depend on the device: the name for the device of the slots -> the name for the CPU beside it."""

PYTORCH_METRICS = (*CPU_METRICS, "multiply_adds", "parameters", "size_mb", *CPU_METRICS.values())
"""The costs of one model in PyTorch. Without a GPU the slots run on the CPU, so both have the same figures."""

COST_METRICS = (*PYTORCH_METRICS, *FORM_COSTS)
"""The costs of one model. Those in other forms are measured only for a sweep that names one of them."""

SPEEDUP_METRICS = {"speedup": "latency_ms", "cpu_speedup": "cpu_latency_ms", **FORM_SPEEDUPS}
"""A speed-up -> the latency whose ratio it is: the teacher's latency over the student's."""

ARCHITECTURE_METRICS = (*COST_METRICS, *SPEEDUP_METRICS)
"""All metrics of an architecture that are known before it is trained."""

THROUGHPUT_MS = 1000
"""The measurement of throughput ends after this many milliseconds."""
THROUGHPUT_CALLS = 30
"""The measurement of throughput ends after this many passes, even if the time is not over."""


class Latency(Settings):
    """How latency and throughput are measured: by the time of forward passes in float32."""

    batch_size: int = Field(1, ge=1)
    """Examples in one pass when latency is measured."""
    length: int = Field(64, ge=1)
    """Tokens in each example."""
    threads: int = Field(1, ge=1)
    """Processor threads that the model may use."""
    warmup: int = Field(5, ge=0)
    """Passes before the measured passes of latency."""
    repeats: int = Field(30, ge=1)
    """Measured passes of latency."""
    throughput_batch_size: int = Field(32, ge=1)
    """Examples in one pass when throughput is measured."""


@dataclass(frozen=True)
class LatencyResult:
    """The median and the 95th percentile of the measured passes, in milliseconds."""

    p50: float
    p95: float


def describe_conditions(latency: Latency, hardware: str, precision: str = "float32", cpu: str = "") -> str:
    """The conditions of a measurement as text, which is printed beside the figures.

    `cpu` is the processor beside the measured device. It is named only if it is not `hardware` itself.
    """
    tokens = f"{latency.length} {_plural('token', latency.length)} each"
    threads = f"{latency.threads} {_plural('thread', latency.threads)}"
    return (
        f"latency of {latency.batch_size} {_plural('example', latency.batch_size)} a pass, throughput of "
        f"{latency.throughput_batch_size}; {tokens}, {threads}, {precision}, {hardware}"
        f"{f' (CPU: {cpu})' if cpu not in ('', hardware) else ''}"
    )


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; a parameter that the model uses in two places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def safetensors_size_mb(model: nn.Module) -> float:
    """The size of the model's safetensors file in millions of bytes, computed without writing the file."""
    # A tied tensor is stored once. Reversed, so that the first of its names stays.
    unique = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(model.state_dict().items())}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The header contains offsets, so its length depends on the order of the tensors. The writer of the format puts
    # wide types first, and tensors of one type in the order of their names.
    for name, tensor in sorted(unique.values(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        header[name] = {
            "dtype": SAFETENSORS_NAMES.get(dtype, dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    # The file has 8 bytes with the length of the header, the header padded to a multiple of 8 bytes, and the tensors.
    header_bytes = len(json.dumps(header, separators=(",", ":")))
    padded_header_bytes = -(-header_bytes // 8) * 8
    return (8 + padded_header_bytes + end) / 1e6


def _operations_of_rnn(inputs: torch.Size, weights: Sequence[torch.Size], *others: Any, **named: Any) -> int:
    """The floating-point operations of a fused LSTM or GRU: at each place, each matrix is multiplied with a vector."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _operations_of_rnn_layer(
    inputs: torch.Size, weight_ih: torch.Size, weight_hh: torch.Size, *others: Any, **named: Any
) -> int:
    """The same for one layer in one direction."""
    return _operations_of_rnn(inputs, [weight_ih, weight_hh])


FUSED_KERNELS: dict[Any, Any] = {
    torch.ops.aten.mkldnn_rnn_layer: _operations_of_rnn_layer,
    torch.ops.aten._cudnn_rnn: _operations_of_rnn,
}
"""The fused kernels of recurrent layers, on the CPU and with CUDA, which FlopCounterMode does not know: a function of
the shapes of their arguments that gives floating-point operations."""


def count_multiply_adds(model: PreTrainedModel, length: int) -> float:
    """The multiply-adds of a forward pass over one example of `length` tokens.

    Counts matrix products (linear layers, attention) and convolutions, as torch's FlopCounterMode does. Does not count
    additions, activations, normalisation and embedding look-ups.
    """
    inputs = synthetic_inputs(model, 1, length, model.device)
    # FlopCounterMode does not know the fused attention kernel of the CPU and counts it as 0. The math kernel computes
    # attention with matrix products, which are counted.
    counter = FlopCounterMode(display=False, custom_mapping=FUSED_KERNELS)
    with _without_gradients(model), evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), counter:
        model(**inputs)
    # A multiply-add is two floating-point operations.
    return counter.get_total_flops() / 2


def measure_latency(model: PreTrainedModel, latency: Latency, device: torch.device) -> LatencyResult:
    """Measure the time of a forward pass on this device with synthetic full-length examples.

    The model is not changed. Raises SpecError if the model cannot read examples of that length.
    """
    return _ModelTimer(model, latency, device).measure_latency()


def measure_model(model: PreTrainedModel, latency: Latency, device: torch.device) -> dict[str, float]:
    """Measure `PYTORCH_METRICS`, on this device and on the CPU.

    Units: latencies in milliseconds, throughput in examples per second, multiply-adds per example, size in millions of
    bytes. Raises SpecError if the model cannot read examples of that length.
    """
    timer = _ModelTimer(model, latency, device)
    on_device = timer.measure()
    cpu = torch.device("cpu")
    on_cpu = on_device if device.type == "cpu" else _ModelTimer(model, latency, cpu).measure()
    return {
        **on_device,
        "multiply_adds": count_multiply_adds(timer.model, latency.length),
        "parameters": count_parameters(model),
        "size_mb": safetensors_size_mb(model),
        **{cpu_name: on_cpu[name] for name, cpu_name in CPU_METRICS.items()},
    }


def measure_form(form: nn.Module, model: PreTrainedModel, latency: Latency) -> dict[str, float]:
    """Measure the metrics of speed of a model in another form, by the keys of `CPU_METRICS`; a form runs on the CPU.

    `form` is called as `model`, whose configuration gives the synthetic examples.
    """

    def make_pass(examples: int) -> Callable[[], object]:
        parts = _synthetic_parts(model, examples, latency.length, torch.device("cpu"))
        return lambda: [form(**inputs) for inputs in parts]

    with evaluation_mode(form), torch_threads(latency.threads):
        passes = time_calls(make_pass(latency.batch_size), latency)
        throughput = measure_throughput(make_pass(latency.throughput_batch_size), latency.throughput_batch_size)
    return {"latency_ms": passes.p50, "latency_p95_ms": passes.p95, "throughput_per_s": throughput}


def time_calls(call: Callable[[], object], latency: Latency) -> LatencyResult:
    """Measure the time of one call: percentiles over `repeats` calls, after `warmup` calls that do not count."""
    for _ in range(latency.warmup):
        call()
    p50, p95 = np.percentile([_milliseconds(call) for _ in range(latency.repeats)], [50, 95])
    return LatencyResult(float(p50), float(p95))


def measure_throughput(call: Callable[[], object], examples: int) -> float:
    """Measure how many examples per second are processed, if one call processes `examples` of them.

    The result is computed from the median time of the calls. One call before them does not count.
    """
    call()
    times: list[float] = []
    while not times or (sum(times) < THROUGHPUT_MS and len(times) < THROUGHPUT_CALLS):
        times.append(_milliseconds(call))
    return 1000 * examples / float(np.median(times))


def hardware_name(device: torch.device | None = None) -> str:
    """The name of the GPU that this device is, or the name of the processor. None: the CPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # On Linux, platform.processor() is often empty or only the machine type; the kernel knows the model name.
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class _ModelTimer:
    """Times the forward passes of one model, in float32, on one device, as `Latency` says."""

    def __init__(self, model: PreTrainedModel, latency: Latency, device: torch.device) -> None:
        if latency.length > (most := count_positions(model, latency.length)):
            raise SpecError(
                f"latency.length: got {latency.length}, but this {model.config.model_type} model reads at most "
                f"{most} tokens; give a length up to that."
            )
        if model.device != device or model.dtype != torch.float32:
            # A copy, because the model of the caller must not change.
            model = copy.deepcopy(model).to(device, torch.float32)
        self.model = model
        self._latency = latency
        self._device = device

    def measure(self) -> dict[str, float]:
        """Measure all metrics that depend on the device, by the keys of `CPU_METRICS`."""
        latency = self.measure_latency()
        return {
            "latency_ms": latency.p50,
            "latency_p95_ms": latency.p95,
            "throughput_per_s": self._measure_throughput(),
        }

    def measure_latency(self) -> LatencyResult:
        """Measure the time of one forward pass."""
        run_pass = self._make_pass(self._latency.batch_size)
        with evaluation_mode(self.model), torch_threads(self._latency.threads):
            return time_calls(run_pass, self._latency)

    def _measure_throughput(self) -> float:
        examples = self._latency.throughput_batch_size
        run_pass = self._make_pass(examples)
        with evaluation_mode(self.model), torch_threads(self._latency.threads):
            return measure_throughput(run_pass, examples)

    def _make_pass(self, examples: int) -> Callable[[], None]:
        """A function that runs one forward pass over `examples` examples and waits for its end."""
        parts = _synthetic_parts(self.model, examples, self._latency.length, self._device)

        def run_pass() -> None:
            for inputs in parts:
                self.model(**inputs)
            if self._device.type == "cuda":
                # CUDA kernels run asynchronously. Without this, the time of their launch would be measured.
                torch.cuda.synchronize(self._device)

        return run_pass


def _synthetic_parts(
    model: PreTrainedModel, examples: int, length: int, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Synthetic examples, in as many parts as the logits need that a language model gives for each of their tokens.

    As in a prediction, at most `LOGITS_AT_ONCE` of them exist at the same time.
    """
    inputs = synthetic_inputs(model, examples, length, device)
    has_vocabulary = model.get_output_embeddings() is not None
    size = max(1, LOGITS_AT_ONCE // (length * model.config.vocab_size)) if has_vocabulary else examples
    return [
        {name: values[start : start + size] for name, values in inputs.items()} for start in range(0, examples, size)
    ]


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Switch off the gradients of all parameters for the block.

    FlopCounterMode hooks into the backward pass of each input of a module that needs a gradient, also in inference
    mode, which has no backward pass. DeBERTa gives its layers a parameter as such an input: its relative positions.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
