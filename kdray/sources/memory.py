"""How much memory the rows of a sweep may use: a small file may hold very many rows, or very large ones.

The readers count what they unpack, before they unpack it where a format allows this, else piece by piece.
"""

from kdray.errors import DataError

BYTES_IN_GB = 10**9
DEFAULT_MAX_GB = 2.0
"""Larger than all public text classification data sets in common use; smaller than the memory of most machines."""


class Budget:
    """The memory that the rows of all files of a source may use together."""

    def __init__(self, max_gb: float = DEFAULT_MAX_GB) -> None:
        self._max_gb, self._used = max_gb, 0

    def use(self, size: int, where: str) -> None:
        """Count `size` bytes of rows. Raises DataError, which names `where`, if all together are more than allowed."""
        self.check(size, where)
        self._used += size

    def take_over(self, attempt: "Budget") -> None:
        """Count what a copy of this budget has counted, after an attempt that may have failed."""
        self._used = attempt._used

    def check(self, size: int, where: str) -> None:
        """Raise DataError if there is no room for `size` more bytes of rows."""
        if self._used + size > self._max_gb * BYTES_IN_GB:
            raise DataError(
                f"{where}: unpacked, the rows need more than {self._max_gb:g} GB of memory (data.max_gb). Set a higher "
                f"data.max_gb if the data are this large; otherwise do not use the file, it is damaged or hostile."
            )
