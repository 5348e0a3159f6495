"""Claim: a trial takes at most a sixth of the time that TextBrewer takes for it, at equal or better dev accuracy.

TextBrewer (Yang et al. 2020, arXiv:2002.12620) is a toolkit for distilling NLP models. Its `GeneralDistiller` is used
as its documentation shows it: batches in random order, a live teacher, the loss of kdray (temperature, alpha), AdamW,
warm-up and linear decay, one checkpoint at the end. Both start with the same teacher and student, and train as many
epochs on one core. kdray's time is that of the trial on a warm slot: building the student, training, evaluation in
float32, writing the student. TextBrewer's time is that of `train` and of one evaluation in float32. `with_labelling` is
the ratio when the time that the teacher needs to answer all rows, once for all trials of a sweep, is added to kdray's.

`--cached` compares with TextBrewer's `BasicDistiller` with `is_caching_logits`. It keeps the batches of the first epoch
in memory, with the teacher's logits.

    pip install -e '.[peers]'
    python bench/textbrewer_peer.py --data DIR --columns text,label --teacher DIR --epochs 3             (15 minutes)
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, print_result
from material import fine_tune_teacher, parser, sweep
from textbrewer import BasicDistiller, DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, get_linear_schedule_with_warmup

from kdray import Sweep
from kdray.data.rows import Rows
from kdray.data.splits import load_splits
from kdray.data.tokens import tokenise
from kdray.data.transfer_set import TransferSet
from kdray.evaluation.outputs import compute_logits
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import SweepPaths
from kdray.students.transformer import TransformerStudent
from kdray.teacher.transfer import Labelling, obtain_transfer_set
from kdray.training.precision import autocast_dtype
from kdray.training.step import adamw
from kdray.training.trial import Recipe, Trial, TrialInputs

DISTILLATION = Distillation(temperature=4.0, alpha=0.5)
RATE = 2e-4
SEED = 0


@dataclass(frozen=True)
class Figures:
    """The seconds of a training, and the dev accuracy after it."""

    seconds: float
    accuracy: float


def adaptor(batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
    """What TextBrewer compares: logits, and the loss of the labels."""
    return {"logits": (outputs.logits,), "losses": (outputs.loss,)}


def batches_of(rows: Rows, tokenizer: Any, size: int) -> "DataLoader[Any]":
    """The rows as a user of transformers loads them: in random order, padded to the longest of a batch."""
    examples = []
    for number in range(len(rows)):
        batch = rows.batch(np.array([number]))
        examples.append({**{name: ids[0].tolist() for name, ids in batch.inputs.items()}, "labels": int(batch.gold[0])})
    collator = DataCollatorWithPadding(tokenizer)
    generator = torch.Generator().manual_seed(SEED)
    # TextBrewer calls the models with the keys of a dict, and a BatchEncoding is none for it.
    return DataLoader(
        examples,  # type: ignore[arg-type]
        size,
        shuffle=True,
        generator=generator,
        collate_fn=lambda rows: dict(collator(rows)),
    )


def train_with_textbrewer(
    settings: Sweep, teacher: Pretrained, student: PreTrainedModel, rows: dict[str, Rows], cached: bool
) -> Figures:
    """Train the student with TextBrewer, and evaluate it."""
    training, live = settings.training, teacher.model().eval()
    dtype = autocast_dtype(training.precision, live.device, live)
    batches = batches_of(rows["train"], teacher.tokenizer(), training.batch_size)
    steps = training.epochs * len(batches)
    config = DistillationConfig(
        temperature=DISTILLATION.temperature,
        kd_loss_weight=DISTILLATION.alpha * DISTILLATION.temperature**2,  # TextBrewer does not multiply by it
        hard_label_weight=1 - DISTILLATION.alpha,
        is_caching_logits=cached,
    )
    kind = BasicDistiller if cached else GeneralDistiller
    with tempfile.TemporaryDirectory() as folder:
        on_cpu = TrainingConfig(output_dir=folder, device="cpu", ckpt_epoch_frequency=training.epochs)
        distiller = kind(on_cpu, config, live, student.train(), adaptor, adaptor)
        torch.manual_seed(SEED)
        started = time.perf_counter()
        # Without the cache: it would keep the weights of the first step in bf16 until the block ends.
        bf16 = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None, cache_enabled=False)
        with bf16, redirect_stdout(sys.stderr), distiller:
            distiller.train(
                adamw(student, training),
                batches,
                num_epochs=training.epochs,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args={
                    "num_warmup_steps": round(training.warmup * steps),
                    "num_training_steps": steps,
                },
                max_grad_norm=training.clip_norm,
            )
        logits = compute_logits(student, rows["validation"], 4 * training.batch_size, Worker(), None)
        seconds = time.perf_counter() - started
    return Figures(seconds, float((logits.argmax(-1) == rows["validation"].gold).mean()))


def train_with_kdray(recipe: Recipe, inputs: TrialInputs, slots: LocalSlots, folder: Path) -> Figures:
    """Run the trial on a warm slot."""
    folder.mkdir()
    started = time.perf_counter()
    reports = list(slots.run(Trial(recipe, inputs, SEED, folder / "student"), folder.name))
    return Figures(time.perf_counter() - started, float(reports[-1]["accuracy"]))


def compare(settings: Sweep, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train in turns, and return the figures; the first trial of kdray warms the slot and is not counted."""
    task, paths = settings.task, SweepPaths(folder, settings.name)
    teacher = fine_tune_teacher(settings, folder)
    tokens = tokenise(load_splits(settings.data, task), task, teacher.tokenizer(), paths)
    torch.set_num_threads(1)
    with LocalSlots(threads=1) as slots:
        started = time.perf_counter()
        transfer: TransferSet = obtain_transfer_set(
            Labelling(settings.transfer, teacher, tokens), paths, slots, lambda done, shards: None
        )
        labelling = time.perf_counter() - started
        inputs = TrialInputs(task=task, source=teacher, tokens=tokens, transfer=transfer)
        rows = {split: transfer.rows(tokens, split) for split in ("train", "validation")}
        by_depth = {}
        for depth in [int(depth) for depth in options.depths.split(",")]:
            student = TransformerStudent(depth=depth)
            recipe = Recipe(student=student, distillation=DISTILLATION, training=settings.training)
            train_with_kdray(recipe, inputs, slots, folder / f"warm-{depth}")
            kdray, peer = [], []
            for repeat in range(options.repeats):
                kdray.append(train_with_kdray(recipe, inputs, slots, folder / f"student-{depth}-{repeat}"))
                built = student.build(teacher.model(), SEED)
                peer.append(train_with_textbrewer(settings, teacher, built, rows, options.cached))
            own, other = (statistics.median(each.seconds for each in side) for side in (kdray, peer))
            by_depth[depth] = {
                "kdray_s": own,
                "textbrewer_s": other,
                "ratio": other / own,
                "with_labelling": other / (own + labelling),
                "kdray_accuracy": kdray[0].accuracy,
                "textbrewer_accuracy": peer[0].accuracy,
            }
    return {"by_depth": by_depth, "labelling_s": labelling}


def main() -> None:
    command = parser(__doc__, epochs=3)
    command.add_argument("--depths", default="1,2", help="depths of the students")
    command.add_argument("--repeats", type=int, default=1)
    command.add_argument("--cached", action="store_true", help="compare with TextBrewer's cached logits")
    options, on = command.parse_args(), machine()
    settings = sweep(options).with_changes({"training.learning_rate": RATE})
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        figures = compare(settings, options, Path(name))
    print_result(
        "seconds of a training with TextBrewer, against a trial on a warm slot (times as long; lowest depth)",
        figures["by_depth"][int(options.depths.split(",")[0])]["ratio"],
        {
            "goal": 6.0,
            **figures,
            "epochs": options.epochs,
            "cached": options.cached,
            "precision": options.precision,
            "data": options.data or "generated",
        },
        on,
    )


if __name__ == "__main__":
    main()
