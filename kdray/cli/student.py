"""Commands that use a chosen student: `kdray export`, `kdray predict` and `kdray register`."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from kdray.cli.exits import exit_on_error, log_to, open_log_of
from kdray.cli.options import MaxGB, PredictGroup, SweepFolder, SweepLedger, SweepServer
from kdray.errors import ExportError, SpecError, did_you_mean
from kdray.evaluation.formatting import format_count, format_metric, heading
from kdray.export.checks import ExportResult
from kdray.export.exporting import check_empty, copy_student, export_forms
from kdray.export.prediction import (
    Predictor,
    check_pairs,
    check_target,
    check_text,
    predict_file,
    read_lines,
)
from kdray.export.shipped import Shipped, read_shipped
from kdray.forms.forms import FORM_OF, FORMS
from kdray.report.screen import open_screen
from kdray.safe_text.escaping import one_line, terminal_text
from kdray.slots.interrupts import handle_signals
from kdray.sources.memory import DEFAULT_MAX_GB
from kdray.sources.reading import Reading
from kdray.stages.reading import read_figures
from kdray.stages.registering import register_finished
from kdray.storage.bucket_copies import sync_with_bucket
from kdray.storage.mirror import fetch
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths, display_path, sweep_paths
from kdray.tasks.answers import Answer, Continuation


def export_student(
    sweep: SweepFolder,
    form: Annotated[
        list[str] | None, typer.Option(help=f"{' or '.join(FORM_OF)}; repeatable. All by default.", metavar="FORM")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Copy the student's complete folder to DIR.", metavar="DIR")] = None,
    ledger: SweepLedger = None,
    max_gb: MaxGB = DEFAULT_MAX_GB,
) -> None:
    """Write the chosen student as ONNX, check that its outputs stay the same, and measure its speed."""
    with exit_on_error():
        paths = _fetch_sweep(sweep)
        forms = [_parse_form(name) for name in form or FORM_OF]
        student = read_shipped(paths)
        # The limit is no part of the recorded settings, because it changes no result.
        student = dataclasses.replace(student, data=student.data.model_copy(update={"max_gb": max_gb}))
        if to is not None:
            check_empty(to)
        log_to(paths)
        with (
            open_screen() as screen,
            handle_signals(),
            own_sweep(paths.owner, screen.note),
            sync_with_bucket(paths, screen.note),
        ):
            result = export_forms(student, forms, read_figures(paths), screen)
            if to is not None:
                others = copy_student(student.folder, to)
                if others:
                    screen.note(
                        f"--to {to}: {format_count(len(others), 'file')} of the folder are no part of a model and were "
                        f"not copied, such as {others[0]}."
                    )
        for line in (*describe_export(result), "", f"Student  {to or display_path(student.folder)}"):
            typer.echo(terminal_text(line))
        if result.missing:
            raise ExportError("; ".join(f"{name}: {reason}" for name, reason in result.missing.items()) + ".")


def predict(
    sweep: SweepFolder,
    options: PredictGroup,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; - reads lines of standard input.")
    ] = None,
) -> None:
    """Predict with the chosen student: print the answer to each text before the text, or read and write a file."""
    with exit_on_error():
        # Either texts or --file, and --to together with --file only.
        if bool(texts) == bool(options.file) or bool(options.file) != bool(options.to):
            raise SpecError("predict: give texts, or - for lines of standard input, or --file FILE and --to FILE.")
        student = read_shipped(_fetch_sweep(sweep))
        if options.file is not None and options.to is not None:
            _predict_file(student, options, options.file, options.to)
        else:
            _predict_texts(student, options, texts or [])


def _predict_file(student: Shipped, options: PredictGroup, file: Path, to: Path) -> None:
    check_target(file, to)
    reading = _reading(options)
    # A student may be used without the right to write into its sweep. There is no log file then.
    with suppress(OSError):
        log_to(student.paths)
    with open_screen() as screen, handle_signals():
        screen.stage(f"Predicting {file} by {options.form}")
        predictor = _predictor(student, options)
        written = predict_file(
            predictor, file, to, reading, lambda done, count: screen.progress("rows", done, count), raw=options.raw
        )
        if written.note:
            screen.note(written.note)
    typer.echo(f"{written.rows:,} rows  {to}")


def _predictor(student: Shipped, options: PredictGroup) -> Predictor:
    return Predictor(student, _parse_form(options.form), options.batch_size, _continuation(student, options))


def _continuation(student: Shipped, options: PredictGroup) -> Continuation:
    """How texts are continued. Raises SpecError if an option says it to a student that does not continue texts."""
    given = {name: getattr(options, name) for name in ("tokens", "temperature", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not student.task.is_causal:
        raise SpecError(
            f"--{next(iter(given))}: this student does not continue texts; its task is {student.task.name}. Leave out "
            f"--{next(iter(given))}."
        )
    return Continuation(**given)


def _reading(options: PredictGroup) -> Reading:
    """How the file to predict is read. Raises SpecError that names the option with a wrong value."""
    values = {name: getattr(options, name) for name in ("columns", "delimiter", "encoding", "field", "max_gb")}
    try:
        return Reading(**{name: value for name, value in values.items() if value is not None})
    except SpecError as error:
        raise SpecError(str(error).replace("Reading.max_gb", "--max-gb").replace("Reading.", "--")) from None


def _predict_texts(student: Shipped, options: PredictGroup, texts: list[str]) -> None:
    first_texts = [check_text(text) for text in texts]
    if first_texts == ["-"]:
        chunks: Iterable[tuple[Sequence[str], Sequence[str] | None]] = read_lines(sys.stdin.buffer, student)
    else:
        second_texts = check_pairs(student, first_texts, [check_text(text) for text in options.pair or []])
        chunks = [(first_texts, second_texts)]
    predictor = _predictor(student, options)
    for chunk, second_chunk in chunks:
        for text, answer in zip(chunk, predictor.answers(chunk, second_chunk), strict=True):
            typer.echo(_format_answer(text, answer, options.raw))


def register_student(
    sweep: SweepFolder,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make the student champion, whatever the rule says.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The registered model; by default the sweep's.", metavar="NAME")
    ] = None,
    tracking_uri: SweepServer = None,
    ledger: SweepLedger = None,
) -> None:
    """Register the chosen student in MLflow; it becomes champion if it is better by its sweep's rule."""
    with exit_on_error():
        paths = open_log_of(sweep)
        with open_screen() as screen, handle_signals():
            screen.stage("Registry")
            outcome = register_finished(paths, tracking_uri, model, replace, screen.note)
        typer.echo(terminal_text(f"Registry {outcome}"))


