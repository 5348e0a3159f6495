"""Commands that run a sweep: `main(sweep)` in a sweep script, `kdray run FILE`, and `kdray choose`."""

import os
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kdray.cli.exits import exit_on_error, log_to, wide_console
from kdray.cli.options import UI_PORT, ChooseGroup, RuleGroup, RunGroup, SweepFolder, flatten_groups
from kdray.errors import KDRayError, SpecError
from kdray.report.screen import open_screen
from kdray.report.table import table
from kdray.run import RunOptions, run
from kdray.safe_text.escaping import terminal_text
from kdray.settings import parse_value
from kdray.slots.interrupts import handle_signals
from kdray.stages.choosing_again import change_rule, read_finished_sweep
from kdray.stages.shipping import Outcome
from kdray.storage.bucket_copies import open_for_reading
from kdray.storage.paths import SweepPaths, display_path, storage_path, sweep_paths
from kdray.sweep import Sweep

STOPPING = "Stopping: running jobs write a checkpoint first. A second Ctrl-C or SIGTERM ends the sweep at once."


def main(sweep: Sweep) -> None:
    """Run a sweep as a script: parse the command line, run, and end the process with the exit code."""

    def command(run: RunGroup) -> None:
        launch(lambda: sweep, run)

    command.__doc__ = f"Run the sweep {sweep.name!r}, or continue it."
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(flatten_groups(command))
    script()


def run_file(file: Annotated[Path, typer.Argument(help="A Python file that defines a Sweep.")], run: RunGroup) -> None:
    """Run the sweep that FILE defines, or continue it."""
    launch(lambda: load_sweep_file(file), run)


def choose_again(sweep: SweepFolder, rule: RuleGroup, options: ChooseGroup) -> None:
    """Choose again from a finished sweep by another rule; only students that confirmation still needs are trained."""
    with exit_on_error():
        paths = sweep_paths(sweep)
        with open_for_reading(paths) as readable_paths:
            finished = read_finished_sweep(readable_paths, paths, options.tracking_uri)
        # None stands for an option that was not given: it leaves the rule as it is.
        limits = parse_changes(rule.at_most or [], "--at-most") or None
        requested = vars(rule) | {"at_most": limits, "knee": rule.knee or None}
        new_rule = change_rule(finished.choose, {name: value for name, value in requested.items() if value is not None})
        changed = finished.model_copy(update={"choose": new_rule}).with_changes(parse_changes(options.changes or []))
        run_options = RunOptions(address=options.address, require_cluster=options.require_cluster, local=options.local)
        run_on_screen(changed, paths, changed.tracking.uri, run_options)


def launch(load: Callable[[], Sweep], options: RunGroup) -> None:
    """Run a sweep with the options of a command line, and end the process with its exit code.

    `load` gives the sweep. It is called here so that an error in it is printed as a sentence.
    """
    with exit_on_error(options.storage):
        sweep = load()
        # First --smoke, so that --set and the other options may change what the smoke copy has set.
        sweep = sweep.smoke_copy() if options.smoke else sweep
        sweep = sweep.with_changes(parse_changes(options.changes or []))
        if options.trials is not None:
            sweep = sweep.with_changes({"search.trials": options.trials})
        if options.ledger is not None:
            sweep = sweep.with_changes({"search.ledger": options.ledger})
        paths = SweepPaths(storage_path(options.storage), sweep.name)
        uri = options.tracking_uri or sweep.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        run_options = RunOptions(
            address=options.address,
            require_cluster=options.require_cluster,
            fresh=options.fresh,
            local=options.local,
        )
        run_on_screen(sweep, paths, uri, run_options)


def run_on_screen(sweep: Sweep, paths: SweepPaths, tracking_uri: str | None, options: RunOptions) -> None:
    """Run a sweep, show its progress on the screen, and print the outcome."""
    if tracking_uri:
        sweep = sweep.with_changes({"tracking.uri": tracking_uri})
    log_to(paths)
    with open_screen() as screen, handle_signals(lambda: screen.note(STOPPING)):
        outcome = run(sweep, paths, options, screen)
    print_outcome(outcome)


def print_outcome(outcome: Outcome) -> None:
    """Print the table, the sentences of the choice, and where the student, the report and the MLflow page are.

    Raises typer.Exit with exit code 3 when no student was chosen.
    """
    wide_console().print(table(outcome.figures))
    for sentence in outcome.figures.sentences:
        typer.echo(terminal_text(sentence))
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    for line in describe_places(outcome):
        typer.echo(terminal_text(line))


def describe_places(outcome: Outcome) -> list[str]:
    """The lines that say where the student, the report, the registered version and the MLflow page are."""
    paths = outcome.paths
    lines = ["", f"Student  {display_path(paths.chosen)}", f"Report   {display_path(paths.report)}"]
    lines += [f"Registry {outcome.registered}"] if outcome.registered else []
    if outcome.server:
        return [*lines, f"Compare  {outcome.server}{outcome.page or ''}"]
    lines += [f"Compare  kdray ui {display_path(paths.storage)}"]
    return lines + ([f"         then open http://127.0.0.1:{UI_PORT}{outcome.page}"] if outcome.page else [])


def parse_changes(changes: list[str], option: str = "--set") -> dict[str, Any]:
    """The settings in texts of the form name=value. Raises SpecError for any other text."""
    for change in changes:
        if change.find("=") < 1:  # there is no `=`, or no name before it
            example = "training.epochs=2" if option == "--set" else "latency_ms=5"
            raise SpecError(f"{option} {change}: write it as name=value, such as {option} {example}.")
    return {name: parse_value(value) for name, _, value in (change.partition("=") for change in changes)}


def load_sweep_file(file: Path) -> Sweep:
    """The sweep that a Python file defines. Raises SpecError if the file does not define exactly one sweep."""
    if not file.is_file():
        raise SpecError(f"{file}: no such file. Give a Python file that defines a Sweep, such as sweeps/quickstart.py.")
    try:
        names = runpy.run_path(str(file), run_name="kdray_sweep")
    except KDRayError:
        raise
    except Exception as error:
        raise SpecError(f"{file}: Python cannot run this sweep file: {_locate_error(error, file)}.") from error
    # By identity, because one Sweep may have several names in the file.
    sweeps = {id(value): value for value in names.values() if isinstance(value, Sweep)}
    if len(sweeps) != 1:
        raise SpecError(f"{file}: it defines {len(sweeps)} Sweep values, but must define one: sweep = Sweep(...).")
    return next(iter(sweeps.values()))


def _locate_error(error: Exception, file: Path) -> str:
    """The line of a sweep file in which an error was raised, and the error's message."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    location = f"line {lines[-1]}: " if lines else ""
    return f"{location}{type(error).__name__}: {error}"
