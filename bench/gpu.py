"""Claim: on a GPU, small students that are trained as one batch of models take a fifth of the time of one after the
other.

The script measures what a training step of a small BERT needs on the device it finds, in one run of at most
`--minutes`: the share of the peak that a step reaches, where the peak is a large product of bf16 matrices; bf16 against
float32; AdamW in one kernel against one for each weight; batches that are copied from pinned memory beside the
computation; compiled steps and CUDA graphs against eager ones; and several students as one batch of models against one
after the other. The students have random weights, and their batches random tokens: their answers mean nothing.

It needs PyTorch and transformers alone, and of kdray only the file with the stacked forward pass, so that it runs on a
borrowed machine as it is. Each measurement is one line of JSON on stderr as soon as there is one, and the last line, on
stdout, has all of them. `ratio` is the speed-up of the largest batch of models, at the first depth.

    python bench/gpu.py [--depths 1,2,4] [--members 1,2,4,8,16] [--minutes 9]
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

ROWS = 6920
"""Rows of the trial that trials/h are about: SST-2, three epochs, without evaluations."""
EPOCHS = 3
TEMPERATURE, ALPHA, RATE, CLIP = 2.0, 0.5, 1e-4, 1.0

Step = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a student and its batches, and how they are measured."""

    hidden: int
    feed_forward: int
    vocabulary: int
    batch: int
    length: int
    repeats: int
    steps: int
    """Steps of a repeat."""
    peak: int
    """Rows and columns of the matrices whose product gives the peak."""

    def flops(self, depth: int) -> float:
        """The operations of a training step: three times those of the matrix products of a forward pass."""
        tokens = self.batch * self.length
        layer = 4 * self.hidden**2 + 2 * self.hidden * self.feed_forward + 2 * self.length * self.hidden
        return 3 * 2 * tokens * depth * layer


@dataclass(frozen=True)
class Texts:
    """A batch as `StackedModel` reads it."""

    inputs: dict[str, Tensor]
    gold: Tensor
    teacher: Tensor

    def answers(self, logits: Tensor) -> Tensor:
        """One answer for each text."""
        return logits

    def to(self, device: torch.device) -> "Texts":
        """The same batch on the device, copied beside the computation if its memory is pinned."""
        inputs = {name: values.to(device, non_blocking=True) for name, values in self.inputs.items()}
        return Texts(inputs, self.gold.to(device, non_blocking=True), self.teacher.to(device, non_blocking=True))

    def pinned(self) -> "Texts":
        """The same batch in memory from which a GPU copies without the processor."""
        inputs = {name: values.pin_memory() for name, values in self.inputs.items()}
        return Texts(inputs, self.gold.pin_memory(), self.teacher.pin_memory())


def make_batch(sizes: Sizes) -> Texts:
    """A batch of random texts of one length."""
    shape = sizes.batch, sizes.length
    inputs = {"input_ids": torch.randint(1, sizes.vocabulary, shape), "attention_mask": torch.ones(shape).long()}
    return Texts(inputs, torch.randint(0, 2, (sizes.batch,)), torch.randn(sizes.batch, 2))


def make_student(sizes: Sizes, depth: int, device: torch.device) -> nn.Module:
    """A BERT with random weights, with the dropout that BERT has by default."""
    config = transformers.BertConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.feed_forward,
        num_attention_heads=max(1, sizes.hidden // 32),
        num_hidden_layers=depth,
        vocab_size=sizes.vocabulary,
    )
    return transformers.BertForSequenceClassification(config).to(device).train()


def distillation_loss(logits: Tensor, batch: Texts, temperature: Tensor | float, alpha: Tensor | float) -> Tensor:
    """The loss of `kdray.losses.distillation`, for one student."""
    student, teacher = (functional.log_softmax(each / temperature, dim=-1) for each in (logits.float(), batch.teacher))
    soft = temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1)
    hard = functional.cross_entropy(logits.float(), batch.gold, reduction="none")
    return (alpha * soft + (1 - alpha) * hard).mean()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A block that computes in this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def make_step(
    model: nn.Module, batch: Callable[[], Texts], precision: str, fused: bool = True, graph: bool = False
) -> Step:
    """The step of one student."""
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, fused=fused, foreach=False if not fused else None, capturable=graph
    )

    def step() -> None:
        texts = batch()
        with autocast(device, precision):
            logits = model(**texts.inputs).logits
        distillation_loss(logits, texts, TEMPERATURE, ALPHA).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP, foreach=fused)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not graph)

    return step


