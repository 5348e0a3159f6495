"""Looking at sweeps: their tables, MLflow, and sending MLflow what it missed."""

import subprocess
from typing import Annotated

import typer
from rich.console import Console

from kdray.cli.ending import exit_on_error, open_log_of, stderr_console, wide_console
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
    """Send MLflow what it missed of a sweep while its server did not answer."""
    with exit_on_error():
        paths = open_log_of(sweep)
        with open_screen() as screen:
            screen.stage("MLflow")
            synced = send_spool(paths, tracking_uri, screen.note, lambda done, of: screen.progress("runs", done, of))
        console = Console(soft_wrap=True, highlight=False)
        for line in describe_sent(sweep, synced):
            console.print(line, markup=False)


def ui(
    storage: Annotated[
        str, typer.Argument(help="The storage whose trials to look at.", envvar="KDRAY_STORAGE")
    ] = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(help="Port on loopback.")] = UI_PORT,
) -> None:
    """Open MLflow's user interface for a storage, on loopback only."""
    with exit_on_error():
        paths = StoragePaths(storage_path(storage))
        if url_of(paths.storage) and not paths.tracking_database.exists():
            raise StorageError(
                f"storage {storage}: MLflow's database is a file of the machine that ran its sweeps, "
                f"{paths.tracking_database}, and none is here. Open it there, or open your MLflow server."
            )
        stderr_console.print(f"MLflow on http://127.0.0.1:{port} for {storage}; Ctrl-C ends it.")
        raise typer.Exit(subprocess.run(ui_command(paths.storage, port), check=False).returncode)


def describe_sent(sweep: str, synced: SyncResult | None) -> list[str]:
    """What `kdray sync` has sent, in words."""
    if synced is None:
        return [f"Nothing to send: {sweep} holds nothing that MLflow has not taken."]
    sent = synced.sent
    missing = [f"Left out, for it is not there any more: {folder}" for folder in sent.missing]
    if not sent.runs:
        return [f"Nothing to send: MLflow at {synced.uri} has everything of {sweep}.", *missing]
    counts = f"runs changed: {len(sent.runs)}, values of metrics: {sent.metrics:,}, folders of files: {sent.folders}"
    return [f"Sent to MLflow at {synced.uri}: {counts}.", *missing]
