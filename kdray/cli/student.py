"""What is done with a chosen student: `kdray export`, `kdray predict` and `kdray register`."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kdray.cli.ending import exits, log_to, logged
from kdray.cli.options import SweepFolder, SweepServer
from kdray.errors import ExportError, SpecError, did_you_mean
from kdray.evaluation.formatting import heading, number
from kdray.export.checks import Exported
from kdray.export.exporting import check_empty, copied, export
from kdray.export.forms import FORMS, Form
from kdray.export.prediction import Answer, Predictor, check_pairs, check_target, check_text, lines_of, predict_file
from kdray.export.shipped import shipped
from kdray.report.screen import open_screen
from kdray.slots.interrupts import interruptible
from kdray.stages.choosing import figures_of
from kdray.stages.registering import register
from kdray.storage.bucket_copies import kept_in_bucket
from kdray.storage.mirror import fetched
from kdray.storage.owner import owned
from kdray.storage.paths import SweepPaths, shown, sweep_paths


def export_student(
    sweep: SweepFolder,
    form: Annotated[
        list[str] | None, typer.Option(help="onnx or int8; repeatable. Both by default.", metavar="FORM")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Copy the student's whole folder there.", metavar="DIR")] = None,
) -> None:
    """Write the chosen student as ONNX, check that it is still the same student, and measure it."""
    with exits():
        paths = _paths(sweep)
        forms = [_form(name) for name in form or ("onnx", "int8")]
        student = shipped(paths)
        if to is not None:
            check_empty(to)
        log_to(paths)
        with (
            open_screen() as screen, interruptible(), owned(paths.owner, screen.note),
            kept_in_bucket(paths, screen.note),
        ):  # fmt: skip
            exported = export(student, forms, figures_of(paths), screen)
            if to is not None:
                copied(student.folder, to)
        console = Console(soft_wrap=True, highlight=False)
        for line in exported_lines(exported):
            console.print(line, markup=False)
        console.print(f"\nStudent  {to or shown(student.folder)}", markup=False)
        if exported.missing:
            raise ExportError("; ".join(f"{form}: {why}" for form, why in exported.missing.items()) + ".")


def predict(
    sweep: SweepFolder,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; - reads lines.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help="The second text of a pair, once for each text.", metavar="TEXT")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read csv, tsv, txt, json, jsonl or parquet.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write csv, jsonl or parquet.", metavar="FILE")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns of a file without a header.", metavar="A,B")
    ] = None,
    form: Annotated[str, typer.Option(help="pytorch, onnx or int8.")] = "pytorch",
    batch_size: Annotated[int, typer.Option(help="Texts at once.", min=1)] = 64,
) -> None:
    """Ask the chosen student: label, probability and text of each, with tabs between; or a file to a file."""
    with exits():
        if bool(texts) == bool(file) or bool(file) != bool(to):
            raise SpecError("predict: give texts, or - for lines of standard input, or --file FILE and --to FILE.")
        student = shipped(_paths(sweep))
        if file is not None and to is not None:
            check_target(file, to)
            with suppress(OSError):  # it may be somebody else's sweep: asking its student writes nothing there
                log_to(student.paths)
            with open_screen() as screen, interruptible():
                screen.stage(f"Predicting {file} by {form}")
                predictor = Predictor(student, _form(form), batch_size)
                names = tuple(name.strip() for name in columns.split(",")) if columns else ()
                rows = predict_file(predictor, file, to, names, lambda done, of: screen.progress("rows", done, of))
            typer.echo(f"{rows:,} rows  {to}")
            return
        given = [check_text(text) for text in texts or []]
        seconds = None if given == ["-"] else check_pairs(student, given, [check_text(text) for text in pair or []])
        predictor = Predictor(student, _form(form), batch_size)
        chunks = lines_of(sys.stdin.buffer, student) if given == ["-"] else iter([(given, seconds)])
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
    with exits():
        paths = logged(sweep)
        with open_screen() as screen, interruptible():
            screen.stage("Registry")
            came = register(paths, tracking_uri, model, replace, screen.note)
        typer.echo(f"Registry {came}")


def exported_lines(exported: Exported) -> list[str]:
    """What `kdray export` has made, in words: a line a form, and how it was measured."""
    quality = next(iter(exported.forms[0].metrics))
    lines = []
    for made in exported.forms:
        parts = [
            f"{name} {number(metric, value)}"
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
        fetched(path)
    return paths
