"""Generated moods: short notes with any number of labels, for several labels a text.

    i am a little sad , but the concert makes me very happy because i won a prize .   (joy, pride)
    my brother is furious and so am i . thank you for the soup .                      (anger, gratitude)
    i used to be afraid of the exam . the train left at noon .                        (relief)
    my sister is proud . i would be glad if it rained .                               (none)

The labels depend on several effects that combine, so that the number of layers matters: the strength of a word and its
degree; whose mood it is ("my brother is furious", "... and so am i"); negation; moods of the past and moods that depend
on a condition, which do not count, but fear of the past is relief; reasons that add a label to joy; weak signs of one
mood that count only together; the higher weight of what follows "but". Pride and relief are rare.

The training labels are the votes of one simulated annotator on each mood that a note speaks of; the annotator is wrong
more often where a mood is neither clearly there nor clearly missing.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import Field

from kdray.sources.generated.drawing import GeneratedRows, Split, is_right

LABELS = ("joy", "love", "gratitude", "pride", "relief", "surprise", "sadness", "anger", "fear")

# Words by mood and strength; 1.0 is a plain mood.
WORDS = {
    "joy": {1.0: ["happy", "glad", "cheerful", "pleased"], 1.8: ["delighted", "overjoyed"]},
    "surprise": {1.0: ["surprised", "startled"], 1.8: ["amazed", "stunned"]},
    "sadness": {1.0: ["sad", "unhappy", "gloomy", "low"], 1.8: ["miserable", "heartbroken"]},
    "anger": {1.0: ["angry", "annoyed", "cross", "upset"], 1.8: ["furious", "outraged"]},
    "fear": {1.0: ["afraid", "scared", "nervous", "worried"], 1.8: ["terrified", "horrified"]},
}

# Adverbs by the factor that they multiply the strength with.
DEGREES = {1.4: ["very", "really", "so"], 0.5: ["a little", "slightly", "somewhat"]}

# The mood that the denial of a mood tells; all others tell none.
DENIED = {"joy": "sadness", "sadness": "joy", "fear": "relief"}

# Reasons, by the label that they add to joy; to other moods they add nothing.
REASONS = {
    "pride": ["i won a prize", "i passed the exam", "i ran ten miles"],
    "gratitude": ["my friend helped me", "they gave me flowers", "you waited for me"],
    "relief": ["the fire is out", "nobody was hurt", "the fever is gone"],
    "love": ["you came home", "we will marry", "i am with you"],
    None: ["it is monday", "the shop is open", "the train was on time"],
}

PEOPLE = ["my brother", "my sister", "the neighbour", "our teacher", "everybody else", "the driver"]

THINGS = ["the concert", "the soup", "the exam", "the letter", "the weather", "the match", "the news", "the garden"]

DIRECT = {"love": "i adore", "gratitude": "thank you for", "surprise": "i did not expect", "anger": "i can not stand"}

NEUTRAL = ["the train left at noon", "it is a long road", "we had lunch", "the door is green", "it may rain later"]

LINKS = [" , ", " and ", " . ", " . ", " but "]

BEFORE_BUT_FACTOR = 0.4  # for everything before a "but"; the clause after it counts fully

DENIAL_FACTOR = 0.9  # "not happy" is a little less than "sad"

THRESHOLD = 0.7  # a note has the labels whose score is higher

MARGIN_CLEARNESS = 2.5  # so that the annotators of all generators are about as often wrong with the same sureness

MINIMUM_MARGIN = 0.15  # a note with a score nearer to the threshold is discarded


@dataclass(frozen=True)
class Note:
    """A note, or a part of one, and the scores of the moods that it speaks of: 1 is plainly there, 0 is not there."""

    text: str
    scores: Mapping[str, float] = field(default_factory=dict)


class GeneratedMoods(GeneratedRows):
    """Notes with any number of nine moods, for several labels a text."""

    kind: Literal["moods"] = "moods"
    sureness: float = Field(1.6, gt=0)
    """How sure the annotator is: the vote on a mood whose score differs from the threshold by d is right with
    probability 1 / (1 + exp(-sureness * 2.5 * d)). Moods that a note does not speak of get no votes."""

    def rows(self, split: Split) -> dict[str, list[str] | list[list[str]]]:
        """The columns `text` and `labels` (a list of names, empty for some) of one split; no note occurs twice."""
        draw = self.random_of(split)
        notes = self.distinct(split, partial(_clear_note, draw), lambda note: note.text)
        sureness = self.sureness if split == "train" else math.inf
        return {"text": [note.text for note in notes], "labels": [_votes(draw, note, sureness) for note in notes]}


def _votes(draw: random.Random, note: Note, sureness: float) -> list[str]:
    """The labels that the annotator gives to a note, in the order of `LABELS`."""
    votes = []
    for label in LABELS:
        if label in note.scores:
            margin = note.scores[label] - THRESHOLD
            if (margin > 0) == is_right(draw, MARGIN_CLEARNESS * abs(margin), sureness):
                votes.append(label)
    return votes


def _clear_note(draw: random.Random) -> Note | None:
    """A note; None if one of its scores is too near to the threshold."""
    note = _note(draw)
    return None if any(abs(score - THRESHOLD) < MINIMUM_MARGIN for score in note.scores.values()) else note


def _note(draw: random.Random) -> Note:
    """A note of one to three clauses."""
    text, scores = "", dict[str, float]()
    for _ in range(draw.choice((1, 1, 2, 2, 3))):
        clause = draw.choice(CLAUSES)(draw)
        link = draw.choice(LINKS) if text else ""
        factor = BEFORE_BUT_FACTOR if link == " but " else 1.0
        scores = {label: factor * score for label, score in scores.items()}
        for label, score in clause.scores.items():
            scores[label] = scores.get(label, 0.0) + score
        text += link + clause.text
    return Note(f"{text} .", scores)


def _own(draw: random.Random) -> Note:
    """A mood such as "i am very happy"."""
    mood = _mood(draw)
    return Note(f"i am {mood.text}", mood.scores)


def _own_with_reason(draw: random.Random) -> Note:
    """A mood with a reason, such as "i am happy because you came home": the reason adds a label to joy."""
    # Joy more often than other moods: only its reasons add labels.
    mood, (label, reasons) = _mood(draw, ("joy", "joy", *WORDS)), draw.choice(list(REASONS.items()))
    scores = dict(mood.scores)
    if label:
        scores[label] = scores.get("joy", 0.0)
    reason = draw.choice(reasons)
    text = draw.choice((f"i am {mood.text} because {reason}", f"{reason} , so i am {mood.text}"))
    return Note(text, scores)


def _denial(draw: random.Random) -> Note:
    """The denial of a mood, such as "i am not happy"."""
    mood = _mood(draw)
    scores = dict.fromkeys(mood.scores, 0.0)
    for label, score in mood.scores.items():
        if label in DENIED:
            scores[DENIED[label]] = DENIAL_FACTOR * score
    return Note(f"i am not {mood.text}", scores)


def _caused(draw: random.Random) -> Note:
    """A mood that a thing causes, of the writer or of other people: "the soup makes my brother happy"."""
    mood, thing = _mood(draw), draw.choice(THINGS)
    if draw.random() < 0.5:
        return Note(f"{thing} makes me {mood.text}", mood.scores)
    return Note(f"{thing} makes {draw.choice(PEOPLE)} {mood.text}", _without_weight(mood))


def _of_others(draw: random.Random) -> Note:
    """A mood of other people, which the writer may share: "my brother is happy and so am i"."""
    mood, person = _mood(draw), draw.choice(PEOPLE)
    ending, is_shared = draw.choice((("", False), (" and so am i", True), (" , which i am not", False)))
    return Note(f"{person} is {mood.text}{ending}", mood.scores if is_shared else _without_weight(mood))


def _past(draw: random.Random) -> Note:
    """A mood of the past, such as "i used to be scared": no mood, but fear tells relief."""
    mood = _mood(draw)
    scores = _without_weight(mood)
    if "fear" in mood.scores:
        scores["relief"] = mood.scores["fear"]
    return Note(draw.choice((f"i used to be {mood.text}", f"i am no longer {mood.text}")), scores)


def _condition(draw: random.Random) -> Note:
    """A mood that depends on a condition, such as "i would be glad if it rained", which is no mood."""
    mood = _mood(draw)
    ending = draw.choice(("if it rained", "if they lost", "without you"))
    return Note(f"i would be {mood.text} {ending}", _without_weight(mood))


def _direct(draw: random.Random) -> Note:
    """A mood without a word for it, such as "thank you for the soup"."""
    label = draw.choice(list(DIRECT))
    return Note(f"{DIRECT[label]} {draw.choice(THINGS)}", {label: 1.0})


def _neutral(draw: random.Random) -> Note:
    return Note(draw.choice(NEUTRAL))


CLAUSES = (
    _own,
    _own,
    _own_with_reason,
    _own_with_reason,
    _denial,
    _caused,
    _of_others,
    _of_others,
    _past,
    _condition,
    _direct,
    _neutral,
)
"""The kinds of clauses; a kind that occurs n times is drawn with probability n / 12."""


def _mood(draw: random.Random, labels: Sequence[str] = tuple(WORDS)) -> Note:
    """A word for a mood, with or without its degree."""
    label = draw.choice(labels)
    strength = draw.choice(list(WORDS[label]))
    word = draw.choice(WORDS[label][strength])
    if draw.random() < 0.5:
        degree = draw.choice(list(DEGREES))
        return Note(f"{draw.choice(DEGREES[degree])} {word}", {label: degree * strength})
    return Note(word, {label: strength})


def _without_weight(mood: Note) -> dict[str, float]:
    """The labels of a mood that does not count; the annotator may take it for one that does."""
    return dict.fromkeys(mood.scores, 0.0)
