"""Spans and their metrics are those of seqeval, in both of its modes; those of plain tags are scikit-learn's."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval import scheme as seqeval_schemes
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score

from kdray.tasks import span_metrics
from kdray.tasks.spans import find_impossible, read_spans
from kdray.tasks.tag_schemes import BILOU, BIO, BIOES, IOB1, PLAIN, Scheme, TagSet
from tests.tasks.test_tag_schemes import flat

STRICT_SCHEMES: dict[str, Any] = {
    "BIO": seqeval_schemes.IOB2,
    "IOB1": seqeval_schemes.IOB1,
    "BIOES": seqeval_schemes.IOBES,
    "BILOU": seqeval_schemes.BILOU,
}
each_scheme = pytest.mark.parametrize("scheme", [BIO, IOB1, BIOES, BILOU], ids=lambda scheme: scheme.name)
each_mode = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
TYPES = ("creative-work", "loc", "per")
Sentences = list[list[str]]


@st.composite
def tagged(draw: st.DrawFn, scheme: Scheme, types: tuple[str, ...] = TYPES) -> tuple[Sentences, Sentences]:
    """Predicted and gold tags of some sentences; also without words, and mostly with the same tags."""
    tag = st.sampled_from(scheme.complete(types))
    gold = draw(st.lists(st.lists(tag, max_size=7), min_size=1, max_size=5))
    predicted = [[word if draw(st.integers(0, 2)) else draw(tag) for word in sentence] for sentence in gold]
    return predicted, gold


def as_of_seqeval(sentences: Sentences, scheme: Scheme, strict: bool) -> set[tuple[int, str, int, int]]:
    """Sentence, type, first word and word after the last, of each span that seqeval reads."""
    if strict:
        every = seqeval_schemes.Entities(sentences, STRICT_SCHEMES[scheme.name])
        return {entity.to_tuple() for entities in every.entities for entity in entities}
    return {
        (number, name, first, last + 1)
        for number, sentence in enumerate(renamed(sentences))
        for name, first, last in get_entities(sentence)
    }


def renamed(sentences: Sentences) -> Sentences:
    """The tags with E- for the L- of BILOU and S- for its U-, which seqeval's default mode does not know."""
    names = {"L": "E", "U": "S"}
    return [[names.get(tag[0], tag[0]) + tag[1:] for tag in sentence] for sentence in sentences]


@each_mode
@each_scheme
@given(data=st.data())
def test_spans_are_those_of_seqeval(scheme: Scheme, strict: bool, data: st.DataObject) -> None:
    _, sentences = data.draw(tagged(scheme))
    tags = TagSet(scheme, scheme.complete(TYPES))
    _, tags_A, starts_N1 = flat(sentences, list(tags.names))
    spans = read_spans(tags, tags_A, starts_N1, strict)
    starts_M = starts_N1[spans.sentences_M]
    columns = (spans.sentences_M, spans.types_M, spans.first_M - starts_M, spans.ends_M - starts_M)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    found = {(sentence, tags.types[number], first, end) for sentence, number, first, end in rows}
    assert found == as_of_seqeval(sentences, scheme, strict)
    assert spans.first_M.tolist() == sorted(spans.first_M.tolist())


@each_mode
@each_scheme
@given(data=st.data())
def test_metrics_are_those_of_seqeval(scheme: Scheme, strict: bool, data: st.DataObject) -> None:
    predicted, gold = data.draw(tagged(scheme))
    tags = TagSet(scheme, scheme.complete(TYPES)[::-1])  # the order of the tags does not matter
    names = list(tags.names)
    (_, predicted_A, starts_N1), (_, gold_A, _) = flat(predicted, names), flat(gold, names)
    counts_NxK = span_metrics.count_sentences(tags, predicted_A, gold_A, starts_N1, strict)
    counts_K = counts_NxK.sum(axis=0)
    names_of_seqeval = (gold, predicted) if strict else (renamed(gold), renamed(predicted))
    mode = {"mode": "strict", "scheme": STRICT_SCHEMES[scheme.name]} if strict else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without spans, it divides by zero
        expected = [
            seqeval.f1_score(*names_of_seqeval, zero_division=0, **mode),
            seqeval.precision_score(*names_of_seqeval, zero_division=0, **mode),
            seqeval.recall_score(*names_of_seqeval, zero_division=0, **mode),
            np.nan_to_num(seqeval.f1_score(*names_of_seqeval, average="macro", zero_division=0, **mode)),
        ]
        by_type = seqeval.f1_score(*names_of_seqeval, average=None, zero_division=0, **mode)
    functions = (span_metrics.micro_f1, span_metrics.precision, span_metrics.recall, span_metrics.macro_f1)
    assert [float(function(counts_K)) for function in functions] == pytest.approx(expected, abs=1e-15)
    right_K, predicted_K, gold_K = counts_K[:3], counts_K[3:6], counts_K[6:9]
    assert (right_K <= np.minimum(predicted_K, gold_K)).all()
    found = [float(span_metrics.type_f1(counts_K, number)) for number in range(3) if (predicted_K + gold_K)[number]]
    assert found == pytest.approx(list(by_type), abs=1e-15)
    if len(gold_A):
        assert float(span_metrics.word_accuracy(counts_K)) == seqeval.accuracy_score(gold, predicted)
    assert span_metrics.type_support(counts_K).sum() == len(read_spans(tags, gold_A, starts_N1, strict))


