"""Claim: with stored states, a step with a term on hidden states takes at most 1.2 times as long as one without.

Each inner term is trained with weight 1 beside the loss on logits, which is also trained alone; students have
`--depth` layers of the teacher. Hidden states come from files and from the live teacher in turn, attention from the
live teacher alone. All trainings are those of a trial: `open_objective` and fit(), without Ray and without evaluation.
They run in turns; each repeat changes their order, and the ratios are those of one repeat. `by_term` has the medians
over the repeats: the seconds of a step, and times the seconds of a step with logits alone. `stored_mb` is the size of
the files of all layers that the terms read, `mb_per_layer` that of one layer. The ratio is that of the slowest term
with stored states.

    python bench/inner_ratio.py [--data DIR --columns text,label --teacher DIR]                 (about 1 minute)
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine, print_result
from material import parser, sweep
from transformers import PreTrainedModel

from kdray import FreshTransformer
from kdray.data.rows import Rows
from kdray.data.splits import load_splits
from kdray.data.tokens import tokenise
from kdray.losses.distillation import Distillation
from kdray.losses.inner_term import AttentionTerm
from kdray.losses.inner_terms import INNER_TERMS
from kdray.losses.layer_map import layer_pairs
from kdray.losses.softmax import SOFTMAX
from kdray.slots.job import Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.students.transformer import TransformerStudent
from kdray.teacher.state_files import obtain_states
from kdray.teacher.teacher import obtain_source
from kdray.teacher.transfer import Labelling, obtain_transfer_set
from kdray.training.fit import TrainingPlan, fit
from kdray.training.inside import open_objective
from kdray.training.settings import Training
from kdray.training.signal import LiveSignal, Signal
from kdray.training.stored_signal import StoredSignal

LOGITS = Distillation(temperature=3.0, alpha=0.7)
TEACHER = FreshTransformer(layers=6, width=256, heads=4, feed_forward=1024)
SEED = 0


@dataclass(frozen=True)
class Material:
    """What is trained, and where the teacher's states come from."""

    source: PreTrainedModel
    rows: Rows
    signals: Mapping[str, Signal]
    """"stored" and "live"."""
    bytes: int
    """The size of the files."""
    layers: int
    """The number of layers that are stored."""


def material(options: argparse.Namespace, folder: Path, slots: LocalSlots) -> Material:
    """The teacher, whose quality has no effect on the time, and its logits and states."""
    settings, paths = sweep(options), StoragePaths(folder)
    teacher = settings.teacher if options.teacher else settings.teacher.model_copy(update={"model": TEACHER})
    splits = load_splits(settings.data, settings.task)
    source = obtain_source(teacher, settings.task, splits, paths, SEED)
    tokens = tokenise(splits, settings.task, source.tokenizer(), paths)
    labelling = Labelling(settings.transfer, source, tokens)
    transfer = obtain_transfer_set(labelling, paths, slots, lambda done, shards: None)
    layers = sorted({0, *(pair[1] for pair in layer_pairs(LOGITS.layer_map, options.depth, source.layers))})
    states = obtain_states(labelling, layers, paths, slots, lambda done, shards: None, print)
    files = [file for each in states.folders.values() for file in each.glob("*.safetensors")]
    return Material(
        source=source.model().to(slots.worker.device),
        rows=transfer.rows(tokens, "train"),
        signals={
            "stored": StoredSignal(states, source.layers),
            "live": LiveSignal(source, settings.transfer.precision),
        },
        bytes=sum(file.stat().st_size for file in files),
        layers=len(layers),
    )


def variants(of: Material) -> dict[tuple[str, str], tuple[Distillation, Signal | None]]:
    """Name of a term and of a signal -> the loss and the signal; ("logits", "alone") is the loss without a term."""
    found: dict[tuple[str, str], tuple[Distillation, Signal | None]] = {("logits", "alone"): (LOGITS, None)}
    for name, kind in INNER_TERMS.items():
        for signal in ("live",) if issubclass(kind, AttentionTerm) else ("stored", "live"):
            found[name, signal] = (LOGITS.model_copy(update={name: 1.0}), of.signals[signal])
    return found


def seconds_of_a_step(
    of: Material, depth: int, training: Training, loss: tuple[Distillation, Signal | None], worker: Worker
) -> float:
    """Train a new student for an epoch; the seconds of a step."""
    student = TransformerStudent(depth=depth)
    model = student.build(of.source, SEED)
    with open_objective(loss[0], SOFTMAX, (model, student.inner_layers(model)), loss[1], SEED, worker) as opened:
        plan = TrainingPlan(
            rows=of.rows,
            training=training,
            objective=opened[0],
            inside=opened[1],
            evaluate=lambda model, last: {},
            seed=SEED,
        )
        started = seconds(worker.device)
        (report,) = fit(model, plan, worker)
        return (seconds(worker.device) - started) / float(report["step"])


def seconds(device: torch.device) -> float:
    """The clock's seconds, after the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compare(of: Material, depth: int, training: Training, repeats: int, worker: Worker) -> dict[str, dict[str, float]]:
    """Term -> the medians over the repeats. The first run of each variant is not counted."""
    losses = variants(of)
    times: dict[tuple[str, str], list[float]] = {name: [] for name in losses}
    for repeat in range(repeats + 1):
        for name in list(losses) if repeat % 2 else reversed(losses):
            times[name].append(seconds_of_a_step(of, depth, training, losses[name], worker))
    alone = times["logits", "alone"][1:]
    by_term: dict[str, dict[str, float]] = {}
    for (term, signal), found in times.items():
        ratios = [each / base for each, base in zip(found[1:], alone, strict=True)]
        of_term = by_term.setdefault(term, {})
        of_term[f"{signal}_s"] = statistics.median(found[1:])
        of_term[f"{signal}_ratio"] = statistics.median(ratios)
    return by_term


def main() -> None:
    command = parser(__doc__, max_rows=320)
    command.add_argument("--depth", type=int, default=2, help="depth of the students")
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--threads", type=int, default=1, help="torch threads")
    options = command.parse_args()
    torch.set_num_threads(options.threads)
    on = machine()
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name, LocalSlots(options.threads) as slots:
        of = material(options, Path(name), slots)
        training = Training(epochs=1, precision=options.precision)
        by_term = compare(of, options.depth, training, options.repeats, Worker(device=slots.worker.device))
    print_result(
        "seconds of a training step with an inner term on stored states, against logits alone (times as long; worst)",
        max(figures["stored_ratio"] for figures in by_term.values() if "stored_ratio" in figures),
        {
            "goal": 1.2,
            "by_term": by_term,
            "stored_mb": of.bytes / 1e6,
            "mb_per_layer": of.bytes / of.layers / 1e6,
            "teacher_layers": of.source.config.num_hidden_layers,
            "hidden_size": of.source.config.hidden_size,
            "depth": options.depth,
            "repeats": options.repeats,
            "mean_tokens": float(of.rows.lengths.mean()),
        },
        on,
    )


if __name__ == "__main__":
    main()