def make_fused_step(models: list[nn.Module], batch: Texts, precision: str, stacked: Any, graph: bool = False) -> Step:
    """The step of several students as one batch of models, as in `kdray.training.fused_step`."""
    device, count = next(models[0].parameters()).device, len(models)
    shapes = {name: parameter.shape for name, parameter in models[0].named_parameters()}
    numbers = [shape.numel() for shape in shapes.values()]
    rows = [torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) for model in models]
    flat_NxP = torch.stack(rows)
    gradients_NxP = torch.zeros_like(flat_NxP)

    def by_name(tensor_NxP: Tensor) -> dict[str, Tensor]:
        parts = tensor_NxP.split(numbers, dim=1)
        return {n: part.view(count, *shape) for part, (n, shape) in zip(parts, shapes.items(), strict=True)}

    weights = {name: part.detach().requires_grad_() for name, part in by_name(flat_NxP).items()}
    model = stacked.StackedModel(models[0], weights, by_name(gradients_NxP))
    own = [nn.Parameter(row) for row in flat_NxP.unbind()]
    for parameter, gradient in zip(own, gradients_NxP.unbind(), strict=True):
        parameter.grad = gradient
    groups = [{"params": [parameter], "lr": RATE * (1 + number)} for number, parameter in enumerate(own)]
    optimizer = torch.optim.AdamW(groups, fused=True, capturable=graph)
    temperatures_N = torch.linspace(1.0, 4.0, count, device=device)
    alphas_N = torch.linspace(0.2, 0.8, count, device=device)
    losses = torch.vmap(lambda logits, temperature, alpha: distillation_loss(logits, batch, temperature, alpha))

    def step() -> None:
        gradients_NxP.zero_()
        logits_NxBxC = model.outputs(batch, torch.bfloat16 if precision == "bf16" else None)
        model.add_gradients(losses(logits_NxBxC, temperatures_N, alphas_N).sum())
        norms_N = torch.linalg.vector_norm(gradients_NxP, dim=1)
        gradients_NxP.mul_((CLIP / (norms_N + 1e-6)).clamp(max=1)[:, None])
        optimizer.step()

    return step


