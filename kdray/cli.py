"""The command line: `main(sweep)` for sweep scripts, and the `kdray` command; printing, logging and exit codes.

Exit codes: 0 a student was chosen; 1 failed; 2 refused; 3 finished, but no student satisfies the rule; 130 interrupted.
"""

import logging
import os
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console

from kdray.errors import KDRayError, SpecError, storage_error
from kdray.interrupts import EXIT_CODE, interruptible
from kdray.outcome import Outcome, figures_of
from kdray.paths import SweepPaths, storage_path
from kdray.report import table
from kdray.run import run
from kdray.screen import open_screen
from kdray.settings import parsed
from kdray.sweep import Sweep
from kdray.tracking import Synced, sync, ui_command

log = logging.getLogger(__name__)
logging.getLogger("kdray").addHandler(
    logging.NullHandler()
)  # else Python prints errors itself until there is a log file
errors = Console(stderr=True, highlight=False, soft_wrap=True)
app = typer.Typer(
    help="Distil a large NLP model into the best small one.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip

DEFAULT_STORAGE = "results"
UI_PORT = 5000
STOPPING = "Stopping: what runs writes a checkpoint first. Ctrl-C or SIGTERM once more ends it at once."
CHATTERERS = ("optuna", "mlflow", "alembic", "transformers", "datasets", "huggingface_hub")
"""Libraries that put handlers of their own on the screen."""

Storage = Annotated[
    str,
    typer.Option(help="Folder (or file:// URI) for all results.", metavar="DIR_OR_URI", envvar="KDRAY_STORAGE"),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="The same sweep, small: a test of everything in a minute or two.")]
