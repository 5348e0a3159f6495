"""Metrics of taggers, as functions of counts that may be summed over any sentences.

The counts of a sentence are K = 3 T + 2 numbers: right, predicted and gold spans of each type, then right words, words.
For plain tags, T are the tags, and the words take the place of the spans. F1, precision and recall are computed as by
seqeval and scikit-learn: what would be divided by zero is 0.
Shapes: N sentences, A words, T types, K counts; `...` is any shape, such as that of bootstrap draws.
"""

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from kdray.tasks.counts import MetricOfCounts
from kdray.tasks.spans import Spans, read_spans
from kdray.tasks.tag_schemes import TagSet


def count_sentences(
    tags: TagSet, predicted_A: np.ndarray, gold_A: np.ndarray, starts_N1: np.ndarray, strict: bool = False
) -> sparse.csr_array:
    """The counts of each sentence (N x K, int64), from the numbers of the predicted and of the gold tags.

    `starts_N1` has the first word of each sentence and the number of words; `strict` is that of `read_spans`. A word
    with the gold tag -1 has no gold, and is left out.
    """
    has_gold_A = gold_A >= 0
    if not has_gold_A.all():
        starts_N1 = np.concatenate(([0], np.cumsum(has_gold_A)))[starts_N1]
        predicted_A, gold_A = predicted_A[has_gold_A], gold_A[has_gold_A]
    predicted, gold = (_units(tags, tags_A, starts_N1, strict) for tags_A in (predicted_A, gold_A))
    size = len(tags.types)
    is_right_A = predicted_A == gold_A
    sentences_A = np.repeat(np.arange(len(starts_N1) - 1), np.diff(starts_N1))
    right_M = _are_in(predicted, gold, len(gold_A))
    rows = [predicted.sentences_M[right_M], predicted.sentences_M, gold.sentences_M]
    columns = [predicted.types_M[right_M], size + predicted.types_M, 2 * size + gold.types_M]
    rows += [sentences_A[is_right_A], sentences_A]
    columns += [np.full(is_right_A.sum(), 3 * size), np.full(len(gold_A), 3 * size + 1)]
    every_row, every_column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(every_row), np.int64)
    # Entries at the same place are added.
    return sparse.csr_array((ones, (every_row, every_column)), shape=(len(starts_N1) - 1, 3 * size + 2))


def precision(counts_K: np.ndarray) -> np.ndarray:
    """The share of the predicted spans that are right, of counts (... x K)."""
    right, predicted, _ = (each.sum(axis=-1) for each in _by_type(counts_K))
    return _ratio(right, predicted)


def recall(counts_K: np.ndarray) -> np.ndarray:
    """The share of the gold spans that are predicted, of counts (... x K)."""
    right, _, gold = (each.sum(axis=-1) for each in _by_type(counts_K))
    return _ratio(right, gold)


def micro_f1(counts_K: np.ndarray) -> np.ndarray:
    """The F1 of all spans together, whatever their type, of counts (... x K)."""
    return _f1(*(each.sum(axis=-1) for each in _by_type(counts_K)))


def macro_f1(counts_K: np.ndarray) -> np.ndarray:
    """The mean F1 of the types that occur in gold or predicted spans, of counts (... x K); 0 if none occurs."""
    right, predicted, gold = _by_type(counts_K)
    occurs = predicted + gold > 0
    return _ratio(np.where(occurs, _f1(right, predicted, gold), 0.0).sum(axis=-1), occurs.sum(axis=-1))


def type_f1(counts_K: np.ndarray, number: int) -> np.ndarray:
    """The F1 of the type with this number, of counts (... x K)."""
    return _f1(*(each[..., number] for each in _by_type(counts_K)))


def type_support(counts_K: np.ndarray) -> np.ndarray:
    """The number of gold spans of each type (... x T), of counts (... x K)."""
    return _by_type(counts_K)[2]


def word_accuracy(counts_K: np.ndarray) -> np.ndarray:
    """The share of the words with the right tag, of counts (... x K)."""
    counts = np.asarray(counts_K)
    return _ratio(counts[..., -2], counts[..., -1])


SPAN_METRICS: Mapping[str, MetricOfCounts] = {
    "span_f1": micro_f1,
    "macro_f1": macro_f1,
    "precision": precision,
    "recall": recall,
    "token_accuracy": word_accuracy,
}
"""The metrics that are functions of summed counts; of plain tags, macro F1 and the accuracy have a meaning."""


def _units(tags: TagSet, tags_A: np.ndarray, starts_N1: np.ndarray, strict: bool) -> Spans:
    """The spans; for plain tags each word, with its tag as the type."""
    if tags.scheme.has_spans:
        return read_spans(tags, tags_A, starts_N1, strict)
    words_A = np.arange(len(tags_A))
    sentences_A = np.repeat(np.arange(len(starts_N1) - 1), np.diff(starts_N1))
    return Spans(sentences_M=sentences_A, types_M=tags.tag_types[tags_A], first_M=words_A, ends_M=words_A + 1)


def _are_in(spans: Spans, others: Spans, words: int) -> np.ndarray:
    """Whether each span is also one of the others: with the same type, the same first and the same last word."""
    # At most one span begins at a word, so its end and its type can be looked up by its first word.
    ends_A, types_A = np.full(words, -1), np.full(words, -1)
    ends_A[others.first_M], types_A[others.first_M] = others.ends_M, others.types_M
    return (ends_A[spans.first_M] == spans.ends_M) & (types_A[spans.first_M] == spans.types_M)


def _by_type(counts_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The right, the predicted and the gold spans of each type (... x T each)."""
    counts = np.asarray(counts_K)
    size = (counts.shape[-1] - 2) // 3
    return counts[..., :size], counts[..., size : 2 * size], counts[..., 2 * size : 3 * size]


def _f1(right: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    # Not 2 right / (predicted + gold), which differs from what seqeval prints in the last digit.
    precisions, recalls = _ratio(right, predicted), _ratio(right, gold)
    return _ratio(2.0 * precisions * recalls, precisions + recalls)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.asarray(denominator) != 0)