def captured(step: Step) -> Step:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class Bench:
    """Measures one thing after the other until the time is over."""

    def __init__(self, sizes: Sizes, device: torch.device, minutes: float, stacked: Any) -> None:
        self.sizes, self.device, self.stacked = sizes, device, stacked
        self.found: list[dict[str, Any]] = []
        self.peak = 0.0
        """Operations a second of the largest product of matrices."""
        self._until = time.monotonic() + 60 * minutes
        self._batch = make_batch(sizes)

    def run(self, depths: list[int], members: list[int]) -> None:
        """Measure everything, the most important things first."""
        self.measure_peak()
        for depth in depths:
            self.measure_depth(depth, members)

    def measure_depth(self, depth: int, members: list[int]) -> None:
        """Measure the steps of students of this depth."""
        batch, has_graphs = self._batch.to(self.device), self.device.type == "cuda"

        def alone() -> nn.Module:
            return make_student(self.sizes, depth, self.device)

        def fused(count: int, graph: bool) -> Step:
            step = make_fused_step([alone() for _ in range(count)], batch, "bf16", self.stacked, graph)
            return captured(step) if graph else step

        self.measure("alone", depth, lambda: make_step(alone(), lambda: batch, "bf16"))
        for count in members:
            self.measure("fused", depth, partial(fused, count, False), count)
        self.measure("fp32", depth, lambda: make_step(alone(), lambda: batch, "fp32"))
        self.measure("AdamW by weights", depth, lambda: make_step(alone(), lambda: batch, "bf16", fused=False))
        if not has_graphs:
            return
        pageable, pinned = self._batch, self._batch.pinned()
        self.measure("copied", depth, lambda: make_step(alone(), lambda: pageable.to(self.device), "bf16"))
        self.measure("copied from pinned", depth, lambda: make_step(alone(), lambda: pinned.to(self.device), "bf16"))
        self.measure("compiled", depth, lambda: make_step(compiled(alone()), lambda: batch, "bf16"))
        # At the end: a capture that fails may leave the device in a state in which nothing else works.
        self.measure("CUDA graph", depth, lambda: captured(make_step(alone(), lambda: batch, "bf16", graph=True)))
        for count in members:
            self.measure("fused, CUDA graph", depth, partial(fused, count, True), count)

    def measure_peak(self) -> None:
        """Measure the product of two large matrices in bf16."""
        size = self.sizes.peak
        left, right = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        seconds = self.seconds(lambda: left @ right)
        self.peak = 2 * size**3 / seconds
        self.note({"what": "peak", "size": size, "tflops": self.peak / 1e12})

    def measure(self, what: str, depth: int, make: Callable[[], Step], members: int = 1) -> None:
        """Measure a step. One that does not work here is noted with its error."""
        line: dict[str, Any] = {"what": what, "depth": depth, "members": members}
        if time.monotonic() > self._until:
            self.note(line | {"skipped": "the time is over"})
            return
        try:
            started = time.monotonic()
            step = make()
            step()
            self.wait()
            first = time.monotonic() - started
            seconds = self.seconds(step)
        except Exception as error:  # the other measurements are worth having
            self.note(line | {"error": f"{type(error).__name__}: {error}"[:300]})
            return
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        steps_of_trial = EPOCHS * -(-ROWS // self.sizes.batch)
        alone = next((one["ms"] for one in self.found if (one["what"], one.get("depth")) == ("alone", depth)), None)
        self.note(
            line
            | {
                "ms": 1000 * seconds,
                "share_of_peak": members * self.sizes.flops(depth) / seconds / self.peak,
                "trials_per_hour": 3600 * members / (seconds * steps_of_trial),
                "speedup": members * (alone or 1000 * seconds) / (1000 * seconds),
                "first_s": first,
            }
        )

    def seconds(self, step: Step) -> float:
        """The seconds of a step: the median of the repeats, of which the first one is not counted."""
        # On one thread, the processor's time says the same as the clock, and other programs disturb it less.
        is_one_thread = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if is_one_thread else time.perf_counter
        times = []
        for _ in range(self.sizes.repeats + 1):
            started = clock()
            for _ in range(self.sizes.steps):
                step()
            self.wait()
            times.append((clock() - started) / self.sizes.steps)
        return statistics.median(times[1:])

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def note(self, line: dict[str, Any]) -> None:
        """Keep a line, and print it."""
        self.found.append({name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in line.items()})
        print(json.dumps(self.found[-1]), file=sys.stderr, flush=True)

    def ratio(self, depth: int) -> float:
        """The speed-up of the largest batch of models at this depth, with a CUDA graph if that is faster."""
        fused = [one for one in self.found if one["what"].startswith("fused") and one["depth"] == depth and "ms" in one]
        largest = max((one["members"] for one in fused), default=0)
        return max((one["speedup"] for one in fused if one["members"] == largest), default=0.0)


def compiled(model: nn.Module) -> nn.Module:
    """The model, compiled with CUDA graphs of its own."""
    model.compile(mode="reduce-overhead")
    return model


def load_stacked() -> ModuleType:
    """kdray's stacked forward pass. Its package would import what a borrowed machine does not have."""
    file = Path(__file__).parents[1] / "kdray" / "training" / "fused_model.py"
    spec = importlib.util.spec_from_file_location("fused_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures are from."""
    return {
        "processor": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--depths", default="1,2,4", help="layers of the students")
    command.add_argument("--members", default="1,2,4,8,16", help="students of a batch of models")
    command.add_argument("--batch", type=int, default=32, help="texts in a step")
    command.add_argument("--length", type=int, default=24, help="tokens of a text")
    command.add_argument("--vocabulary", type=int, default=12000, help="rows of the table: the tokens that texts have")
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--steps", type=int, default=20, help="steps of a repeat")
    command.add_argument("--minutes", type=float, default=9.0, help="no measurement begins after so many")
    command.add_argument("--threads", type=int, default=1, help="torch threads")
    command.add_argument("--tiny", action="store_true", help="a student of width 32: a test of this script")
    options = command.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = machine(device)
    depths, members = ([int(each) for each in text.split(",")] for text in (options.depths, options.members))
    sizes = Sizes(
        hidden=384,
        feed_forward=1536,
        vocabulary=options.vocabulary,
        batch=options.batch,
        length=options.length,
        repeats=options.repeats,
        steps=options.steps,
        peak=8192 if device.type == "cuda" else 2048,
    )
    if options.tiny:
        depths, members = [1], [1, 2]
        sizes = Sizes(32, 64, vocabulary=100, batch=4, length=8, repeats=1, steps=2, peak=64)
    bench = Bench(sizes, device, options.minutes, load_stacked())
    bench.run(depths, members)
    figures = {"goal": 5.0, "sizes": vars(sizes), "measurements": bench.found}
    claim = "students trained an hour as one batch of models, against one after the other (times as many)"
    print(json.dumps({"claim": claim, "ratio": bench.ratio(depths[0]), **figures, "machine": on}), flush=True)


if __name__ == "__main__":
    main()
