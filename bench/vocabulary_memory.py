"""Claim: the memory of a training step of a language model does not grow with vocabulary times tokens.

One step of a small causal model on one row, with the loss of distillation on the `TopK` rows of a teacher: in parts,
as kdray computes it, and naive, with the logits of all tokens at once. Each is a process of its own: the peak of its
resident memory during the step, minus its memory before the step, which has the parameters and their gradients. Large
blocks go back to the system at once, so that the peak is what the step holds. So do twice the vocabulary, twice the
tokens, and both. `times_naive` is the memory of the step in parts / that of the naive step, `times_slower` the same of
the seconds; `grows` is the memory in parts with both doubled / that without. The ratio is `times_naive` at the first
sizes.

    python bench/vocabulary_memory.py [--vocabulary 50000] [--tokens 2048]                       (about 3 minutes)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, print_result
from transformers import GPT2Config, GPT2LMHeadModel

from kdray.data.rows import Batch
from kdray.losses.distillation import Distillation, Targets
from kdray.losses.objective import Objective
from kdray.losses.top_k import TopK
from kdray.losses.vocabulary import VOCABULARY
from kdray.models.vocabulary_head import Answers, answer
from kdray.training.parts import loss_in_parts

WIDTH, K, BLOCK = 64, 16, 128


def batch_of(vocabulary: int, tokens: int) -> tuple[Batch, torch.Tensor]:
    """Rows of `BLOCK` tokens with an answer at each, and the kept outputs of a teacher."""
    block = min(BLOCK, tokens)
    ids = torch.randint(vocabulary, (tokens // block, block))
    gold, places = ids.flatten(), torch.arange(ids.numel())
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # A few at a time: the peak of this is not that of the step.
    teacher = [TopK.of_logits(torch.randn(len(some), vocabulary), some, K).rows() for some in gold.split(16)]
    return Batch(inputs, gold, np.arange(len(ids)), places, top_k=K), torch.cat(teacher)


def step(model: GPT2LMHeadModel, batch: Batch, teacher: torch.Tensor, in_parts: bool) -> None:
    """The forward and the backward pass of one step."""
    answers = answer(model, batch) if in_parts else Answers(batch.answers(model(**batch.inputs).logits))
    loss = loss_in_parts(answers, Targets(batch.gold, teacher), Objective(Distillation(), VOCABULARY).loss_of_outputs)
    (loss.total / len(batch.gold)).backward()


def measure(vocabulary: int, tokens: int, in_parts: bool, repeats: int) -> dict[str, float]:
    """The memory of a step in this process, in MB, and its seconds."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=BLOCK, n_inner=2 * WIDTH)
    ).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    small, kept = batch_of(vocabulary, 8)
    step(model, small, kept, in_parts)  # loads libraries, which are no part of the step
    batch, kept = batch_of(vocabulary, tokens)
    before, times = start_peak(), []
    for _ in range(repeats):
        started = time.perf_counter()
        step(model, batch, kept, in_parts)
        times.append(time.perf_counter() - started)
    return {"mb": memory_mb("VmHWM") - before, "s": statistics.median(times)}


def start_peak() -> float:
    """Forget the largest memory that this process has had, and return what it has now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(name: str) -> float:
    """A figure of this process in MB: VmRSS, its resident memory, or VmHWM, the largest that it has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def in_process(vocabulary: int, tokens: int, in_parts: bool, options: argparse.Namespace) -> dict[str, float]:
    """The same in a process of its own."""
    sizes = [f"--vocabulary={vocabulary}", f"--tokens={tokens}", f"--repeats={options.repeats}"]
    command = [sys.executable, __file__, *sizes, f"--measure={'parts' if in_parts else 'naive'}"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The figures at all sizes; the naive step is left out where both are doubled."""
    found = {}
    for words in (1, 2):
        for times in (1, 2):
            vocabulary, tokens = words * options.vocabulary, times * options.tokens
            ways = {"parts": in_process(vocabulary, tokens, True, options)}
            if words * times < 4:
                ways["naive"] = in_process(vocabulary, tokens, False, options)
            found[f"{vocabulary} x {tokens}"] = ways
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", choices=["parts", "naive"], help="measure one way in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure(options.vocabulary, options.tokens, options.measure == "parts", options.repeats)))
        return
    on, found = machine(), compare(options)
    first, *_, last = found.values()
    print_result(
        "memory of a step of a language model in parts, against one with all logits (share)",
        first["parts"]["mb"] / max(1e-9, first["naive"]["mb"]),
        {
            "times_slower": first["parts"]["s"] / first["naive"]["s"],
            "grows": last["parts"]["mb"] / max(1e-9, first["parts"]["mb"]),
            "logits_mb": options.vocabulary * options.tokens * 4 / 1e6,
            "sizes": found,
        },
        on,
    )


if __name__ == "__main__":
    main()
