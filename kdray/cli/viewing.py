"""`kdray show`, `kdray sync` and `kdray ui`: a sweep's table, its unsent MLflow changes, MLflow's user interface."""

import subprocess
from typing import Annotated

import typer
from rich.console import Console

from kdray.cli.exits import exit_on_error, open_log_of, stderr_console, wide_console
from kdray.cli.options import DEFAULT_STORAGE, UI_PORT, SweepServer
from kdray.errors import StorageError
from kdray.report.screen import open_screen
from kdray.report.table import table
from kdray.stages.reading import read_figures
from kdray.storage.bucket_copies import open_for_reading
from kdray.storage.mirror import url_of
from kdray.storage.paths import StoragePaths, storage_path, sweep_paths
from kdray.tracking.page import ui_command
from kdray.tracking.sync import SyncResult, send_spool


def show(
    sweep: Annotated[str, typer.Argument(help="STORAGE/NAME: the folder of a finished or running sweep.")],
) -> None:
    """Print the table of a finished or running sweep."""
    with exit_on_error(), open_for_reading(sweep_paths(sweep)) as paths:
        wide_console().print(table(read_figures(paths)))


def sync_sweep(
    sweep: Annotated[str, typer.Argument(help="STORAGE/NAME: the folder of a sweep that has ended.")],
    tracking_uri: SweepServer = None,
) -> None:
    """Send MLflow the changes of a sweep that its server did not accept while the sweep ran."""
    with exit_on_error():
        paths = open_log_of(sweep)
        with open_screen() as screen:
            screen.stage("MLflow")
            result = send_spool(
                paths, tracking_uri, screen.note, lambda done, count: screen.progress("runs", done, count)
            )
        console = Console(soft_wrap=True, highlight=False)
        for line in describe_sync(sweep, result):
            console.print(line, markup=False)


def ui(
    storage: Annotated[
        str, typer.Argument(help="The storage whose trials to show.", envvar="KDRAY_STORAGE")
    ] = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = UI_PORT,
) -> None:
    """Open MLflow's user interface for a storage, on the loopback interface only."""
    with exit_on_error():
        paths = StoragePaths(storage_path(storage))
        if url_of(paths.storage) and not paths.tracking_database.exists():
            raise StorageError(
                f"storage {storage}: its MLflow database is a file on the machine that ran the sweeps, and there is no "
                f"{paths.tracking_database} here. Run this command on that machine, or open your MLflow server."
            )
        stderr_console.print(f"MLflow on http://127.0.0.1:{port} for {storage}; Ctrl-C ends it.")
        raise typer.Exit(subprocess.run(ui_command(paths.storage, port), check=False).returncode)


def describe_sync(sweep: str, result: SyncResult | None) -> list[str]:
    """The lines that `kdray sync` prints about its result; `result` is None when there was nothing to send."""
    if result is None:
        return [f"Nothing to send: {sweep} has no unsent changes."]
    sent = result.sent
    missing = [f"Left out, because it does not exist any more: {folder}" for folder in sent.missing]
    if not sent.runs:
        return [f"Nothing to send: MLflow at {result.uri} has every change of {sweep}.", *missing]
    counts = f"runs changed: {len(sent.runs)}, values of metrics: {sent.metrics:,}, folders of files: {sent.folders}"
    return [f"Sent to MLflow at {result.uri}: {counts}.", *missing]