def describe_export(result: ExportResult) -> list[str]:
    """The lines that `kdray export` prints: one line for each form, and one for how the forms were measured."""
    quality = next(iter(result.forms[0].metrics))
    lines = []
    for form in result.forms:
        parts = [
            f"{name} {format_metric(metric, value)}"
            for name, metric, value in (
                ("", "size_mb", form.size_mb),
                ("latency", "latency_ms", form.latency_ms),
                ("p95", "latency_p95_ms", form.latency_p95_ms),
                ("throughput", "throughput_per_s", form.throughput_per_s),
                (heading(quality), quality, form.metrics[quality]),
                ("agreement", "agreement", form.agreement),
            )
        ]
        lines.append(f"{form.form:8} {', '.join(parts).strip()}, largest difference {form.largest_difference:.2g}")
    return [*lines, f"On {result.rows:,} {result.split} rows. {_capitalise(result.conditions)}."]


def _format_answer(text: str, answer: Answer, raw: bool) -> str:
    """The answer and the text, with tabs between their cells; white space in the text becomes single spaces."""
    if raw:
        return "\t".join([*answer.cells(), " ".join(text.split())])
    return "\t".join(one_line(cell) for cell in [*answer.cells(), text])


def _capitalise(text: str) -> str:
    # str.capitalize would also turn all other letters into small ones.
    return text[:1].upper() + text[1:]


def _parse_form(name: str) -> str:
    for form in FORMS:
        if form == name:
            return form
    raise SpecError(f"--form {name}: no such form; {did_you_mean(name, FORMS)}")


def _fetch_sweep(sweep: str) -> SweepPaths:
    """The paths of a sweep; if it is in a bucket, its records and its chosen student are downloaded first."""
    paths = sweep_paths(sweep)
    for path in (paths.settings, *paths.records, paths.chosen):
        fetch(path)
    return paths
