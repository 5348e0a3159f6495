"""Claim: at least six times the trials per hour of transformers' own search, at equal or better dev accuracy.

The peer is the usual script: transformers' Trainer with a distillation loss in `compute_loss` and a live teacher,
searched with `hyperparameter_search(backend="ray")`. Both get the same fine-tuned teacher (its training is not
counted), data, initial weights of students, epochs, batch size, optimiser, schedule and precision. Both run as many
trials at the same time as there are cores, each on one core. kdray draws the settings at random, without early
stopping; the peer gets the same settings.

The time of kdray is that of its whole sweep: Ray, slots, tokens, the transfer set, the costs of each architecture,
trials, MLflow, choice, export, report; `kdray_stages_s` has the seconds of each stage. The time of the peer is that of
Ray and its search, without the tokenising.

    python bench/transformers_peer.py --data DIR --columns text,label --teacher DIR --trials 6 --epochs 1   (15 minutes)
    python bench/transformers_peer.py --trials 6                generated data                               (5 minutes)
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import ray
import torch
from machine import machine, print_result
from material import SPACE, fine_tune_teacher, parser, sweep
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from torch.nn import functional
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments

from kdray import Search, Sweep
from kdray.data.splits import Splits, load_splits
from kdray.models.pretrained import Pretrained
from kdray.report.figures import Figures
from kdray.run import RunOptions, run
from kdray.stages.reading import read_figures
from kdray.storage.paths import SweepPaths
from kdray.students.transformer import TransformerStudent
from kdray.training.precision import autocast_dtype

DEPTH, TEMPERATURE, ALPHA, RATE = (
    "student.depth",
    "distillation.temperature",
    "distillation.alpha",
    "training.learning_rate",
)


# ---- the peer ----


class DistillationTrainer(Trainer):
    """The usual Trainer for distillation: `compute_loss` also runs the teacher."""

    teacher: PreTrainedModel

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        if not model.training:
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        self.teacher.to(model.device)
        with torch.no_grad():
            teacher_logits = self.teacher(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        temperature, alpha = self._trial[TEMPERATURE], self._trial[ALPHA]
        soft = functional.kl_div(
            functional.log_softmax(outputs.logits / temperature, dim=-1),
            functional.softmax(teacher_logits / temperature, dim=-1),
            reduction="batchmean",
        )
        loss = alpha * temperature**2 * soft + (1 - alpha) * outputs.loss
        return (loss, outputs) if return_outputs else loss


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids))}


def student_of(teacher: Pretrained, seed: int, trial: dict[str, Any] | None) -> PreTrainedModel:
    """The student that kdray builds, with which the Trainer starts. Without a trial (its first call): any student."""
    return TransformerStudent(depth=trial[DEPTH] if trial else 1).build(teacher.model(), seed)


@dataclass(frozen=True)
class Peer:
    """The inputs of the peer, and its run."""

    settings: Sweep
    teacher: Pretrained
    splits: Splits
    folder: Path
    by_length: bool

    def rows(self, split: str) -> datasets.Dataset:
        """Token ids and labels, in the form that the Trainer reads."""
        columns, task = self.splits.columns(split), self.settings.task
        encoded = task.encode(self.teacher.tokenizer(), {"text": list(columns["text"])})
        return datasets.Dataset.from_dict({**encoded.inputs, "labels": list(columns["label"])})

    def arguments(self) -> TrainingArguments:
        training = self.settings.training
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = autocast_dtype(training.precision, device, self.teacher.model())
        return TrainingArguments(
            output_dir=str(self.folder / "trainer"),
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch_size,
            per_device_eval_batch_size=4 * training.batch_size,
            warmup_steps=training.warmup,  # below 1 it is a share
            weight_decay=training.weight_decay,
            max_grad_norm=training.clip_norm,
            optim="adamw_torch_fused",
            bf16=dtype is torch.bfloat16,
            use_cpu=device.type == "cpu",
            train_sampling_strategy="group_by_length" if self.by_length else "random",
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=self.settings.seed,
        )

    def trainer(self) -> DistillationTrainer:
        teacher, seed = self.teacher, self.settings.seed
        trainer = DistillationTrainer(
            args=self.arguments(),
            model_init=lambda trial=None: student_of(teacher, seed, trial),
            train_dataset=self.rows("train"),
            eval_dataset=self.rows("validation"),
            data_collator=DataCollatorWithPadding(teacher.tokenizer(), pad_to_multiple_of=8),
            compute_metrics=accuracy,
        )
        trainer.teacher = teacher.model().requires_grad_(False)
        return trainer

    def search(self, trials: Sequence[dict[str, Any]]) -> "SearchResult":
        """Run these trials, each on one core and its share of the GPUs."""
        trainer = self.trainer()
        started = time.perf_counter()
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        cores, gpus = ray.cluster_resources()["CPU"], ray.cluster_resources().get("GPU", 0)
        best = trainer.hyperparameter_search(
            backend="ray",
            direction="maximize",
            compute_objective=lambda metrics: metrics["eval_accuracy"],
            hp_space=lambda trial: {
                **{name: tune.uniform(0, 1) for name in SPACE},
                "learning_rate": tune.uniform(0, 1),
            },
            n_trials=len(trials),
            search_alg=BasicVariantGenerator(points_to_evaluate=[{**t, "learning_rate": t[RATE]} for t in trials]),
            resources_per_trial={"cpu": 1, "gpu": gpus / cores},
            storage_path=str(self.folder / "tune"),
            reuse_actors=True,
            progress_reporter=None,
            verbose=0,
        )
        seconds = time.perf_counter() - started
        analysis = best.run_summary
        accuracies = [trial.last_result["eval_accuracy"] for trial in analysis.trials]
        assert [trial.config[RATE] for trial in analysis.trials] == [trial[RATE] for trial in trials]
        ray.shutdown()
        return SearchResult(seconds, accuracies)


# ---- the comparison ----


@dataclass(frozen=True)
class SearchResult:
    """The seconds of a search, and the last dev accuracy of each trial."""

    seconds: float
    accuracies: list[float]

    def figures(self, who: str) -> dict[str, Any]:
        return {
            f"{who}_s": self.seconds,
            f"{who}_trials_per_hour": 3600 * len(self.accuracies) / self.seconds,
            f"{who}_best_accuracy": max(self.accuracies),
            f"{who}_mean_accuracy": statistics.mean(self.accuracies),
            f"{who}_accuracies": self.accuracies,
        }


def search_with_kdray(settings: Sweep, folder: Path) -> tuple[SearchResult, Figures]:
    """Run the whole sweep in a storage of its own."""
    started = time.perf_counter()
    paths = SweepPaths(folder, settings.name)
    run(settings, paths, RunOptions(address="local"))
    seconds = time.perf_counter() - started
    figures = read_figures(paths)
    return SearchResult(seconds, [record.metrics["accuracy"] for record in figures.records]), figures


def search_of(options: argparse.Namespace) -> Search:
    """A search with random settings, which the peer can repeat, and in which every trial runs to its end."""
    return Search(trials=options.trials, sampler="random", stopping=None)


def main() -> None:
    command = parser(__doc__, trials=6)
    command.add_argument("--by-length", action="store_true", help="let the peer also batch rows of similar length")
    options = command.parse_args()
    on = machine()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        folder, settings = Path(name), sweep(options, search_of(options))
        teacher = fine_tune_teacher(settings, folder)
        with_teacher = settings.with_changes({"teacher.model": str(teacher.folder), "teacher.training": None})
        kdray, sweep_figures = search_with_kdray(with_teacher, folder / "kdray")
        splits = load_splits(settings.data, settings.task)
        peer = Peer(settings, teacher, splits, folder / "peer", options.by_length)
        bf16 = peer.arguments().bf16
        with redirect_stdout(sys.stderr):  # both Tune and the Trainer print
            transformers = peer.search([record.params for record in sweep_figures.records])
    print_result(
        "trials per hour, against transformers' Trainer.hyperparameter_search(backend='ray') (times as many)",
        transformers.seconds / kdray.seconds,
        {
            "goal": 6.0,
            **kdray.figures("kdray"),
            "kdray_stages_s": dict(sweep_figures.times),
            **transformers.figures("transformers"),
            "better_accuracy_by": max(kdray.accuracies) - max(transformers.accuracies),
            "trials": options.trials,
            "epochs": options.epochs,
            "rows": {split: len(splits.columns(split)["id"]) for split in ("train", "validation")},
            "bf16": bf16,
            "peer_batches_by_length": options.by_length,
            "data": options.data or "generated",
        },
        on,
    )


if __name__ == "__main__":
    main()
