"""The format of log files: without secrets, and without characters that a terminal obeys when the file is shown."""

import logging

from kdray.safe_text.escaping import terminal_text
from kdray.safe_text.secrets import mask_secrets

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class SafeFormatter(logging.Formatter):
    """Formats log records with secrets masked and control characters visible; further lines of a record are indented.

    Messages contain names and texts from files, and errors of libraries contain addresses with passwords. An indented
    line cannot look like another record.
    """

    def __init__(self) -> None:
        super().__init__(LINE)

    def format(self, record: logging.LogRecord) -> str:
        """The lines of the record and of its traceback."""
        return terminal_text(mask_secrets(super().format(record)))
