"""Looking at sweeps: their tables, MLflow, and sending MLflow what it missed."""

import subprocess
from typing import Annotated

import typer
from rich.console import Console

from kdray.cli.ending import errors, exits, logged, wide_console
from kdray.cli.options import DEFAULT_STORAGE, UI_PORT, SweepServer
from kdray.errors import StorageError
from kdray.report.screen import open_screen
from kdray.report.table import table
from kdray.stages.choosing import figures_of
from kdray.storage.bucket_copies import looked_at
from kdray.storage.mirror import url_of
from kdray.storage.paths import StoragePaths, storage_path, sweep_paths
from kdray.tracking.page import ui_command
from kdray.tracking.sync import Synced, sync


def show(
    sweep: Annotated[str, typer.Argument(help="STORAGE/NAME: the folder of a finished or running sweep.")],
) -> None:
    """Print the table of a finished or running sweep."""
    with exits(), looked_at(sweep_paths(sweep)) as paths:
        wide_console().print(table(figures_of(paths)))


def sync_sweep(
    sweep: Annotated[str, typer.Argument(help="STORAGE/NAME: the folder of a sweep that has ended.")],
    tracking_uri: SweepServer = None,
) -> None:
    """Send MLflow what it missed of a sweep while its server did not answer."""
    with exits():
        paths = logged(sweep)
        with open_screen() as screen:
            screen.stage("MLflow")
            synced = sync(paths, tracking_uri, screen.note, lambda done, of: screen.progress("runs", done, of))
        console = Console(soft_wrap=True, highlight=False)
        for line in sent_lines(sweep, synced):
            console.print(line, markup=False)


def ui(
    storage: Annotated[
        str, typer.Argument(help="The storage whose trials to look at.", envvar="KDRAY_STORAGE")
    ] = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(help="Port on loopback.")] = UI_PORT,
) -> None:
    """Open MLflow's user interface for a storage, on loopback only."""
    with exits():
        paths = StoragePaths(storage_path(storage))
        if url_of(paths.storage) and not paths.tracking_database.exists():
            raise StorageError(
                f"storage {storage}: MLflow's database is a file of the machine that ran its sweeps, "
                f"{paths.tracking_database}, and none is here. Open it there, or open your MLflow server."
            )
        errors.print(f"MLflow on http://127.0.0.1:{port} for {storage}; Ctrl-C ends it.")
        raise typer.Exit(subprocess.run(ui_command(paths.storage, port), check=False).returncode)


def sent_lines(sweep: str, synced: Synced | None) -> list[str]:
    """What `kdray sync` has sent, in words."""
    if synced is None:
        return [f"Nothing to send: {sweep} holds nothing that MLflow has not taken."]
    sent = synced.sent
    missing = [f"Left out, for it is not there any more: {folder}" for folder in sent.missing]
    if not sent.runs:
        return [f"Nothing to send: MLflow at {synced.uri} has everything of {sweep}.", *missing]
    counts = f"runs changed: {len(sent.runs)}, values of metrics: {sent.metrics:,}, folders of files: {sent.folders}"
    return [f"Sent to MLflow at {synced.uri}: {counts}.", *missing]
