"""Running a sweep: `main(sweep)` for sweep scripts, `kdray run FILE`, and `kdray choose` for a finished one."""

import os
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kdray.cli.ending import exits, log_to, wide_console
from kdray.cli.options import (
    DEFAULT_STORAGE,
    UI_PORT,
    Address,
    Fresh,
    LedgerUrl,
    Local,
    RequireCluster,
    Set,
    Smoke,
    Storage,
    SweepFolder,
    TrackingUri,
    Trials,
)
from kdray.errors import KDRayError, SpecError
from kdray.report.screen import open_screen
from kdray.report.table import table
from kdray.run import run
from kdray.settings import parsed
from kdray.slots.interrupts import interruptible
from kdray.stages.choosing import Outcome
from kdray.stages.choosing_again import finished, ruled
from kdray.storage.bucket_copies import looked_at
from kdray.storage.paths import SweepPaths, shown, storage_path, sweep_paths
from kdray.sweep import Sweep

STOPPING = "Stopping: what runs writes a checkpoint first. Ctrl-C or SIGTERM once more ends it at once."


def main(sweep: Sweep) -> None:
    """Run a sweep as a script: parse the command line, run, and end the process with the exit code."""

    def command(
        smoke: Smoke = False, trials: Trials = None, set_: Set = None, storage: Storage = DEFAULT_STORAGE,
        tracking_uri: TrackingUri = None, address: Address = None, require_cluster: RequireCluster = False,
        fresh: Fresh = False, local: Local = False, ledger: LedgerUrl = None,
    ) -> None:  # fmt: skip
        launch(
            lambda: sweep, smoke, trials, set_, storage, tracking_uri, address, require_cluster, fresh, local, ledger
        )

    command.__doc__ = f"Run the sweep {sweep.name!r}, or go on with it where it was left."
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(command)
    script()


def run_file(
    file: Annotated[Path, typer.Argument(help="A Python file that defines a Sweep.")],
    smoke: Smoke = False, trials: Trials = None, set_: Set = None, storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None, address: Address = None, require_cluster: RequireCluster = False,
    fresh: Fresh = False, local: Local = False, ledger: LedgerUrl = None,
) -> None:  # fmt: skip
    """Run the sweep that FILE defines, or go on with it where it was left."""
    launch(
        lambda: sweep_in(file), smoke, trials, set_, storage, tracking_uri, address, require_cluster, fresh, local,
        ledger,
    )  # fmt: skip


def choose_again(
    sweep: SweepFolder,
    retention: Annotated[float | None, typer.Option(help="Least share of the teacher's quality to keep.")] = None,
    smallest: Annotated[str | None, typer.Option(help="Cost to have least of.", metavar="COST")] = None,
    best: Annotated[str | None, typer.Option(help="Quality to have most of.", metavar="METRIC")] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(help="Limit of a cost; repeatable.", metavar="COST=VALUE")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Take the knee of the front.")] = False,
    set_: Set = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    require_cluster: RequireCluster = False,
    local: Local = False,
) -> None:
    """Choose again from a finished sweep by another rule; only what confirmation still lacks is trained."""
    with exits():
        place = sweep_paths(sweep)
        with looked_at(place) as paths:
            again = finished(paths, place, tracking_uri)
        limits = settings_of(at_most or [], "--at-most") or None
        asked = {"retention": retention, "smallest": smallest, "best": best, "at_most": limits, "knee": knee or None}
        rule = ruled(again.choose, {name: value for name, value in asked.items() if value is not None})
        again = again.model_copy(update={"choose": rule}).varied(settings_of(set_ or []))
        run_on_screen(again, place, again.tracking.uri, address, require_cluster, False, local)


def launch(
    load: Callable[[], Sweep], smoke: bool, trials: int | None, changes: list[str] | None, storage: str,
    tracking_uri: str | None, address: str | None, require_cluster: bool, fresh: bool, local: bool,
    ledger: str | None = None,
) -> None:  # fmt: skip
    """Run a sweep with the options of a command line and end the process with its exit code."""
    with exits(storage):
        sweep = load()
        sweep = sweep.small() if smoke else sweep
        sweep = sweep.varied(settings_of(changes or []))
        if trials is not None:
            sweep = sweep.varied({"search.trials": trials})
        if ledger is not None:
            sweep = sweep.varied({"search.ledger": ledger})
        paths = SweepPaths(storage_path(storage), sweep.name)
        uri = tracking_uri or sweep.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        run_on_screen(sweep, paths, uri, address, require_cluster, fresh, local)


def run_on_screen(
    sweep: Sweep, paths: SweepPaths, tracking_uri: str | None, address: str | None, require_cluster: bool, fresh: bool,
    local: bool,
) -> None:  # fmt: skip
    """Run a sweep on the screen, and print what came out."""
    if tracking_uri:
        sweep = sweep.varied({"tracking.uri": tracking_uri})
    log_to(paths)
    with open_screen() as screen, interruptible(lambda: screen.note(STOPPING)):
        outcome = run(
            sweep, paths, screen=screen, address=address, require_cluster=require_cluster, fresh=fresh, local=local
        )
    conclude(outcome)


def conclude(outcome: Outcome) -> None:
    """Print what came out, and where it lies."""
    console = wide_console()
    console.print(table(outcome.figures))
    for sentence in outcome.figures.sentences:
        console.print(sentence, markup=False, highlight=False)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    paths = outcome.paths
    console.print(f"\nStudent  {shown(paths.chosen)}\nReport   {shown(paths.report)}", markup=False, highlight=False)
    if outcome.registered:
        console.print(f"Registry {outcome.registered}", markup=False, highlight=False)
    if outcome.server:
        console.print(f"Compare  {outcome.server}{outcome.page or ''}", markup=False, highlight=False)
        return
    console.print(f"Compare  kdray ui {shown(paths.storage)}", markup=False, highlight=False)
    if outcome.page:
        console.print(f"         then open http://127.0.0.1:{UI_PORT}{outcome.page}", markup=False, highlight=False)


def settings_of(changes: list[str], option: str = "--set") -> dict[str, Any]:
    """The settings written as name=value. Raises SpecError for anything else."""
    for change in changes:
        if change.find("=") < 1:
            example = "training.epochs=2" if option == "--set" else "latency_ms=5"
            raise SpecError(f"{option} {change}: write it as name=value, such as {option} {example}.")
    return {name: parsed(value) for name, _, value in (change.partition("=") for change in changes)}


def sweep_in(file: Path) -> Sweep:
    """The sweep that a Python file defines. Raises SpecError when there is none, or more than one."""
    if not file.is_file():
        raise SpecError(f"{file}: no such file. Give a Python file that defines a Sweep, such as sweeps/quickstart.py.")
    try:
        names = runpy.run_path(str(file), run_name="kdray_sweep")
    except KDRayError:
        raise
    except Exception as error:
        raise SpecError(f"{file}: it is no sweep that Python can read: {_place(error, file)}.") from error
    sweeps = {id(value): value for value in names.values() if isinstance(value, Sweep)}
    if len(sweeps) != 1:
        raise SpecError(f"{file}: it defines {len(sweeps)} Sweep values, where one is needed: sweep = Sweep(...).")
    return next(iter(sweeps.values()))


def _place(error: Exception, file: Path) -> str:
    """What went wrong in a sweep file, and in which of its lines."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{f'line {lines[-1]}: ' if lines else ''}{type(error).__name__}: {error}"
