"""What is done with a chosen student: `kdray export`, `kdray predict` and `kdray register`."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kdray.cli.ending import exit_on_error, log_to, open_log_of
from kdray.cli.options import PredictGroup, SweepFolder, SweepServer
from kdray.errors import ExportError, SpecError, did_you_mean
from kdray.evaluation.formatting import format_metric, heading
from kdray.export.checks import ExportResult
from kdray.export.exporting import check_empty, copy_student, export_forms
from kdray.export.forms import FORMS, Form
from kdray.export.prediction import Answer, Predictor, check_pairs, check_target, check_text, predict_file, read_lines
from kdray.export.shipped import Shipped, read_shipped
from kdray.report.screen import open_screen
from kdray.slots.interrupts import handle_signals
from kdray.stages.reading import read_figures
from kdray.stages.registering import register_finished
from kdray.storage.bucket_copies import sync_with_bucket
from kdray.storage.mirror import fetch
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths, display_path, sweep_paths


def export_student(
    sweep: SweepFolder,
    form: Annotated[
        list[str] | None, typer.Option(help="onnx or int8; repeatable. Both by default.", metavar="FORM")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Copy the student's whole folder there.", metavar="DIR")] = None,
) -> None:
    """Write the chosen student as ONNX, check that it is still the same student, and measure it."""
    with exit_on_error():
        paths = _paths(sweep)
        forms = [_form(name) for name in form or ("onnx", "int8")]
        student = read_shipped(paths)
        if to is not None:
            check_empty(to)
        log_to(paths)
        with (
            open_screen() as screen,
            handle_signals(),
            own_sweep(paths.owner, screen.note),
            sync_with_bucket(paths, screen.note),
        ):
            exported = export_forms(student, forms, read_figures(paths), screen)
            if to is not None:
                copy_student(student.folder, to)
        console = Console(soft_wrap=True, highlight=False)
        for line in describe_exported(exported):
            console.print(line, markup=False)
        console.print(f"\nStudent  {to or display_path(student.folder)}", markup=False)
        if exported.missing:
            raise ExportError("; ".join(f"{form}: {why}" for form, why in exported.missing.items()) + ".")


def predict(
    sweep: SweepFolder,
    options: PredictGroup,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; - reads lines.")] = None,
) -> None:
    """Ask the chosen student: label, probability and text of each, with tabs between; or a file to a file."""
    with exit_on_error():
        if bool(texts) == bool(options.file) or bool(options.file) != bool(options.to):
            raise SpecError("predict: give texts, or - for lines of standard input, or --file FILE and --to FILE.")
        student = read_shipped(_paths(sweep))
        if options.file is not None and options.to is not None:
            _predict_file(student, options, options.file, options.to)
        else:
            _predict_texts(student, options, texts or [])


def _predict_file(student: Shipped, options: PredictGroup, file: Path, to: Path) -> None:
    check_target(file, to)
    with suppress(OSError):  # it may be somebody else's sweep: to ask its student writes nothing there
        log_to(student.paths)
    with open_screen() as screen, handle_signals():
        screen.stage(f"Predicting {file} by {options.form}")
        predictor = Predictor(student, _form(options.form), options.batch_size)
        names = tuple(name.strip() for name in options.columns.split(",")) if options.columns else ()
        rows = predict_file(predictor, file, to, names, lambda done, of: screen.progress("rows", done, of))
    typer.echo(f"{rows:,} rows  {to}")


def _predict_texts(student: Shipped, options: PredictGroup, texts: list[str]) -> None:
    given = [check_text(text) for text in texts]
    if given == ["-"]:
        chunks: Iterable[tuple[Sequence[str], Sequence[str] | None]] = read_lines(sys.stdin.buffer, student)
    else:
        chunks = [(given, check_pairs(student, given, [check_text(text) for text in options.pair or []]))]
    predictor = Predictor(student, _form(options.form), options.batch_size)
    for some, others in chunks:
        for text, answer in zip(some, predictor.answers(some, others), strict=True):
            typer.echo(_answer_line(text, answer))


def register_student(
    sweep: SweepFolder,
    replace: Annotated[bool, typer.Option("--replace", help="Make it champion, whatever the rule says.")] = False,
    model: Annotated[
        str | None, typer.Option(help="The registered model; by default the sweep's.", metavar="NAME")
    ] = None,
    tracking_uri: SweepServer = None,
) -> None:
    """Put the chosen student into MLflow's model registry; the better one, by its sweep's rule, is champion."""
    with exit_on_error():
        paths = open_log_of(sweep)
        with open_screen() as screen, handle_signals():
            screen.stage("Registry")
            came = register_finished(paths, tracking_uri, model, replace, screen.note)
        typer.echo(f"Registry {came}")


def describe_exported(exported: ExportResult) -> list[str]:
    """What `kdray export` has made, in words: a line a form, and how it was measured."""
    quality = next(iter(exported.forms[0].metrics))
    lines = []
    for made in exported.forms:
        parts = [
            f"{name} {format_metric(metric, value)}"
            for name, metric, value in (
                ("", "size_mb", made.size_mb),
                ("latency", "latency_ms", made.latency_ms),
                ("p95", "latency_p95_ms", made.latency_p95_ms),
                ("throughput", "throughput_per_s", made.throughput_per_s),
                (heading(quality), quality, made.metrics[quality]),
                ("agreement", "agreement", made.agreement),
            )
        ]
        lines.append(f"{made.form:8} {', '.join(parts).strip()}, largest difference {made.largest_difference:.2g}")
    return [*lines, f"On {exported.rows:,} {exported.split} rows. {_capitalised(exported.conditions)}."]


def _answer_line(text: str, answer: Answer) -> str:
    return f"{answer.label}\t{answer.probability:.4f}\t{' '.join(text.split())}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _form(name: str) -> Form:
    for form in FORMS:
        if form == name:
            return form
    raise SpecError(f"--form {name}: no such form; {did_you_mean(name, FORMS)}")


def _paths(sweep: str) -> SweepPaths:
    """Where the sweep lies; of one in a bucket, what is needed of it is fetched."""
    paths = sweep_paths(sweep)
    for path in (paths.settings, *paths.records, paths.chosen):
        fetch(path)
    return paths
