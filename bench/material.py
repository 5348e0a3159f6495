"""The sweep that benchmarks measure: with a real teacher and real data if folders are given, else with generated ones.

--data DIR --columns text,label --teacher DIR      such as SST-2 and MiniLM
"""

import argparse
import os
from pathlib import Path
from typing import Any

from ray import tune

from kdray import (
    Confirm,
    Data,
    FreshTransformer,
    GeneratedReviews,
    Search,
    Sweep,
    Teacher,
    TextClassification,
    Tracking,
    Training,
)
from kdray.data.splits import load_splits
from kdray.data.tokens import tokenise
from kdray.models.pretrained import Pretrained
from kdray.slots.local import LocalSlots
from kdray.storage.paths import SweepPaths
from kdray.teacher.teacher import FineTuning, obtain_source, obtain_teacher

SPACE = {
    "student.depth": [1, 2, 3],
    "distillation.temperature": tune.uniform(1.0, 8.0),
    "distillation.alpha": tune.uniform(0.3, 1.0),
    "training.learning_rate": tune.loguniform(5e-5, 4e-4),
}


def parser(about: str, **defaults: Any) -> argparse.ArgumentParser:
    """A command line with the options of `sweep`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or file with labelled rows; without it, rows are generated")
    parser.add_argument("--columns", default="", help="names of the columns of headerless files, such as text,label")
    parser.add_argument("--text", default="text", help="column of the text")
    parser.add_argument("--label", default="label", help="column of the label")
    parser.add_argument(
        "--teacher",
        help="folder of the teacher, which is fine-tuned here; without it, a small one is trained from scratch",
    )
    parser.add_argument("--max-rows", type=int, help="the largest number of rows of each split")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each trial")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="precision of the training"
    )
    parser.set_defaults(**defaults)
    return parser


def sweep(options: argparse.Namespace, search: Search | None = None) -> Sweep:
    """The sweep of these options. `search`: its settings of the search, instead of those of kdray."""
    real = options.teacher is not None
    return Sweep(
        name="bench",
        task=TextClassification(text=options.text, label=options.label, max_length=64),
        data=Data(source=options.data or GeneratedReviews(), columns=options.columns or (), max_rows=options.max_rows),
        teacher=Teacher(
            model=options.teacher or FreshTransformer(),
            training=Training(
                epochs=options.teacher_epochs, learning_rate=5e-5 if real else 1e-3, precision=options.precision
            ),
            above_chance=0.0,  # a benchmark measures time, with a teacher of a few steps too
        ),
        training=Training(epochs=options.epochs, precision=options.precision),
        space=SPACE,
        search=search or Search(trials=options.trials),
        confirm=Confirm(candidates=0, controls=False),  # the benchmarks measure the search
        tracking=Tracking(),
    )


def invented_costs(params: Any) -> dict[str, float]:
    """Costs for trials without work: one millisecond for each layer."""
    return {"latency_ms": float(params["student.depth"]), "latency_p95_ms": 9.0, "parameters": 1e6, "size_mb": 4.0}


def fine_tune_teacher(settings: Sweep, folder: Path) -> Pretrained:
    """The teacher, fine-tuned for both sides before the time is measured."""
    paths = SweepPaths(folder, "teacher")
    splits = load_splits(settings.data, settings.task)
    source = obtain_source(settings.teacher, settings.task, splits, paths, settings.seed)
    tokens = tokenise(splits, settings.task, source.tokenizer(), paths)
    with LocalSlots(threads=os.cpu_count() or 1) as slots:
        start = FineTuning(source, tokens, settings.task, settings.seed)
        return obtain_teacher(settings.teacher, start, paths, slots, lambda report: None)
