"""Token classification: a tag for each word of a text, such as names of people and places, or parts of speech.

`tag_schemes` says how tags make spans, `windows` how words become tokens, `span_metrics` how spans are counted.
Shapes: N sentences, A words, C tags.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator

from kdray.data.cells import text_column
from kdray.data.list_cells import word_column
from kdray.data.tagged_texts import read_tagged_spans, read_tagged_words
from kdray.data.task_data import CheckedTable, Encoded, LabelOrder, TextColumns
from kdray.data.words import PATTERN, Words, split_words
from kdray.losses.softmax import SOFTMAX, Softmax
from kdray.settings import Names
from kdray.sources.tables import Table
from kdray.tasks.answers import PREDICTED
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.label_figures import LabelFigures, label_figures
from kdray.tasks.label_order import LabelDifference
from kdray.tasks.scheme_difference import scheme_difference
from kdray.tasks.serving import Serving
from kdray.tasks.span_answers import SpanAnswer, span_answers
from kdray.tasks.span_metrics import SPAN_METRICS, count_sentences, type_f1, type_support
from kdray.tasks.tag_order import describe_impossible, order_tags, recognise_scheme, scheme_of
from kdray.tasks.tag_schemes import PLAIN, SCHEMES, Scheme, TagSet
from kdray.tasks.task import GoldRows, Outputs, Task
from kdray.tasks.texts import check_columns
from kdray.tasks.usage import onnx_tag_code, span_code, tag_code
from kdray.tasks.windows import count_tokens, encode_words, load_word_tokenizer

SPAN_F1, MACRO_F1 = Metric("span_f1", hub="f1"), Metric("macro_f1", hub="f1")
TOKEN_ACCURACY = Metric("token_accuracy", hub="accuracy")
PRECISION, RECALL = Metric("precision", hub="precision"), Metric("recall", hub="recall")
WORDS = "words"
"""The column, of texts to predict, with the places of their words."""


class TokenClassification(Task):
    """The columns to read, the tags and their scheme, and the maximum number of tokens in one window of a text."""

    kind: Literal["token_classification"] = "token_classification"
    text: str = Field("tokens", min_length=1)
    """The name of the column with the words of a text, as a list; or with the text, for rows with spans of it."""
    label: str = Field("tags", min_length=1)
    """The name of the column with the tags of the words, as a list of names or of numbers; or with the spans of the
    text: objects with `start`, `end` (the character after the last one) and `label`."""
    labels: Names | None = None
    """The tags in the order of the model's outputs; for data with the numbers 0, 1, ..., the names of these numbers.
    None: the order in the dataset's own features, otherwise O and then the tags of each type."""
    scheme: Literal["BIO", "IOB1", "BIOES", "BILOU", "plain"] | None = None
    """How tags make spans. `plain`: they do not, as parts of speech. None: one of the others, as the tags show."""

    head: ClassVar[str] = "ForTokenClassification"
    answers_each_word: ClassVar[bool] = True
    pipeline: ClassVar[str] = "token-classification"
    agreement_meaning: ClassVar[str] = "the share of words with the same predicted tag"

    @property
    def name(self) -> str:
        """See `Task`."""
        return "token classification"

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        check_columns(text=self.text, label=self.label)
        if self.pair is not None:
            raise ValueError(
                "TokenClassification.pair: the words of single texts are tagged, not those of pairs. Leave out pair."
            )
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels must be at least two different tags, got {', '.join(self.labels)}.")
        return self

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """See `TaskData`. Raises DataError for words and tags of different numbers, and for wrong spans, too."""
        label = None if may_lack_gold and table.column(self.label) is None else self.label
        if _has_texts(table, self.text):
            return read_tagged_spans(table, self.text, label)
        return read_tagged_words(table, self.text, label, self.class_names(table) or class_names)

    @property
    def gold_columns(self) -> tuple[str, ...]:
        """See `Task`."""
        return (self.label,)

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """See `TaskData`."""
        return table.class_names.get(self.label)

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """See `TaskData`. Raises DataError for tags that are outside of the scheme, and where no word has a tag."""
        return order_tags(train, self.labels or class_names, self._given_scheme)

    def describe_gold(
        self, parts: Sequence[CheckedTable], train: Sequence[CheckedTable], order: LabelOrder
    ) -> Sequence[str]:
        """See `TaskData`: tags at impossible places."""
        return describe_impossible(parts, order, self._given_scheme or recognise_scheme(train, order))

    @property
    def _given_scheme(self) -> Scheme | None:
        return SCHEMES[self.scheme] if self.scheme else None

    def _tag_set(self, labels: Sequence[str]) -> TagSet:
        return TagSet(self._given_scheme or scheme_of(labels), tuple(labels))

    def label_difference(self, outputs: Sequence[str], labels: Sequence[str]) -> LabelDifference | None:
        """See `Task`: the tags are in different schemes."""
        return scheme_difference(outputs, labels)

    def tokenizer(self, folder: Path) -> Any:
        """See `Task`."""
        return load_word_tokenizer(folder)

    def encode(self, tokenizer: Any, columns: TextColumns, for_training: bool = False) -> Encoded:
        """See `TaskData`. A text of more tokens than `max_length` becomes several windows, which overlap."""
        encoded = encode_words(tokenizer, columns["text"], self.max_length)
        return Encoded(encoded.inputs, encoded.places, encoded.sentences)

    def lengths(self, tokenizer: Any, columns: TextColumns) -> list[int]:
        """See `TaskData`."""
        return count_tokens(tokenizer, columns["text"])

    @property
    def quality(self) -> Metric:
        """F1 of all spans together; for plain tags the share of words with the right tag."""
        return TOKEN_ACCURACY if self.scheme == PLAIN.name else SPAN_F1

    def metrics(self, labels: Sequence[str] | None) -> tuple[Metric, ...]:
        """F1 of the spans, mean F1 of their types, precision, recall, and the share of words with the right tag."""
        if self.scheme == PLAIN.name:
            return (TOKEN_ACCURACY, MACRO_F1)
        return (SPAN_F1, MACRO_F1, PRECISION, RECALL, TOKEN_ACCURACY)

    def distribution(self, gold: np.ndarray) -> Softmax:
        """See `Task`."""
        return SOFTMAX

    def counts(self, outputs: Outputs, rows: GoldRows) -> Counts:
        """See `Task`."""
        tags = self._tag_set(rows.labels)
        counts_NxK = count_sentences(tags, outputs.logits_AxC.argmax(axis=1), rows.gold, rows.example_starts)
        names = self.metric_names(rows.labels)
        return Counts(counts_NxK.astype(np.float64), {name: SPAN_METRICS[name] for name in names})

    def agreement(self, student: Outputs, teacher: Outputs) -> float:
        """The share of words with the same tag."""
        return float(np.mean(student.logits_AxC.argmax(axis=1) == teacher.logits_AxC.argmax(axis=1)))

    def chance(self, rows: GoldRows) -> float:
        """No span is found without reading the text; of plain tags, the share of the most frequent one is right."""
        return float(np.bincount(rows.gold).max() / len(rows.gold)) if self.scheme == PLAIN.name else 0.0

    def columns_of(self, texts: Sequence[Any], pairs: Sequence[str] | None) -> TextColumns:
        """The words of texts to predict, by the same rule that divides texts with spans; a list has its words."""
        words = [split_words(text) if isinstance(text, str) else Words.of_list(text) for text in texts]
        return {"text": [list(each.texts) for each in words], WORDS: words}

    def texts_to_predict(self, table: Table) -> tuple[list[Any], None]:
        """See `Task`. A column with lists has the words of the texts."""
        if _has_texts(table, self.text):
            return text_column(table, self.text, "task.text").to_pylist(), None
        words = word_column(table, self.text, "task.text")
        return pa.LargeListArray.from_arrays(pa.array(words.starts, pa.int64()), words.values).to_pylist(), None

    def predicts(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        tags = self._tag_set(labels)
        what = f"spans of {len(tags.types)} types" if tags.scheme.has_spans else f"one of {len(labels)} tags a word"
        return f"{what}: {', '.join(tags.types)}"

    @property
    def counted(self) -> str:
        """Spans; of plain tags words."""
        return "words" if self.scheme == PLAIN.name else "spans"

    def label_figures(self, outputs: Outputs, rows: GoldRows) -> dict[str, LabelFigures]:
        """See `Task`: of the types of spans; of plain tags those of the tags."""
        types = self._tag_set(rows.labels).types
        sums_K = self.counts(outputs, rows).sums()
        f1_T = np.array([type_f1(sums_K, number) for number in range(len(types))])
        return label_figures(types, f1_T, type_support(sums_K))

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        # The pipeline of transformers groups words by the prefixes B and I only.
        can_be_grouped = self._tag_set(labels).scheme.meanings.keys() == {"B", "I"}
        return span_code(self.max_length) if can_be_grouped else tag_code(self.max_length)

    def onnx_code(self, file: str) -> str:
        """See `Task`."""
        return onnx_tag_code(file, self.max_length)

    def serving(self, labels: Sequence[str]) -> Serving:
        """See `Task`: the spans, while the pyfunc of transformers would join the labels of the tokens by commas."""
        span = {"text": "string", "start": "long", "end": "long", "label": "string", "score": "double"}
        settings = {"answers": "spans", "word_pattern": PATTERN, "has_spans": self._tag_set(labels).scheme.has_spans}
        return Serving({"spans": [span]}, settings)

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """See `Task`."""
        return (PREDICTED,)

    def answers(self, outputs: Outputs, columns: TextColumns, labels: Sequence[str]) -> list[SpanAnswer]:
        """The spans of each text; of plain tags, each word is a span."""
        probabilities_AxC = torch.softmax(torch.from_numpy(outputs.logits_AxC), dim=-1).numpy()
        return span_answers(probabilities_AxC, columns[WORDS], self._tag_set(labels))


def _has_texts(table: Table, name: str) -> bool:
    """Whether the cells of this column are texts; False for lists, and where there is no such column."""
    column = table.column(name)
    if isinstance(column, list):
        return isinstance(next((cell for cell in column if cell is not None), None), str)
    return column is not None and not pa.types.is_nested(column.type)
