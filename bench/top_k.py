"""What the k most probable tokens and the rest carry of what a teacher says about a whole vocabulary.

Two small causal models with a vocabulary of words are trained on a text: a teacher of two layers, and a student of one
layer with a quarter of the steps. On the last tenth of the text both give all logits. `captured` is the probability of
the teacher's k most probable tokens together, `kl_share` is the divergence of their k + 1 classes / that of all tokens,
at temperatures 1, 2 and 4 (at 3 the rest is interpolated), `bytes` are those that a token takes in a transfer set,
against `dense_bytes` for all logits in float32. The ratio is `kl_share` at k = 16 and temperature 2. Without `--text`
the text is generated, with words that follow each other by chance; its figures say little about a language.

    python bench/top_k.py [--text FILE]                                                          (about 3 minutes)
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine, print_result
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from kdray.losses.comparison import Comparison
from kdray.losses.distillation import Distillation
from kdray.losses.softmax import SOFTMAX
from kdray.losses.top_k import TopK, numbers_kept
from kdray.losses.vocabulary import VOCABULARY
from kdray.models.fresh import word_tokenizer

KEPT = (4, 8, 16, 32, 64, 128)
TEMPERATURES = (1.0, 2.0, 3.0, 4.0)
BLOCK, WIDTH, ROWS = 64, 96, 16


def generated(words: int) -> list[str]:
    """Lines of words with the frequencies of a language (Zipf's law), half of which follow from the word before."""
    draw, weights = random.Random(0), [1 / (number + 2) for number in range(words)]
    lines = []
    for _ in range(2000):
        line = draw.choices(range(words), weights, k=20)
        for place in range(1, len(line)):
            if draw.random() < 0.5:
                line[place] = (7 * line[place - 1] + 1) % words
        lines.append(" ".join(f"w{number}" for number in line))
    return lines


def blocks_of(lines: Sequence[str], vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """The tokens of the text in blocks, to learn and to measure, and the size of the vocabulary."""
    tokenizer = word_tokenizer(lines, vocabulary, BLOCK, is_causal=True)
    ids = [number for each in tokenizer(list(lines), verbose=False)["input_ids"] for number in each]
    blocks = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)
    held_back = max(1, len(blocks) // 10)
    return blocks[:-held_back], blocks[-held_back:], len(tokenizer)


def trained(blocks: Tensor, vocabulary: int, layers: int, steps: int) -> GPT2LMHeadModel:
    """A causal model that has learnt these blocks for so many steps."""
    torch.manual_seed(layers)
    config = GPT2Config(vocab_size=vocabulary, n_embd=WIDTH, n_layer=layers, n_head=4, n_positions=BLOCK)
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = blocks[torch.randint(len(blocks), (ROWS,))]
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def soft_loss(student_AxV: Tensor, teacher: Tensor, temperature: float, dense: bool) -> Tensor:
    """The divergence of each answer (A), without the factor T²."""
    distribution, term = SOFTMAX if dense else VOCABULARY, Distillation().soft_term
    return distribution.soft_loss(Comparison(student_AxV, teacher, temperature), term) / temperature**2


def measure(teacher: GPT2LMHeadModel, student: GPT2LMHeadModel, blocks: Tensor, vocabulary: int) -> dict[str, Any]:
    """The means over all answers of these blocks."""
    sums: dict[Any, float] = dict.fromkeys(("answers", "loss"), 0.0)
    with torch.inference_mode():
        for rows in blocks.split(ROWS):
            teacher_AxV, student_AxV = (
                model(input_ids=rows).logits[:, :-1].flatten(0, 1) for model in (teacher, student)
            )
            gold = rows[:, 1:].flatten()
            found: dict[Any, float] = {
                "answers": float(len(gold)),
                "loss": float(SOFTMAX.hard_loss(teacher_AxV, gold).sum()),
            }
            for temperature in TEMPERATURES:
                found["dense", temperature] = soft_loss(student_AxV, teacher_AxV, temperature, dense=True).sum().item()
            for k in (k for k in KEPT if k < vocabulary):
                kept = TopK.of_logits(teacher_AxV, gold, k)
                found["captured", k] = kept.captured.sum().item()
                for temperature in TEMPERATURES:
                    loss = soft_loss(student_AxV, kept.rows(), temperature, dense=False)
                    found[k, temperature] = loss.sum().item()
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
    return {
        "loss_nats": sums["loss"] / sums["answers"],
        "dense_kl": {temperature: sums["dense", temperature] / sums["answers"] for temperature in TEMPERATURES},
        "by_k": {
            k: {
                "captured": sums["captured", k] / sums["answers"],
                "kl_share": {at: sums[k, at] / sums["dense", at] for at in TEMPERATURES},
                "bytes": 4 * numbers_kept(k),
            }
            for k in KEPT
            if k < vocabulary
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file of text; without it the text is generated")
    parser.add_argument("--vocabulary", type=int, default=8000, help="the most words")
    parser.add_argument("--steps", type=int, default=400, help="steps of the teacher's training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    on = machine()
    lines = generated(1000) if options.text is None else options.text.read_text(encoding="utf-8").splitlines()
    learnt, measured, vocabulary = blocks_of([line for line in lines if line.strip()], options.vocabulary)
    teacher = trained(learnt, vocabulary, 2, options.steps)
    student = trained(learnt, vocabulary, 1, max(1, options.steps // 4))
    found = measure(teacher, student, measured, vocabulary)
    print_result(
        "divergence of the 16 most probable tokens and the rest, against that of all tokens (share, at temperature 2)",
        found["by_k"][16]["kl_share"][2.0],
        {
            "vocabulary": vocabulary,
            "dense_bytes": 4 * vocabulary,
            "tokens": measured.numel(),
            "generated": options.text is None,
            **found,
        },
        on,
    )


if __name__ == "__main__":
    main()
