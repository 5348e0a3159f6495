"""`kdray show`, `kdray sync` and `kdray ui`: a sweep's table, its unsent MLflow changes, MLflow's user interface."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import Annotated

import typer

from kdray.cli.exits import exit_on_error, open_log_of, stderr_console, wide_console
from kdray.cli.options import DEFAULT_STORAGE, UI_PORT, SweepLedger, SweepServer
from kdray.errors import StorageError
from kdray.report.screen import open_screen
from kdray.report.table import table
from kdray.safe_text.escaping import terminal_text
from kdray.slots.interrupts import handle_signals, redirect_signals
from kdray.stages.reading import read_figures
from kdray.storage.bucket_copies import open_for_reading
from kdray.storage.mirror import url_of
from kdray.storage.names import check_links
from kdray.storage.paths import StoragePaths, storage_path, sweep_paths
from kdray.storage.sqlite_files import check_sqlite
from kdray.tracking.page import ui_command, ui_environment
from kdray.tracking.sync import SyncResult, send_spool


def show(
    sweep: Annotated[str, typer.Argument(help="STORAGE/NAME: the folder of a finished or running sweep.")],
    ledger: SweepLedger = None,
) -> None:
    """Print the table of a finished or running sweep."""
    with exit_on_error(), open_for_reading(sweep_paths(sweep)) as paths:
        wide_console().print(table(read_figures(paths)))


def sync_sweep(
    sweep: Annotated[str, typer.Argument(help="STORAGE/NAME: the folder of a sweep that has ended.")],
    tracking_uri: SweepServer = None,
    ledger: SweepLedger = None,
) -> None:
    """Send MLflow the changes of a sweep that its server did not accept while the sweep ran."""
    with exit_on_error():
        paths = open_log_of(sweep)
        with open_screen() as screen:
            screen.stage("MLflow")
            result = send_spool(
                paths, tracking_uri, screen.note, lambda done, count: screen.progress("runs", done, count)
            )
        for line in describe_sync(sweep, result):
            typer.echo(terminal_text(line))


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
        check_links(paths.tracking_database, paths.storage)
        check_sqlite(paths.tracking_database)
        stderr_console.print(f"MLflow on http://127.0.0.1:{port} for {storage}; Ctrl-C ends it.", markup=False)
        raise typer.Exit(_run_server(ui_command(paths.storage, port)))


def _run_server(command: list[str]) -> int:
    """Run the server until it ends, and return its exit code. A signal to this process ends all its processes."""
    with handle_signals():
        # A session of its own: the server starts further processes, which must not outlive it.
        server = subprocess.Popen(  # noqa: S603 - a list of words, no shell
            command, env=ui_environment(), start_new_session=True
        )

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)

        def interrupt() -> None:
            # Before the exception: `wait` grants a child 0.25 s after it, and a second signal ends this process.
            end()
            raise KeyboardInterrupt

        try:
            with redirect_signals(interrupt):
                return server.wait()
        finally:
            end()
            server.wait()


def describe_sync(sweep: str, result: SyncResult | None) -> list[str]:
    """The lines that `kdray sync` prints about its result; `result` is None when there was nothing to send."""
    if result is None:
        return [f"Nothing to send: {sweep} has no unsent changes."]
    sent = result.sent
    left_out = [f"Left out: {sentence}" for sentence in sent.left_out]
    if not sent.runs:
        return [f"Nothing to send: MLflow at {result.uri} has every change of {sweep}.", *left_out]
    counts = f"runs changed: {len(sent.runs)}, values of metrics: {sent.metrics:,}, folders of files: {sent.folders}"
    return [f"Sent to MLflow at {result.uri}: {counts}.", *left_out]
