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
from kdray.data.findings import BLANK
from kdray.data.gold import OwnText
from kdray.data.task_data import CheckedTable, LabelOrder
from kdray.errors import DataError
from kdray.losses.top_k import TopK, logs_only
from kdray.losses.vocabulary import VOCABULARY, Vocabulary
from kdray.sources.tables import Table
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.task import GoldRows, Outputs, Task
from kdray.tasks.token_metrics import FIRST, TOKEN_METRICS, count_texts, unigram_perplexity

PERPLEXITY = Metric("perplexity", "minimize", hub="perplexity", is_share=False)
# All tasks have a loss, so that its heading cannot name the nats.
LOSS = Metric("loss", "minimize", is_share=False)
ACCURACY = Metric("token_accuracy", hub="accuracy")
FIRST_FIVE = Metric("top5_accuracy", heading="top-5 accuracy", noun="accuracy of the first five tokens")

_NO_LABELS = "learns from all its texts, and none needs a label. "
REFUSED = {
    **{
        f"data.{name}": f"{_NO_LABELS}Add the texts to data.train."
        for name in ("unlabelled", "keep_unlabelled", "max_labelled", "max_unlabelled")
    },
    **{f"task.{name}": f"{_NO_LABELS}Leave it out." for name in ("label", "labels")},
    "task.max_length": "cuts no text off: it reads long texts in blocks. Set task.block.",
    **{
        f"augmentation.{name}": "learns the texts as they are: a changed text is not the gold of anything. Leave "
        "augmentation out."
        for name in ("copies", "ways")
    },
    "teacher.outputs": "needs a teacher that answers at every token, out of its whole vocabulary, and a file holds no "
    "such answers. Give a model as the teacher.",
    "teacher.labels": "has tokens as outputs, whose meaning the tokenizer says. Leave it out.",
    "student.vocabulary": "has one vocabulary, the teacher's: perplexities of two vocabularies cannot be compared. "
    "Leave it out, and cut the vocabulary of the student (student.checkpoint) in a sweep with labels.",
    "student.tokenizer": "has one vocabulary, the teacher's: perplexities of two vocabularies cannot be compared. "
    "Leave it out, and let students of a sweep with labels read words.",
    "training.quantised": "computes its outputs in parts, which int8 rounds in different ways. Leave it out; the form "
    "int8 of a student can still be measured and exported.",
}
"""The settings of a sweep that a language model does not have; see `Task`."""


class LanguageModel(Task):
    """The column with the texts, the size of a block, and how many outputs of a teacher are kept."""

    block: int = Field(128, ge=8)
    """The tokens of a block, special tokens included: what a model reads at once. Longer texts are cut into several."""
    top_k: int = Field(16, ge=FIRST)
    """The most probable tokens of the teacher that are kept at each answer, out of the whole vocabulary; all others
    together are one more class. docs/language-models.md has the bytes."""

    max_length: ClassVar[property] = property(lambda self: self.block)  # type: ignore[misc]
    length_setting: ClassVar[str] = "task.block"
    answers_each_word: ClassVar[bool] = False
    averages_teachers: ClassVar[bool] = False
    refused: ClassVar[Mapping[str, str]] = REFUSED
    agreement_meaning: ClassVar[str] = "the share of tokens for which both have the same most probable one"
    comparability: ClassVar[str] = (
        "Perplexity and loss depend on the tokenizer, on task.block and on how tokens are masked: compare them only "
        "with figures for the same texts, tokens and masks, such as all those here."
    )
    control_name: ClassVar[str] = "without the teacher"
    without_teacher: ClassVar[str] = "without the teacher"

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
        is_blank = pc.match_substring_regex(texts, BLANK)
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

    def describe_division(self, split: str, parts_N: np.ndarray, tokens_N: np.ndarray) -> str:
        """See `TaskData`: documents, blocks and tokens, and the documents that are much shorter than a block."""
        blocks, short = int(parts_N.sum()), int((2 * tokens_N < self.block).sum())
        note = (
            f"{split}: {_counted(len(parts_N), 'document')} in {_counted(blocks, 'block')} of at most {self.block} "
            f"tokens (task.block), {_counted(int(tokens_N.sum()), 'token')} in all; "
            f"{_counted(short, 'document')} {'is' if short == 1 else 'are'} shorter than half a block"
        )
        longest = int(tokens_N.max())
        if longest >= self.block:
            return f"{note}."
        return (
            f"{note}. No document fills a block: the longest has {longest:,} tokens. If the rows are parts of longer "
            "texts, give these as documents (data.format); otherwise a smaller task.block reads the same."
        )

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
        return float(np.mean(_first(student) == _first(teacher)))

    def chance(self, rows: GoldRows) -> float:
        """The perplexity of a model that knows the frequencies of the tokens alone."""
        return unigram_perplexity(rows.gold)

    def required_quality(self, chance: float, above_chance: float) -> float:
        """See `Task`: a share of the perplexity of answers that do not depend on the text."""
        return chance * (1 - above_chance)

    def texts_to_predict(self, table: Table) -> tuple[list[Any], None]:
        """See `Task`."""
        return text_column(table, self.text, "task.text").to_pylist(), None

    @property
    def counted(self) -> str:
        """Tokens."""
        return "tokens"

    def compared_numbers(self, outputs: Outputs) -> np.ndarray:
        """The logarithms of probabilities: of two tokens that are nearly as probable, rounding decides the order."""
        return logs_only(outputs.logits_AxC)


def _first(outputs: Outputs) -> np.ndarray:
    """The most probable token of each answer (A)."""
    return TopK.of_rows(torch.from_numpy(outputs.logits_AxC)).ids_AxK[:, 0].numpy()


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Mapping[str, Any]:
    """The tokens of texts (`input_ids`) without special tokens around them, not truncated."""
    encoded: Mapping[str, Any] = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        # A tokenizer warns about texts that are longer than its model can read; they are cut into blocks.
        verbose=False,
    )
    return encoded
