"""Texts and pairs of texts that a model answers as a whole: their columns, their encoding, and their length."""

from typing import Any

from kdray.data.cells import text_column
from kdray.data.task_data import Encoded, TextColumns
from kdray.errors import SpecError
from kdray.sources.tables import Table
from kdray.tasks.task import Task


class TextTask(Task):
    """A task with one answer for a text, or for a pair of texts."""

    def read_texts(self, table: Table) -> dict[str, Any]:
        """The columns of the texts and of the second texts, as `CheckedTable` has them."""
        return {
            "texts": text_column(table, self.text, "task.text"),
            "pairs": text_column(table, self.pair, "task.pair") if self.pair else None,
        }

    def texts_to_predict(self, table: Table) -> tuple[list[Any], list[str] | None]:
        """See `Task`."""
        columns = self.read_texts(table)
        pairs = columns["pairs"]
        return columns["texts"].to_pylist(), None if pairs is None else pairs.to_pylist()

    def encode(self, tokenizer: Any, columns: TextColumns, for_training: bool = False) -> Encoded:
        """Tokenise the texts, truncated to `max_length`.

        Raises SpecError if `max_length` is greater than the maximum length of the tokenizer.
        """
        check_max_length(self.max_length, tokenizer)
        encoded = tokenizer(
            list(columns["text"]),
            list(columns["pair"]) if "pair" in columns else None,
            truncation=True,
            max_length=self.max_length,
            padding=False,
            # Rows derives the mask from the length of each row.
            return_attention_mask=False,
            # Without token types, a model such as BERT cannot tell the two texts of a pair apart.
            return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        )
        return Encoded({name: encoded[name] for name in encoded if name in tokenizer.model_input_names})

    def lengths(self, tokenizer: Any, columns: TextColumns) -> list[int]:
        """The number of tokens of each text, with the special tokens, if it were not truncated."""
        pairs = list(columns["pair"]) if "pair" in columns else None
        # A tokenizer warns about texts that are longer than its model can read, which is what is asked here.
        encoded = tokenizer(list(columns["text"]), pairs, truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]


def check_columns(**columns: str | tuple[str, ...] | None) -> None:
    """Raise ValueError if two of these settings name the same column; a setting may name several."""
    names = [name for each in columns.values() if each for name in ([each] if isinstance(each, str) else each)]
    if len(set(names)) < len(names):
        *first, last = columns
        raise ValueError(f"{', '.join(first)} and {last} must be different columns, got {', '.join(names)}.")


def check_max_length(max_length: int, tokenizer: Any, setting: str = "task.max_length") -> None:
    """Raise SpecError if the model of this tokenizer reads fewer tokens; `setting` has the number."""
    if max_length > tokenizer.model_max_length:
        raise SpecError(f"{setting}: got {max_length}; this model takes at most {tokenizer.model_max_length} tokens.")
