"""What all commands share: how they are found, where they log, and how they end.

Exit codes: 0 a student was chosen; 1 failed; 2 refused, or no usable storage; 3 finished, but no student satisfies the
rule; 130 interrupted.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import typer
from rich.console import Console

from kdray.errors import KDRayError, storage_error
from kdray.slots.interrupts import EXIT_CODE
from kdray.storage.paths import SweepPaths, sweep_paths
from kdray.tracking.origin import command_line

log = logging.getLogger(__name__)
logging.getLogger("kdray").addHandler(
    logging.NullHandler()
)  # else Python prints errors itself until there is a log file
stderr_console = Console(stderr=True, highlight=False, soft_wrap=True)

CHATTERERS = ("optuna", "mlflow", "alembic", "transformers", "datasets", "huggingface_hub")
"""Libraries that put handlers of their own on the screen."""


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


def wide_console() -> Console:
    """Standard output; a file or a pipe gets whole rows."""
    return Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=160)


def open_log_of(sweep: str) -> SweepPaths:
    """The paths of STORAGE/NAME; where there is such a sweep, its log file has what follows."""
    paths = sweep_paths(sweep)
    if paths.settings.exists():
        log_to(paths)
    return paths


class exit_on_error:  # noqa: N801  (used as `with exits():`)
    """Turn an error into a sentence on stderr and the exit code; the traceback goes to the log file."""

    def __init__(self, storage: str = "the storage") -> None:
        self.storage = storage

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        error = (error and storage_error(error, self.storage)) or error
        if isinstance(error, KDRayError):
            print_error(error)
            raise SystemExit(error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            stderr_console.print(
                f"Interrupted; nothing is lost. To go on from here:\n    {resume_command(sys.argv)}", markup=False
            )
            raise SystemExit(EXIT_CODE) from None
        if error is not None and not isinstance(error, SystemExit | typer.Exit):
            log.error("".join(traceback.format_exception(error)))


def resume_command(arguments: Sequence[str]) -> str:
    """The command line that goes on with the sweep that these arguments ran."""
    return command_line([argument for argument in arguments if argument != "--fresh"])


def print_error(error: KDRayError) -> None:
    """Print an error as a sentence."""
    log.error("".join(traceback.format_exception(error)))
    stderr_console.print(f"kdray: {error}", markup=False)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KDRayError):
        print_error(error)
        raise SystemExit(error.exit_code)
    sys.__excepthook__(kind, error, trace)


# A sweep script builds its Sweep before main() is called: a mistake in it must be a sentence all the same.
sys.excepthook = _uncaught
