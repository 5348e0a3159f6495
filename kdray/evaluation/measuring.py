"""What a model costs: size, multiply-adds, latency and throughput, on the hardware at hand.

A figure means nothing without how it was taken: `conditions` says it, to stand beside every one of them. Where costs
are kept is `costs`'s business.
"""

import copy
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from kdray.errors import SpecError
from kdray.evaluation.outputs import evaluation_mode
from kdray.models.pretrained import count_positions
from kdray.settings import Settings
from kdray.slots.job import torch_threads

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64"}

CPU_METRICS = {
    "latency_ms": "cpu_latency_ms",
    "latency_p95_ms": "cpu_latency_p95_ms",
    "throughput_per_s": "cpu_throughput_per_s",
}
"""What a clock says on the device that a model is trained on, and its name on the CPU beside it."""
COST_METRICS = (*CPU_METRICS, "multiply_adds", "parameters", "size_mb", *CPU_METRICS.values())
"""What an architecture costs. Without a GPU the CPU's figures are the device's own."""
SPEEDUP_METRICS = {"speedup": "latency_ms", "cpu_speedup": "cpu_latency_ms"}
"""Beside a teacher: what its latency over the student's is called."""
ARCHITECTURE_METRICS = (*COST_METRICS, *SPEEDUP_METRICS)
"""All that is known of an architecture before it is trained."""

THROUGHPUT_MS, THROUGHPUT_CALLS = 1000, 30
"""How long throughput is measured, and in how many passes at most."""


class Latency(Settings):
    """How latency is measured: the time of one forward pass in float32; and throughput, in passes of many examples."""

    batch_size: int = Field(1, ge=1)
    length: int = Field(64, ge=1)
    """Tokens in each example."""
    threads: int = Field(1, ge=1)
    """Processor threads that the model may use."""
    warmup: int = Field(5, ge=0)
    """Passes before the measured ones."""
    repeats: int = Field(30, ge=1)
    throughput_batch_size: int = Field(32, ge=1)
    """Examples in a pass when throughput is measured."""


@dataclass(frozen=True)
class LatencyResult:
    """Percentiles over the measured passes, in milliseconds."""

    p50: float
    p95: float


def describe_conditions(latency: Latency, hardware: str, precision: str = "float32", cpu: str = "") -> str:
    """How the figures were taken, in words, to stand beside them; `cpu`, where the hardware is another."""
    tokens = f"{latency.length} {_of('token', latency.length)} each"
    threads = f"{latency.threads} {_of('thread', latency.threads)}"
    return (
        f"latency of {latency.batch_size} {_of('example', latency.batch_size)} a pass, throughput of "
        f"{latency.throughput_batch_size}; {tokens}, {threads}, {precision}, {hardware}"
        f"{f' (CPU: {cpu})' if cpu not in ('', hardware) else ''}"
    )


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; those used in two places count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def safetensors_size_mb(model: nn.Module) -> float:
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


def count_multiply_adds(model: PreTrainedModel, length: int) -> float:
    """The multiply-adds of a forward pass over one example of so many tokens.

    Counted are matrix products (linear layers, attention) and convolutions, as torch's FlopCounterMode sees them;
    additions, activations, normalisation and look-ups in the embeddings are not.
    """
    inputs = synthetic_inputs(model, 1, length, model.device)
    # Fused attention for the CPU is not in the counter's list: it must be seen as the matrix products that it is.
    with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() / 2


def measure_latency(model: PreTrainedModel, latency: Latency, device: torch.device) -> LatencyResult:
    """The time of a forward pass on synthetic full-length examples, on this device; the model is not changed.

    Raises SpecError when the model cannot read examples of that length.
    """
    return _Clock(model, latency, device).latency()


def measure_model(model: PreTrainedModel, latency: Latency, device: torch.device) -> dict[str, float]:
    """What an architecture costs: `COSTS`, in milliseconds, examples a second, multiply-adds an example, and MB."""
    clock = _Clock(model, latency, device)
    own = clock.figures()
    on_cpu = own if device.type == "cpu" else _Clock(model, latency, torch.device("cpu")).figures()
    return {
        **own,
        "multiply_adds": count_multiply_adds(clock.model, latency.length),
        "parameters": count_parameters(model),
        "size_mb": safetensors_size_mb(model),
        **{name: on_cpu[of] for of, name in CPU_METRICS.items()},
    }


def time_calls(once: Callable[[], object], latency: Latency) -> LatencyResult:
    """How long one call takes: percentiles over `repeats` calls, after `warmup` calls that do not count."""
    for _ in range(latency.warmup):
        once()
    p50, p95 = np.percentile([_milliseconds(once) for _ in range(latency.repeats)], [50, 95])
    return LatencyResult(float(p50), float(p95))


def measure_throughput(once: Callable[[], object], examples: int) -> float:
    """How many examples a second go through, when each call takes so many: by the median of a second's calls."""
    once()
    times: list[float] = []
    while not times or (sum(times) < THROUGHPUT_MS and len(times) < THROUGHPUT_CALLS):
        times.append(_milliseconds(once))
    return 1000 * examples / float(np.median(times))


def hardware_name(device: torch.device | None = None) -> str:
    """The name of what this device computes on: the GPU's, or the processor's. None: the CPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synthetic_inputs(model: PreTrainedModel, examples: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Full examples of tokens that are not padding, the same each time."""
    shape = (examples, length)
    ids = torch.randint(model.config.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))
    padding = model.config.pad_token_id
    ids += (ids >= padding).long() if padding is not None else 0
    return {"input_ids": ids.to(device), "attention_mask": torch.ones(shape, dtype=torch.long, device=device)}


class _Clock:
    """A model in float32 on a device, to be timed there as the settings say."""

    def __init__(self, model: PreTrainedModel, latency: Latency, device: torch.device) -> None:
        if latency.length > (most := count_positions(model, latency.length)):
            raise SpecError(
                f"latency.length: got {latency.length}, but this {model.config.model_type} model reads at most "
                f"{most} tokens; give a length up to that."
            )
        if model.device != device or model.dtype != torch.float32:
            model = copy.deepcopy(model).to(device, torch.float32)
        self.model, self.settings, self._device = model, latency, device

    def figures(self) -> dict[str, float]:
        """All that it says, by the names of the device's own."""
        passes = self.latency()
        return {"latency_ms": passes.p50, "latency_p95_ms": passes.p95, "throughput_per_s": self.throughput()}

    def latency(self) -> LatencyResult:
        """Of a pass."""
        once = self._passing(self.settings.batch_size)
        with evaluation_mode(self.model), torch_threads(self.settings.threads):
            return time_calls(once, self.settings)

    def throughput(self) -> float:
        """In examples a second."""
        examples = self.settings.throughput_batch_size
        once = self._passing(examples)
        with evaluation_mode(self.model), torch_threads(self.settings.threads):
            return measure_throughput(once, examples)

    def _passing(self, examples: int) -> Callable[[], None]:
        inputs = synthetic_inputs(self.model, examples, self.settings.length, self._device)

        def once() -> None:
            self.model(**inputs)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # else the clock would only see that the work was handed over

        return once


def _milliseconds(once: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    once()
    return (time.perf_counter_ns() - start) / 1e6


def _of(what: str, count: int) -> str:
    return what if count == 1 else f"{what}s"
