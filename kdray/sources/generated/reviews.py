"""Generated reviews: labelled sentences, for text classification.

A review has one to three clauses. They say what its writer thinks of a film, and other things, too:

    critics call the plot superb but not very funny dialogue .            (negative)
    i do not think the cast is silly , the music should be rather good .  (positive)

The label depends on several effects that combine, so that the number of layers matters: the strength of a word, its
degree ("hardly", "very"), negation of a word, negation of a clause ("i do not think ..."), expectations that are not
met ("should be"), opinions of other people, which do not count, and the higher weight of what follows "but".

The training labels are the votes of one simulated annotator, who is wrong more often where the opinion is weak. A
teacher's soft targets give a student the strength of each opinion.
"""

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field

from kdray.sources.generated.drawing import GeneratedRows, Split, is_right

LABELS = ("negative", "positive")
NEGATIVE, POSITIVE = LABELS

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

# Adverbs by the factor that they multiply the strength with.
DEGREES = {1.4: ["very", "really", "truly", "remarkably"], 0.5: ["fairly", "somewhat", "rather", "mildly"]}

MINIMISERS = ["hardly", "barely", "scarcely"]

PEOPLE = ["critics", "my friends", "my parents", "some people", "the others", "reviewers"]

DENIALS = ["i do not think", "i would not say", "nobody claims", "i doubt that"]

BELIEFS = ["i think", "i would say", "i must admit", "i am sure that"]

NEGATION_FACTOR = -0.7  # not -1: "not very good" is bad, but less bad than "very bad"

BEFORE_BUT_FACTOR = 0.4  # for everything before a "but"; the clause after it counts fully

EXPECTATION_FACTOR = -0.6  # "should be good" means that it is not good

MINIMUM_STRENGTH = 0.3  # a review with a weaker opinion is discarded


@dataclass(frozen=True)
class Opinion:
    """A part of a review and its score: below 0 the opinion is bad, 0 means no opinion, 1 is plainly good."""

    text: str
    score: float


class GeneratedReviews(GeneratedRows):
    """Reviews of films with the label negative or positive, for text classification."""

    kind: Literal["reviews"] = Field("reviews", exclude=True)
    """Not written: sweeps that were started when there was no other generator have settings without a kind."""
    sureness: float = Field(1.6, gt=0)
    """How sure the annotator is: the vote on a review of strength s is right with probability
    1 / (1 + exp(-sureness * s))."""

    def rows(self, split: Split) -> dict[str, list[str]]:
        """The columns `text` and `label` of one split; no sentence occurs twice."""
        draw = self.random_of(split)
        reviews = self.distinct(split, partial(_clear_review, draw), lambda review: review.text)
        sureness = self.sureness if split == "train" else math.inf
        return {
            "text": [review.text for review in reviews],
            "label": [_vote(draw, review.score, sureness) for review in reviews],
        }


def _vote(draw: random.Random, score: float, sureness: float) -> str:
    """The label that the annotator gives to a review with this score."""
    right, wrong = (POSITIVE, NEGATIVE) if score > 0 else (NEGATIVE, POSITIVE)
    return right if is_right(draw, abs(score), sureness) else wrong


def _clear_review(draw: random.Random) -> Opinion | None:
    """A review; None if its opinion is too weak to tell a label."""
    review = _review(draw)
    return review if abs(review.score) > MINIMUM_STRENGTH else None


def _review(draw: random.Random) -> Opinion:
    """A review of one to three clauses, each about a different thing."""
    # Many reviews have a single clause: from these a model can learn what the clauses of the longer ones mean.
    things = draw.sample(THINGS, draw.choice((1, 1, 2, 2, 3)))
    text, score = "", 0.0
    for thing in things:
        clause = draw.choice(CLAUSES)(draw, thing)
        link = draw.choice((" , ", " , ", " and ", " but ", " . ")) if text else ""
        score = score * (BEFORE_BUT_FACTOR if link == " but " else 1.0) + clause.score
        text += link + clause.text
    return Opinion(f"{text} .", score)


def _noun_phrase(draw: random.Random, thing: str) -> Opinion:
    """An opinion such as "hardly funny plot"."""
    predicate = _predicate(draw)
    return Opinion(f"{predicate.text} {thing}", predicate.score)


def _statement(draw: random.Random, thing: str) -> Opinion:
    """An opinion such as "the plot is hardly funny"."""
    predicate = _predicate(draw)
    return Opinion(f"the {thing} is {predicate.text}", predicate.score)


def _belief(draw: random.Random, thing: str) -> Opinion:
    """An opinion such as "i think the plot is hardly funny"."""
    predicate = _predicate(draw)
    return Opinion(f"{draw.choice(BELIEFS)} the {thing} is {predicate.text}", predicate.score)


def _denial(draw: random.Random, thing: str) -> Opinion:
    """An opinion such as "i doubt that the plot is very funny": the negation is far from the word."""
    adjective = _adjective(draw)
    return Opinion(f"{draw.choice(DENIALS)} the {thing} is {adjective.text}", NEGATION_FACTOR * adjective.score)


def _expectation(draw: random.Random, thing: str) -> Opinion:
    """An opinion such as "the plot should be funny"."""
    adjective = _adjective(draw)
    return Opinion(f"the {thing} should be {adjective.text}", EXPECTATION_FACTOR * adjective.score)


def _opinion_of_others(draw: random.Random, thing: str) -> Opinion:
    """A clause such as "critics call the plot funny", which gives no opinion of the writer."""
    adjective = _adjective(draw)
    return Opinion(f"{draw.choice(PEOPLE)} call the {thing} {adjective.text}", 0.0)


CLAUSES = (
    _noun_phrase,
    _noun_phrase,
    _noun_phrase,
    _statement,
    _statement,
    _belief,
    _denial,
    _expectation,
    _opinion_of_others,
    _opinion_of_others,
)
"""The kinds of clauses; a kind that occurs n times is drawn with probability n / 10."""


def _predicate(draw: random.Random) -> Opinion:
    """What follows "is": an adjective, negated in one of five cases."""
    adjective = _adjective(draw)
    number = draw.random()
    if number < 0.15:
        return Opinion(f"not {adjective.text}", NEGATION_FACTOR * adjective.score)
    if number < 0.2:
        return Opinion(f"anything but {adjective.text}", NEGATION_FACTOR * adjective.score)
    return adjective


def _adjective(draw: random.Random) -> Opinion:
    """A word of praise or blame, with or without its degree."""
    sign, words = draw.choice(((1, GOOD), (-1, BAD)))
    strength = draw.choice(list(words))
    word = draw.choice(words[strength])
    number = draw.random()
    if number < 0.4:
        degree = draw.choice(list(DEGREES))
        return Opinion(f"{draw.choice(DEGREES[degree])} {word}", sign * degree * strength)
    if number < 0.46:
        return Opinion(f"{draw.choice(MINIMISERS)} {word}", sign * NEGATION_FACTOR * strength)
    return Opinion(word, sign * strength)
