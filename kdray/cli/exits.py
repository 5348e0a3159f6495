"""What all commands share: the sweep's log file, the printing of errors, and the exit codes.

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
from kdray.safe_text.escaping import terminal_text
from kdray.safe_text.log_lines import SafeFormatter
from kdray.safe_text.secrets import mask_command, mask_secrets
from kdray.slots.interrupts import EXIT_CODE
from kdray.storage.names import check_links
from kdray.storage.paths import SweepPaths, sweep_paths
from kdray.tracking.origin import command_line

log = logging.getLogger(__name__)
# Without a handler, Python prints errors to stderr itself until a command opens its log file.
logging.getLogger("kdray").addHandler(logging.NullHandler())
stderr_console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

LOGGERS_WITH_HANDLERS = ("optuna", "mlflow", "alembic", "transformers", "datasets", "huggingface_hub")
"""Loggers of libraries that add handlers of their own, which print on the screen."""


def log_to(paths: SweepPaths) -> None:
    """Send all log records, and the warnings of libraries, to the sweep's log file."""
    check_links(paths.root, paths.storage)
    paths.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(paths.logs / "kdray.log")
    handler.setFormatter(SafeFormatter())
    logging.captureWarnings(True)
    for name in LOGGERS_WITH_HANDLERS:
        library_log = logging.getLogger(name)
        library_log.handlers, library_log.propagate = [], True
    logging.root.addHandler(handler)
    # When the storage is full, logging would print a traceback for every record. The command reports the error once.
    logging.raiseExceptions = False
    logging.root.setLevel(logging.INFO)


def wide_console() -> Console:
    """A console on standard output; in a file or a pipe it does not break the rows of a table."""
    # Without emoji=False, rich would replace `:name:` in a text by a picture.
    return Console(emoji=False) if sys.stdout.isatty() else Console(soft_wrap=True, width=160, emoji=False)


def open_log_of(sweep: str) -> SweepPaths:
    """The paths of STORAGE/NAME; if a sweep exists there, log records go to its log file from now on."""
    paths = sweep_paths(sweep)
    if paths.settings.exists():
        log_to(paths)
    return paths


class exit_on_error:  # noqa: N801  (used as `with exit_on_error():`)
    """End the process with one sentence on stderr and an exit code on any error; its traceback goes to the log file."""

    def __init__(self, storage: str = "the storage") -> None:
        self.storage = storage

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        error = storage_error(error, self.storage) or error
        if isinstance(error, KDRayError):
            print_error(error)
            raise SystemExit(error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            stderr_console.print(
                f"Interrupted; nothing is lost. To continue from here:\n    {resume_command(sys.argv)}", markup=False
            )
            raise SystemExit(EXIT_CODE) from None
        if not isinstance(error, SystemExit | typer.Exit):
            log.error("".join(traceback.format_exception(error)))
            # Typer has replaced the hook by Python's own, which prints control characters and secrets as they are.
            sys.excepthook = _exit_on_uncaught


def resume_command(arguments: Sequence[str]) -> str:
    """The command line that continues the sweep which these arguments started; without --fresh, which deletes it."""
    return command_line(mask_command([argument for argument in arguments if argument != "--fresh"]))


def print_error(error: KDRayError) -> None:
    """Print the message of an error on stderr, and write its traceback to the log."""
    log.error("".join(traceback.format_exception(error)))
    stderr_console.print(terminal_text(mask_secrets(f"kdray: {error}")), markup=False)


def _exit_on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KDRayError):
        print_error(error)
        raise SystemExit(error.exit_code)
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(f"{terminal_text(mask_secrets(text))}\n")


# A sweep script builds its Sweep before it calls main(), so outside `exit_on_error`. This hook prints a mistake in the
# Sweep as a sentence too, without a traceback.
sys.excepthook = _exit_on_uncaught
