"""Texts in other encodings than UTF-8: decoded where a setting or a byte order mark names the encoding.

For a message, the encoding of bytes that are not UTF-8 is guessed.
"""

import codecs
import io
import itertools
from typing import Any, BinaryIO, cast

from kdray.errors import DataError

UTF8 = "utf-8"
SET_ENCODING = "Set data.encoding, or save the file as UTF-8."

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding. The marks of UTF-32 come first: one of them begins with one of UTF-16."""
_CHINESE = range(0x4E00, 0x9FA6)
_SCRIPTS = {
    "windows-1251": (range(0x0430, 0x0452),),  # small Cyrillic letters
    "shift_jis": (range(0x3000, 0x3100), _CHINESE),  # punctuation and kana
    "euc_kr": (range(0xAC00, 0xD7A4),),  # Hangul syllables
    "gb18030": (_CHINESE,),
    "big5": (_CHINESE,),
}
"""Encoding -> the characters that are frequent in texts of its language.

The order matters: gb18030 makes Chinese characters of nearly all bytes, so the encodings before it win with the same
share.
"""
_SAMPLE = 2000
"""Bytes before and after a wrong byte that are looked at."""
_DECODED_AT_ONCE = 1 << 18
"""Characters."""


def check_encoding(name: str) -> str:
    """Return the name of an encoding of text. Raises ValueError for a name that Python does not know."""
    try:
        # A codec such as `hex` gives bytes and no text, and raises LookupError here.
        "".encode(name)
    except (LookupError, ValueError):
        raise ValueError(
            f"got {name!r}; Python knows no such encoding. Examples: utf-8, utf-16, windows-1252, "
            f"latin-1, shift_jis, gb18030."
        ) from None
    return name


def as_utf8(stream: BinaryIO, encoding: str | None) -> tuple[BinaryIO, str | None]:
    """The stream as UTF-8 without a byte order mark, and the encoding that its byte order mark names, if not UTF-8.

    `encoding` is that of the stream; None for UTF-8. Reading raises UnicodeError for bytes that are not in it.
    """
    start = cast(io.BufferedReader, stream).peek(4)[:4]
    is_utf8 = encoding is None or codecs.lookup(encoding).name == UTF8
    if is_utf8 and start.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    marked = next((name for mark, name in _MARKS.items() if encoding is None and start.startswith(mark)), None)
    if is_utf8 and marked is None:
        # Not decoded: a message about a single cell can then give the row of a byte that is not UTF-8.
        return stream, None
    return cast(BinaryIO, io.BufferedReader(_Utf8Bytes(stream, encoding or str(marked)), 1 << 20)), marked


def describe_bad_byte(error: UnicodeDecodeError) -> str:
    """The byte that is not UTF-8, and the encoding that the bytes around it are probably in, for a message."""
    sample = error.object[max(0, error.start - _SAMPLE) : error.start + _SAMPLE]
    return f"byte {error.object[error.start]:#04x} is not UTF-8, perhaps {likely_encoding(sample)}"


def wrong_encoding(where: str, error: UnicodeError) -> DataError:
    """The error for a file that is not in the encoding that the setting or its byte order mark names."""
    name, reason = getattr(error, "encoding", "its encoding"), getattr(error, "reason", error)
    return DataError(f"{where}: is not in {name} ({reason}). Correct data.encoding, or save the file as UTF-8.")


def likely_encoding(data: bytes) -> str:
    """The name of the encoding that bytes which are not UTF-8 are probably in: a guess for a message."""
    if data.count(0) > len(data) // 4:
        # Text in a Latin script has a zero byte in each pair: the second one if the low byte comes first.
        return "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    unusual = sum(byte >= 0x80 for byte in data)
    neighbours = sum(first >= 0x80 and second >= 0x80 for first, second in itertools.pairwise(data))
    if neighbours < unusual / 2:
        # In western European languages, most accented letters stand alone between letters of ASCII.
        return "windows-1252"
    shares = {name: _share_of_script(data, name) for name in _SCRIPTS}
    return max(shares, key=lambda name: shares[name])


def _share_of_script(data: bytes, encoding: str) -> float:
    """The share of frequent characters of the encoding's language among all that are not ASCII, from 0 to 1."""
    characters = [ord(each) for each in data.decode(encoding, "replace") if not each.isascii()]
    return sum(any(each in some for some in _SCRIPTS[encoding]) for each in characters) / max(1, len(characters))


class _Utf8Bytes(io.RawIOBase):
    """The bytes of a text in UTF-8, decoded from a stream in another encoding."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._text = io.TextIOWrapper(cast(Any, stream), encoding, newline="")
        self._encoded = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._encoded:
            self._encoded = self._text.read(_DECODED_AT_ONCE).encode()
        size = min(len(buffer), len(self._encoded))
        buffer[:size], self._encoded = self._encoded[:size], self._encoded[size:]
        return size
