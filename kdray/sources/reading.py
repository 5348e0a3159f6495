"""Reading: the settings that say how files are written, and how much memory their rows may need."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from kdray.settings import MAY_CHANGE, Names, Settings, later_field
from kdray.sources.encodings import check_encoding
from kdray.sources.memory import DEFAULT_MAX_GB
from kdray.sources.plain_text import UNITS, check_pattern


class Reading(Settings):
    """How files are read; what is not set is recognised, or is as usual for the ending of the file."""

    format: Literal["csv", "tsv", "conll", "conllu", "lines", "paragraphs", "documents"] | None = None
    """The format of files whose endings do not say it, such as `conll` for a train.txt with a word in each line, or
    `tsv` for a train.csv with tabs, in which a quote is a character like any other. `lines`, `paragraphs` and
    `documents` are plain text, of which each line, each paragraph (up to a blank line) or each file is a row. Files
    that data.source, data.train and so on name may then have any ending. None: by the endings."""
    document_start: str | None = later_field(None, min_length=1)
    """With format="documents": a regular expression (RE2) that the first line of each document in a file matches, such
    as `^ = [^=].* = $` in WikiText. None: a file is one document."""
    columns: Names = ()
    """The names of the columns, for csv, tsv and txt files without a header, and for CoNLL files. The last one may be
    `...` for files without quotes around cells: rows then may have further cells, which are left out."""
    delimiter: str | None = Field(None, min_length=1, max_length=3)
    """The character between the cells of csv, tsv and txt files, or the word `tab`. None: that of the file's ending, or
    the only other one in the first line."""
    encoding: str | None = None
    """The encoding of csv, tsv, txt, json and CoNLL files and of plain text, such as windows-1252. None: UTF-8, or by a
    byte order mark."""
    field: str | None = Field(None, min_length=1)
    """The key in a json file with the list of rows below it; a dotted name for a key below a key."""
    max_gb: float = Field(DEFAULT_MAX_GB, gt=0, json_schema_extra=MAY_CHANGE)
    """The maximum memory in GB that the rows of all files may need, unpacked."""

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, name: str | None) -> str | None:
        delimiter = "\t" if name in ("tab", "\\t") else name
        if delimiter is not None and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n'):
            raise ValueError(f"got {name!r}; give one ASCII character, such as ';', or the word tab.")
        return delimiter

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str | None) -> str | None:
        return None if name is None else check_encoding(name)

    @field_validator("document_start")
    @classmethod
    def _check_document_start(cls, pattern: str | None) -> str | None:
        return None if pattern is None else check_pattern(pattern)

    @model_validator(mode="after")
    def _check_plain_text(self) -> Self:
        if self.document_start is not None and self.format != "documents":
            raise ValueError("document_start: is for files with documents of plain text. Set format=documents, too.")
        useless = [name for name in ("columns", "delimiter", "field") if getattr(self, name)]
        if self.format in UNITS and useless:
            raise ValueError(
                f"{useless[0]}: plain text (format={self.format}) has one column, text. Leave {useless[0]} out."
            )
        return self
