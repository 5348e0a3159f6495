"""The spans that a tagger finds in texts, for people.

Shapes: A words, C tags.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdray.data.words import Words
from kdray.tasks.answers import PREDICTED
from kdray.tasks.spans import read_spans
from kdray.tasks.tag_schemes import TagSet


@dataclass(frozen=True)
class Span:
    """A span of a text."""

    text: str
    start: int
    """Its first character, from 0."""
    end: int
    """The character after its last one."""
    label: str
    """Its type; of plain tags the tag."""
    score: float
    """The mean probability of the tags of its words."""


@dataclass(frozen=True)
class SpanAnswer:
    """The spans of a text."""

    spans: tuple[Span, ...]

    def cells(self) -> list[str]:
        """The spans as JSON."""
        return [json.dumps(self._objects(), ensure_ascii=False)]

    def columns(self) -> dict[str, Any]:
        """The list of spans, as objects with text, start, end, label and score."""
        return {PREDICTED: self._objects()}

    def _objects(self) -> list[dict[str, Any]]:
        return [asdict(span) | {"score": round(span.score, 6)} for span in self.spans]


def span_answers(probabilities_AxC: np.ndarray, texts: Sequence[Words], tags: TagSet) -> list[SpanAnswer]:
    """The spans of each text, from the probabilities of the tags of all their words."""
    starts = np.cumsum([0, *map(len, texts)])
    tags_A, scores_A = probabilities_AxC.argmax(axis=1), probabilities_AxC.max(axis=1)
    found: list[list[Span]] = [[] for _ in texts]
    for sentence, kind, first, end in _places(tags, tags_A, starts):
        words, offset = texts[sentence], starts[sentence]
        start, after = words.starts[first - offset], words.ends[end - 1 - offset]
        text = words.text[start:after]
        found[sentence].append(Span(text, start, after, tags.types[kind], float(scores_A[first:end].mean())))
    return [SpanAnswer(tuple(spans)) for spans in found]


def _places(tags: TagSet, tags_A: np.ndarray, starts: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Sentence, type, first word and the word after the last one of each span."""
    if not tags.scheme.has_spans:
        sentences = np.repeat(np.arange(len(starts) - 1), np.diff(starts)).tolist()
        return [
            (sentence, int(tag), word, word + 1)
            for word, (sentence, tag) in enumerate(zip(sentences, tags_A, strict=True))
        ]
    spans = read_spans(tags, tags_A, starts)
    columns = (spans.sentences_M, spans.types_M, spans.first_M, spans.ends_M)
    return list(zip(*(column.tolist() for column in columns), strict=True))
