"""Claim: a variant of a recipe trains better students than the first one, on the test rows, over rows and seeds.

The students are those of a sweep file, with its teacher, rows and transfer set; a variant changes settings of a trial.
Every variant is trained with the same seeds, as a confirmation trains its candidates, and measured on the test rows.
The first variant is what the others are compared with. `difference` is that of the task's quality metric, with a
bootstrap interval over rows and seeds at 95 %; `seconds` is the mean training time. The ratio is the quality of the
last variant / that of the first. What is trained already in the same storage is not trained again. With `--costs`, the
size of each variant, and its latencies in PyTorch, in ONNX and in int8, are measured before any training.

    python bench/variants.py sweeps/few_labels.py --storage DIR --set training.epochs=3 \\
        --variant logits --variant hidden distillation.hidden_mse=1 --seeds 3
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from machine import machine, print_result

from kdray import Sweep
from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.reruns import Rerun, RerunResult, read_answers, run_reruns
from kdray.cli.running import load_sweep_file, parse_changes
from kdray.evaluation.costs import CostMeasuring
from kdray.evaluation.statistics import Interval, bootstrap_difference, bootstrap_interval
from kdray.forms.forms import GRAPH_FORMS
from kdray.report.screen import StageTimer, open_screen
from kdray.run import RunOptions, open_pool
from kdray.search.claim import claim_folder
from kdray.settings import dotted_values
from kdray.slots.job import Worker
from kdray.stages.bookkeeping import open_sweep_run
from kdray.stages.preparing import prepare
from kdray.stages.retraining import trials_of
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons, teach
from kdray.storage.files import fingerprint
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths
from kdray.tasks.task import Outputs
from kdray.training.trial import read_reports

COSTS = ("parameters", "size_mb", "latency_ms", "onnx_latency_ms", "int8_latency_ms")


@dataclass(frozen=True)
class Variant:
    """A recipe with other settings."""

    name: str
    changes: Mapping[str, Any]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Variant":
        """The variant of a command line: its name, then settings as name=value."""
        return cls(words[0], parse_changes(list(words[1:]), "--variant"))


def with_variants(
    sweep: Sweep, changes: Mapping[str, Any], variants: Sequence[Variant], known: Mapping[str, Any]
) -> Sweep:
    """The changed sweep, whose space has the settings of the variants, so that it prepares what each of them needs.

    `known` are the settings of the sweep, which a variant has where it gives no other.
    """
    domains: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for variant in variants for name in variant.changes):
        given = [variant.changes[name] for variant in variants if name in variant.changes]
        # A setting of another family than the sweep's is known only where a variant gives it.
        kept = [known[name]] if len(given) < len(variants) and name in known else []
        domains[f"space.{name}"] = list(dict.fromkeys(kept + given))
    return sweep.with_changes(
        {**{name: value for name, value in changes.items() if f"space.{name}" not in domains}, **domains}
    )


def train(session: Session, lessons: Lessons, reruns: Sequence[Rerun]) -> ConfirmationAnswers:
    """Train the reruns, and return their outputs for the test rows."""
    sweep, paths = session.sweep, session.paths
    ended: set[str] = set()
    failed: dict[str, str] = {}

    def on_end(run: Rerun, result: RerunResult) -> None:
        ended.add(run.key)
        session.screen.progress("students trained", len(ended), len({each.key for each in reruns}))
        if result.error:
            failed[run.key] = result.error
            session.screen.note(f"variant {run.trial}, seed {run.seed} failed: {result.error}")

    session.screen.stage("Variants")
    run_reruns(trials_of(reruns, lessons, paths), session.slots, on_end)
    outputs: dict[Rerun, Outputs] = {}
    for run in reruns:
        if (answers := read_answers(paths.rerun(run.key))) is not None:
            outputs[run] = answers
    first = lessons.inputs.first
    return ConfirmationAnswers(
        outputs=outputs,
        failed={run: failed[run.key] for run in reruns if run.key in failed},
        teacher=first.teacher_outputs("test", Worker()),
        rows=first.rows("test", Worker()),
        task=sweep.task,
    )


def costs_of(session: Session, lessons: Lessons, reruns: Sequence[Rerun]) -> list[dict[str, float]]:
    """The costs of the student of each of these reruns."""
    screen, students = session.screen, [run.recipe.student for run in reruns]
    screen.stage("Costs of each variant")
    session.slots.wait()  # a slot that is still starting would use the CPU and make latencies longer
    measuring = CostMeasuring(session.sweep.latency, session.paths, session.slots, forms=GRAPH_FORMS)
    costs = measuring.measure(
        students, lessons.sources, lambda done, count: screen.progress("architectures", done, count)
    )
    return [{name: costs.of(student)[name] for name in COSTS} for student in students]


def teacher_figure(answers: ConfirmationAnswers) -> list[float]:
    """The quality of the teacher, with its interval."""
    return as_list(bootstrap_interval(answers.count_metric(answers.task.quality.name, [answers.teacher])))


def figures_of(answers: ConfirmationAnswers, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """The figures of each variant. Raises SystemExit for a variant whose trainings all failed."""
    metric, figures = answers.task.quality.name, []
    for number, variant in enumerate(variants):
        if not answers.outputs_of(number, "candidate"):
            sys.exit(f"{variant.name}: no training succeeded ({', '.join(answers.failed.values())})")
        counted = answers.count_metric(metric, answers.outputs_of(number, "candidate"))
        figure: dict[str, Any] = {"variant": variant.name, metric: as_list(bootstrap_interval(counted))}
        if number:
            first = answers.count_metric(metric, answers.outputs_of(0, "candidate"))
            figure["difference"] = as_list(bootstrap_difference(counted, first))
        figures.append(figure | {"metrics": answers.mean_metrics(number, "candidate")})
    return figures


def by_variant(reruns: Sequence[Rerun], count: int) -> list[list[Rerun]]:
    """The reruns of each variant."""
    return [[run for run in reruns if run.trial == number] for number in range(count)]


def train_seconds(paths: SweepPaths, run: Rerun) -> float:
    """The seconds of all training steps of a student."""
    return float(sum(report["train_seconds"] for report in read_reports(paths.rerun(run.key))))


def as_list(interval: Interval) -> list[float]:
    """The estimate and both bounds."""
    return [interval.estimate, interval.low, interval.high]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a Python file that defines a sweep")
    parser.add_argument("--storage", type=Path, required=True, help="folder for teacher and students")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the sweep"
    )
    parser.add_argument(
        "--variant", action="append", nargs="+", required=True, metavar="NAME [SETTING=VALUE ...]", help="a recipe"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--costs", action="store_true", help="measure what each variant costs")
    options, on = parser.parse_args(), machine()
    given, changes = load_sweep_file(options.sweep), parse_changes(options.set)
    # A setting that the file searches is that of its recipe here, unless a variant gives it.
    known = {**dotted_values(given.recipe), **changes}
    variants = [Variant.parse(words) for words in options.variant]
    sweep = with_variants(given, changes, variants, known)
    # A student is known by recipe and seed, so students of other rows or another teacher need another folder.
    lessons_key = fingerprint({name: sweep.identity()[name] for name in ("task", "data", "teacher", "transfer")})
    sweep = sweep.with_changes({"name": f"variants-{lessons_key}"})
    # The folder belongs to all variants that learn from this teacher, whatever their settings are.
    identity = {"search": sweep.identity()["search"], "space": {}}
    paths = SweepPaths(options.storage.resolve(), sweep.name)
    reruns = [
        Rerun(trial=number, role="candidate", seed=sweep.seed + 1 + seed, recipe=sweep.recipe_of(variant.changes))
        for seed in range(options.seeds)
        for number, variant in enumerate(variants)
    ]
    with open_screen() as screen, own_sweep(paths.owner, screen.note):
        ledger = claim_folder(identity, paths, fresh=False)
        with StageTimer(screen, paths.times) as timer:
            material = prepare(sweep, paths, ledger, timer)
            with (
                open_pool(sweep, paths, timer, RunOptions()) as slots,
                open_sweep_run(sweep, paths, ledger, timer.note, own_process=True) as tracker,
            ):
                session = Session(sweep, paths, ledger, timer, slots, tracker)
                lessons = teach(session, material)
                costs = costs_of(session, lessons, reruns[: len(variants)]) if options.costs else [{}] * len(variants)
                answers = train(session, lessons, reruns)
    figures = figures_of(answers, variants)
    for figure, runs, of_variant in zip(figures, by_variant(reruns, len(variants)), costs, strict=True):
        figure["seconds"] = mean(train_seconds(paths, run) for run in runs if run in answers.outputs)
        figure |= {"costs": of_variant} if of_variant else {}
    metric, rows = sweep.task.quality.name, len(answers.rows.example_starts) - 1
    print_result(
        f"{metric} of {variants[-1].name}, against that of {variants[0].name}, on {rows:,} test rows",
        figures[-1][metric][0] / figures[0][metric][0],
        {"teacher": teacher_figure(answers), "variants": figures, "epochs": sweep.training.epochs},
        on,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
