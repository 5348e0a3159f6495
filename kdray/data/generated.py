"""Sentences with labels made on the spot, and a small Transformer to start from, for sweeps that download nothing.

A generated review says in one to three clauses what its writer thinks of a film, and says other things too:

    critics call the plot superb but not very funny dialogue .            (negative)
    i do not think the cast is silly , the music should be rather good .  (positive)

What a model must learn stands one thing on top of the other, which is why depth matters: how strong a word is, its
degree ("hardly", "very"), negation next to a word and negation with a scope ("i do not think ..."), what had been
expected and is not so, other people's opinions, which do not count, and that more weight lies on what follows "but".

The training labels are one annotator's votes, who is the less sure the fainter the opinion; the other splits carry
the true label. A teacher sees through the votes by their number, and its soft targets tell a student how faint each
opinion is. Loading, cutting and tokenising the rows is left to `kdray.data.splits`.
"""

import math
import random
import zlib
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from kdray.settings import Settings

Split: TypeAlias = Literal["train", "validation", "test"]

LABELS = ("negative", "positive")

THINGS = ["plot", "story", "cast", "acting", "dialogue", "music", "camera", "ending", "script", "pace", "humour"]

# Words by strength; 1.0 is a plain opinion.
GOOD = {
    1.0: ["good", "clever", "fresh", "charming", "funny", "witty"],
    1.8: ["superb", "brilliant", "perfect", "gripping"],
}

BAD = {
    1.0: ["bad", "stupid", "stale", "clumsy", "silly", "boring"],
    1.8: ["awful", "terrible", "hopeless", "dreadful"],
}

DEGREES = {1.4: ["very", "really", "truly", "remarkably"], 0.5: ["fairly", "somewhat", "rather", "mildly"]}

MINIMISERS = ["hardly", "barely", "scarcely"]

PEOPLE = ["critics", "my friends", "my parents", "some people", "the others", "reviewers"]

DENIALS = ["i do not think", "i would not say", "nobody claims", "i doubt that"]

BELIEFS = ["i think", "i would say", "i must admit", "i am sure that"]

NEGATED = -0.7  # "not very good" is bad, but less so than "very bad" is

BEFORE_BUT = 0.4  # what follows "but" counts fully, what stands before it less

EXPECTED = -0.6  # what should have been so is not

FAINTEST = 0.3  # opinions fainter than this are not written


@dataclass(frozen=True)
class Opinion:
    """A piece of a review, and how good it says the film is: below 0 bad, 0 nothing, 1 plainly good."""

    text: str
    score: float


class GeneratedReviews(Settings):
    """Generated reviews: the same seed gives the same rows in every process, and no two splits share a sentence."""

    train_rows: int = Field(16_000, ge=2)
    validation_rows: int = Field(2000, ge=2)
    test_rows: int = Field(2000, ge=2)
    sureness: float = Field(1.6, gt=0)
    """Of the annotator: an opinion of strength s gets the right vote with probability 1 / (1 + exp(-sureness * s))."""
    seed: int = 0

    def rows(self, split: Split) -> dict[str, list[str]]:
        """The columns `text` and `label` of one split; no sentence twice."""
        draw = random.Random(f"{split} {self.seed}")  # a text as seed does not depend on the process, as hash() would
        wanted = {"train": self.train_rows, "validation": self.validation_rows, "test": self.test_rows}[split]
        reviews: dict[str, float] = {}
        while len(reviews) < wanted:
            review = _review(draw)
            if split_of(review.text) == split and abs(review.score) > FAINTEST:
                reviews[review.text] = review.score
        sureness = self.sureness if split == "train" else math.inf
        return {"text": list(reviews), "label": [LABELS[_vote(draw, score, sureness)] for score in reviews.values()]}


def split_of(text: str) -> Split:
    """The one split in which a sentence may stand; so a split never depends on the size of another."""
    return ("train", "train", "validation", "test")[zlib.crc32(text.encode()) % 4]


def _vote(draw: random.Random, score: float, sureness: float) -> bool:
    right = draw.random() < 1 / (1 + math.exp(-sureness * abs(score)))
    return (score > 0) == right


def _review(draw: random.Random) -> Opinion:
    """One to three clauses, each about another thing. Single ones are what the others are learnt from."""
    things = draw.sample(THINGS, draw.choice((1, 1, 2, 2, 3)))
    text, score = "", 0.0
    for thing in things:
        clause = draw.choice(CLAUSES)(draw, thing)
        link = draw.choice((" , ", " , ", " and ", " but ", " . ")) if text else ""
        score = score * (BEFORE_BUT if link == " but " else 1.0) + clause.score
        text += link + clause.text
    return Opinion(f"{text} .", score)


def _named(draw: random.Random, thing: str) -> Opinion:
    """Hardly funny plot."""
    said = _predicate(draw)
    return Opinion(f"{said.text} {thing}", said.score)


def _plain(draw: random.Random, thing: str) -> Opinion:
    """The plot is hardly funny."""
    said = _predicate(draw)
    return Opinion(f"the {thing} is {said.text}", said.score)


def _believed(draw: random.Random, thing: str) -> Opinion:
    """I think the plot is hardly funny."""
    said = _predicate(draw)
    return Opinion(f"{draw.choice(BELIEFS)} the {thing} is {said.text}", said.score)


def _denied(draw: random.Random, thing: str) -> Opinion:
    """ "i doubt that the plot is very funny": the negation stands far from the word."""
    said = _graded(draw)
    return Opinion(f"{draw.choice(DENIALS)} the {thing} is {said.text}", NEGATED * said.score)


def _expected(draw: random.Random, thing: str) -> Opinion:
    """The plot should be funny."""
    said = _graded(draw)
    return Opinion(f"the {thing} should be {said.text}", EXPECTED * said.score)


def _heard(draw: random.Random, thing: str) -> Opinion:
    """Somebody else's opinion, which says nothing of the writer's."""
    theirs = _graded(draw)
    return Opinion(f"{draw.choice(PEOPLE)} call the {thing} {theirs.text}", 0.0)


CLAUSES = (_named, _named, _named, _plain, _plain, _believed, _denied, _expected, _heard, _heard)


def _predicate(draw: random.Random) -> Opinion:
    """What follows "is": a word with its degree, perhaps negated."""
    said = _graded(draw)
    chance = draw.random()
    if chance < 0.15:
        return Opinion(f"not {said.text}", NEGATED * said.score)
    if chance < 0.2:
        return Opinion(f"anything but {said.text}", NEGATED * said.score)
    return said


def _graded(draw: random.Random) -> Opinion:
    """A word of praise or blame, perhaps with its degree."""
    sign, words = draw.choice(((1, GOOD), (-1, BAD)))
    strength = draw.choice(list(words))
    word = draw.choice(words[strength])
    chance = draw.random()
    if chance < 0.4:
        degree = draw.choice(list(DEGREES))
        return Opinion(f"{draw.choice(DEGREES[degree])} {word}", sign * degree * strength)
    if chance < 0.46:
        return Opinion(f"{draw.choice(MINIMISERS)} {word}", sign * NEGATED * strength)
    return Opinion(word, sign * strength)