Trials = Annotated[int | None, typer.Option(help="Trials to run; more than before extends a finished sweep.", min=1)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change any setting; repeatable. A searched one is then searched no more.", metavar="NAME=VALUE"
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow server; by default the sweep's, MLFLOW_TRACKING_URI, or a SQLite file in the storage."),
]
LedgerUrl = Annotated[
    str | None, typer.Option("--ledger", help="Database that keeps the trials; by default a file.", metavar="URL")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, such as auto or ray://host:10001.")]
RequireCluster = Annotated[
    bool,
    typer.Option(
        "--require-cluster", help="Fail rather than start a local Ray; so it is on the head of a `ray up` cluster."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove this sweep's earlier results and start over.")]
Local = Annotated[bool, typer.Option("--local", help="Run every job in this process, one at a time: for a debugger.")]


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


@app.command("run")
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


@app.command()
def show(
    sweep: Annotated[Path, typer.Argument(help="STORAGE/NAME: the folder of a finished or running sweep.")],
) -> None:
    """Print the table of a finished or running sweep."""
    with exits():
        Console().print(table(figures_of(SweepPaths(sweep.absolute().parent, sweep.name))))


@app.command("sync")
def sync_sweep(
    sweep: Annotated[Path, typer.Argument(help="STORAGE/NAME: the folder of a sweep that has ended.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server; by default the sweep's own.")] = None,
) -> None:
    """Send MLflow what it missed of a sweep while its server did not answer."""
    with exits():
        paths = SweepPaths(sweep.absolute().parent, sweep.name)
        if paths.settings.exists():
            log_to(paths)
        with open_screen() as screen:
            screen.stage("MLflow")
            synced = sync(paths, tracking_uri, screen.note, lambda done, of: screen.progress("runs", done, of))
        console = Console(soft_wrap=True, highlight=False)
        for line in sent_lines(sweep, synced):
            console.print(line, markup=False)


@app.command()
def ui(
    storage: Annotated[
        str, typer.Argument(help="The storage whose trials to look at.", envvar="KDRAY_STORAGE")
    ] = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(help="Port on loopback.")] = UI_PORT,
) -> None:
    """Open MLflow's user interface for a storage, on loopback only."""
    with exits():
        errors.print(f"MLflow on http://127.0.0.1:{port} for {storage}; Ctrl-C ends it.")
        raise typer.Exit(subprocess.run(ui_command(storage_path(storage), port), check=False).returncode)


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
        if uri := tracking_uri or sweep.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
            sweep = sweep.varied({"tracking.uri": uri})
        if ledger is not None:
            sweep = sweep.varied({"search.ledger": ledger})
        paths = SweepPaths(storage_path(storage), sweep.name)
        log_to(paths)
        with open_screen() as screen, interruptible(lambda: screen.note(STOPPING)):
            outcome = run(
                sweep, paths, screen=screen, address=address, require_cluster=require_cluster, fresh=fresh, local=local
            )
        conclude(outcome)


def conclude(outcome: Outcome) -> None:
    """Print what came out, and where it lies."""
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)
    console.print(table(outcome.figures))
    for sentence in outcome.figures.sentences:
        console.print(sentence, highlight=False)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    console.print(f"\nStudent  {outcome.paths.chosen}\nReport   {outcome.paths.report}", highlight=False)
    console.print(f"Compare  kdray ui {outcome.paths.storage}", highlight=False)
    if outcome.page:
        console.print(f"         then open http://127.0.0.1:{UI_PORT}{outcome.page}", highlight=False)


def sent_lines(sweep: Path, synced: Synced | None) -> list[str]:
    """What `kdray sync` has sent, in words."""
    if synced is None:
        return [f"Nothing to send: {sweep} holds nothing that MLflow has not taken."]
    sent = synced.sent
    missing = [f"Left out, for it is not there any more: {folder}" for folder in sent.missing]
    if not sent.runs:
        return [f"Nothing to send: MLflow at {synced.uri} has everything of {sweep}.", *missing]
    counts = f"runs changed: {len(sent.runs)}, values of metrics: {sent.metrics:,}, folders of files: {sent.folders}"
    return [f"Sent to MLflow at {synced.uri}: {counts}.", *missing]


def settings_of(changes: list[str]) -> dict[str, Any]:
    """The settings written as name=value. Raises SpecError for anything else."""
    for change in changes:
        if change.find("=") < 1:
            raise SpecError(f"--set {change}: write it as name=value, such as --set training.epochs=2.")
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


def log_to(paths: SweepPaths) -> None:
    """Send all logging to the sweep's log file; libraries' warnings included."""
    paths.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(paths.logs / "kdray.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    for name in CHATTERERS:
        chatterer = logging.getLogger(name)
        chatterer.handlers, chatterer.propagate = [], True
    logging.root.addHandler(handler)
    logging.raiseExceptions = False  # a full storage is said once, not at every line that the log cannot take
    logging.root.setLevel(logging.INFO)


class exits:  # noqa: N801  (used as `with exits():`)
    """Turn an error into a sentence on stderr and the exit code; the traceback goes to the log file."""

    def __init__(self, storage: str = "the storage") -> None:
        self.storage = storage

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        error = (error and storage_error(error, self.storage)) or error
        if isinstance(error, KDRayError):
            say(error)
            raise SystemExit(error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            errors.print(
                f"Interrupted; nothing is lost. To go on from here:\n    {resume_command(sys.argv)}", markup=False
            )
            raise SystemExit(EXIT_CODE) from None
        if error is not None and not isinstance(error, SystemExit | typer.Exit):
            log.error("".join(traceback.format_exception(error)))


def resume_command(arguments: Sequence[str]) -> str:
    """The command line that goes on with the sweep that these arguments ran."""
    program = Path(arguments[0])
    said = ["python", arguments[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*said, *(argument for argument in arguments[1:] if argument != "--fresh")])


def say(error: KDRayError) -> None:
    """Print an error as a sentence."""
    log.error("".join(traceback.format_exception(error)))
    errors.print(f"kdray: {error}", markup=False)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KDRayError):
        say(error)
        raise SystemExit(error.exit_code)
    sys.__excepthook__(kind, error, trace)


# A sweep script builds its Sweep before main() is called: a mistake in it must be a sentence all the same.
sys.excepthook = _uncaught