@given(tagged(PLAIN, ("ADJ", "NOUN", "O", "V-P")))
def test_metrics_of_plain_tags_are_those_of_scikit_learn(sentences: tuple[Sentences, Sentences]) -> None:
    predicted, gold = sentences
    tags = TagSet(PLAIN, PLAIN.complete(("NOUN", "ADJ", "V-P", "O")))
    names = list(tags.names)
    (_, predicted_A, starts_N1), (_, gold_A, _) = flat(predicted, names), flat(gold, names)
    assert len(read_spans(tags, gold_A, starts_N1)) == len(read_spans(tags, gold_A, starts_N1, strict=True)) == 0
    assert find_impossible(tags, gold_A, starts_N1) is None
    counts_K = span_metrics.count_sentences(tags, predicted_A, gold_A, starts_N1).sum(axis=0)
    if len(gold_A):
        assert float(span_metrics.word_accuracy(counts_K)) == accuracy_score(gold_A, predicted_A)
        macro_f1 = f1_score(gold_A, predicted_A, average="macro", zero_division=0.0)
        assert float(span_metrics.macro_f1(counts_K)) == pytest.approx(macro_f1, abs=1e-15)


def test_metrics_of_many_draws_are_computed_at_once() -> None:
    """As the bootstrap does: weights (R x N) times the counts of sentences."""
    gold = [["B-per", "I-per", "O"], ["B-loc"], ["O", "B-per"]]
    predicted = [["B-per", "O", "O"], ["B-loc"], ["O", "B-per"]]
    tags = TagSet(BIO, BIO.complete(("per", "loc")))
    (_, predicted_A, starts_N1), (_, gold_A, _) = flat(predicted, list(tags.names)), flat(gold, list(tags.names))
    counts_NxK = span_metrics.count_sentences(tags, predicted_A, gold_A, starts_N1)
    weights_RxN = np.array([[1, 1, 1], [1, 0, 0], [0, 2, 1], [0, 0, 0]])
    counts_RxK = weights_RxN @ counts_NxK
    assert span_metrics.micro_f1(counts_RxK) == pytest.approx([2 / 3, 0, 1, 0])
    assert span_metrics.macro_f1(counts_RxK) == pytest.approx([0.75, 0, 1, 0])
    assert span_metrics.type_f1(counts_RxK, tags.types.index("per")) == pytest.approx([0.5, 0, 1, 0])
    assert span_metrics.word_accuracy(counts_RxK) == pytest.approx([5 / 6, 2 / 3, 1, 0])


def test_words_without_gold_are_left_out() -> None:
    tags = TagSet(BIO, BIO.complete(("per",)))
    predicted_A, starts_N1 = np.array([1, 2, 1, 0, 1]), np.array([0, 2, 4, 5])
    gold_A = np.array([1, 2, -1, -1, 0])
    counts_NxK = span_metrics.count_sentences(tags, predicted_A, gold_A, starts_N1)
    assert counts_NxK.toarray().tolist() == [[1, 1, 1, 2, 2], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("scheme", "sentences", "what", "place"),
    [
        (BIO, "O I-per | B-per I-loc | B-per I-per", "I-per directly behind O", (2, 0, 1)),
        (BIO, "B-per | O | I-per I-per", "I-per at the beginning of a sentence", (1, 2, 0)),
        (IOB1, "I-per B-per | O B-per", "B-per directly behind O", (1, 1, 1)),
        (IOB1, "| I-loc B-per", "B-per directly behind I-loc", (1, 1, 1)),
        (BIOES, "S-per B-per O", "B-per directly before O", (1, 0, 1)),
        (BIOES, "B-per I-per", "I-per at the end of a sentence", (1, 0, 1)),
        (BIOES, "S-per E-per", "E-per directly behind S-per", (1, 0, 1)),
        (BILOU, "U-per B-per L-loc", "B-per directly before L-loc", (1, 0, 1)),
    ],
)
def test_impossible_tags_are_counted(scheme: Scheme, sentences: str, what: str, place: tuple[int, int, int]) -> None:
    tags = TagSet(scheme, scheme.complete(("per", "loc")))
    _, tags_A, starts_N1 = flat([sentence.split() for sentence in sentences.split("|")], list(tags.names))
    found = find_impossible(tags, tags_A, starts_N1)
    assert found is not None
    assert (found.sentences, found.sentence, found.word) == place
    assert found.what == what
    note = found.describe(scheme, len(starts_N1) - 1)
    assert note.startswith(f"{place[0]} of {len(starts_N1) - 1} sentences have a tag that {scheme.name} does not allow")
    assert f"such as {what} (row {place[1] + 1}, word {place[2] + 1})" in note


@each_scheme
@given(data=st.data())
def test_both_modes_agree_where_no_tag_is_impossible(scheme: Scheme, data: st.DataObject) -> None:
    _, sentences = data.draw(tagged(scheme, ("loc", "per")))
    tags = TagSet(scheme, scheme.complete(("loc", "per")))
    _, tags_A, starts_N1 = flat(sentences, list(tags.names))
    if find_impossible(tags, tags_A, starts_N1) is None:
        lenient, strict = (read_spans(tags, tags_A, starts_N1, mode) for mode in (False, True))
        assert lenient.first_M.tolist() == strict.first_M.tolist()
        assert lenient.ends_M.tolist() == strict.ends_M.tolist()
