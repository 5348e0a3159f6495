"""What the two tasks of language models have in common: the text is its own gold, and is read in blocks of tokens.

A row of the data is a document. It is divided into train, validation and test before it is cut into blocks, and no
block has text of two documents. Shapes: A answers, V tokens of the vocabulary, D numbers that are kept of an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow.compute as pc
import torch
from pydantic import Field, model_validator

from kdray.data.cells import text_column
from kdray.data.gold import OwnText
from kdray.data.task_data import CheckedTable, LabelOrder, TextColumns
from kdray.errors import DataError
from kdray.losses.top_k import TopK
from kdray.losses.vocabulary import VOCABULARY, Vocabulary
from kdray.sources.tables import Table
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.task import GoldRows, Outputs, Task
from kdray.tasks.token_metrics import FIRST, TOKEN_METRICS, count_texts

PERPLEXITY = Metric("perplexity", "minimize", hub="perplexity", is_share=False)
LOSS = Metric("loss", "minimize", heading="loss (nats)", noun="loss in nats a token", is_share=False)
ACCURACY = Metric("token_accuracy", hub="accuracy")
FIRST_FIVE = Metric("top5_accuracy", heading="top-5 accuracy", noun="accuracy of the first five tokens")


class LanguageModel(Task):
    """The column with the texts, the size of a block, and how many outputs of a teacher are kept."""

    block: int = Field(128, ge=8)
    """The tokens of a block, special tokens included: what a model reads at once. Longer texts are cut into several."""
    top_k: int = Field(16, ge=FIRST)
    """The most probable tokens of the teacher that are kept at each answer, out of the whole vocabulary; all others
    together are one more class. docs/language-models.md has the bytes, and the share that is captured."""

    max_length: ClassVar[property] = property(lambda self: self.block)  # type: ignore[misc]
    answers_each_word: ClassVar[bool] = False
    agreement_meaning: ClassVar[str] = "the share of tokens for which both have the same most probable one"

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        if self.pair is not None:
            raise ValueError(f"{type(self).__name__}.pair: a language model reads single texts. Leave out pair.")
        return self

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """See `TaskData`. Blank texts are left out, with a note; raises DataError if no other one is there."""
        texts = text_column(table, self.text, "task.text")
        is_blank = pc.match_substring_regex(texts, r"^\s*$")
        kept = texts.filter(pc.invert(is_blank))
        blank = len(texts) - len(kept)
        if not len(kept) and len(texts):
            raise DataError(
                f"{table.where}, column {self.text!r}: all {len(texts):,} texts are blank. Give a file with text."
            )
        notes = (f"{table.where}: {blank:,} of {len(texts):,} texts are blank and are left out.",) if blank else ()
        return CheckedTable(where=table.where, texts=kept, pairs=None, gold=OwnText(len(kept)), notes=notes)

    @property
    def gold_columns(self) -> tuple[str, ...]:
        """None: the text is the gold."""
        return ()

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """Tokens have no names here."""
        return None

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """No labels."""
        return LabelOrder((), {})

    def lengths(self, tokenizer: Any, columns: TextColumns) -> list[int]:
        """No text is truncated: each counts as one block at most."""
        return [min(len(ids), self.block) for ids in token_ids(tokenizer, columns["text"])["input_ids"]]

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """None: the outputs are the vocabulary of the model."""
        return {}

    def model_labels(self, folder: Any) -> tuple[str, ...]:
        """None: tokens are no labels."""
        return ()

    @property
    def quality(self) -> Metric:
        """Perplexity."""
        return PERPLEXITY

    def metrics(self, labels: Sequence[str] | None) -> tuple[Metric, ...]:
        """Perplexity, the loss in nats a token, and how often the token is the first one or among the first five."""
        return (PERPLEXITY, LOSS, ACCURACY, FIRST_FIVE)

    def distribution(self, gold: np.ndarray) -> Vocabulary:
        """See `Task`."""
        return VOCABULARY

    def counts(self, outputs: Outputs, rows: GoldRows) -> Counts:
        """See `Task`."""
        return Counts(count_texts(outputs.logits_AxC, rows.gold, rows.example_starts), TOKEN_METRICS)

    def agreement(self, student: Outputs, teacher: Outputs) -> float:
        """The share of answers with the same most probable token."""
        first = [self._first(outputs) for outputs in (student, teacher)]
        return float(np.mean(first[0] == first[1]))

    def _first(self, outputs: Outputs) -> np.ndarray:
        """The most probable token of each answer (A)."""
        return TopK.of_rows(torch.from_numpy(outputs.logits_AxC)).ids_AxK[:, 0].numpy()

    def chance(self, rows: GoldRows) -> float:
        """The perplexity of the frequencies of the tokens themselves."""
        counts = np.unique(rows.gold[rows.gold >= 0], return_counts=True)[1]
        shares = counts / counts.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def required_quality(self, chance: float, above_chance: float) -> float:
        """See `Task`: a share of the perplexity of answers that do not depend on the text."""
        return chance * (1 - above_chance)


def blocks_of(ids: Sequence[int], room: int, overlap: int = 0) -> list[Sequence[int]]:
    """Cut the tokens of a text into blocks of at most `room`; the last tokens of a block are the first of the next."""
    step = room - overlap
    return [ids[start : start + room] for start in range(0, max(1, len(ids) - overlap), step)]


def token_ids(tokenizer: Any, texts: Sequence[str], **options: Any) -> Mapping[str, Any]:
    """The tokens of texts without special tokens, not truncated."""
    # A tokenizer warns about texts that are longer than its model can read; they are cut into blocks.
    encoded: Mapping[str, Any] = tokenizer(
        list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False, **options
    )
    return encoded
