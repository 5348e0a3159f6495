"""Generated pairs: two sentences and how similar they are, from 0 to 5, for regression.

    the dog chased a boy at the shop .   |  a lad was pursued by the hound at the store .   (5.0)
    the dog chased a boy .               |  a boy chased the dog .                          (1.92)
    a doctor led the girl at dawn .      |  in the morning the girl followed a doctor .     (5.0)
    the horse never helped the boy .     |  a pony helped a lad .                           (1.5)

Each sentence tells a scene: who does what to whom, where and when. The score is the weighed sum of how much the parts
of the two scenes agree. Several effects combine, so that the number of layers matters: other words of the same meaning,
words of the same kind, active and passive voice, verbs that tell one scene from two sides ("led", "followed"), changed
order of place and time, a verb of another kind, beside which the rest counts less, and denial, which counts for the
whole.

The training scores are those of one simulated annotator, who differs from the true score at random and gives half
points.
"""

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from pydantic import Field

from kdray.sources.generated.drawing import GeneratedRows, Split

Words: TypeAlias = tuple[str, ...]
"""Words or phrases of the same meaning."""

# Each line is of one kind: its words are more alike than words of two lines.
NOUNS: list[list[Words]] = [
    [("dog", "hound"), ("cat", "kitten"), ("horse", "pony")],
    [("boy", "lad"), ("girl", "maiden"), ("doctor", "physician")],
]

# Verbs that begin with < tell the same scene from the other side: who leads is followed.
VERBS: list[list[Words]] = [
    [("chased", "pursued"), ("followed", "<led")],
    [("helped", "aided"), ("liked", "<pleased")],
]

PLACES: list[Words] = [
    ("in the garden", "in the yard"),
    ("on the street", "on the road"),
    ("at the shop", "at the store"),
]

TIMES: list[Words] = [("in the morning", "at dawn"), ("in the evening", "at dusk"), ("last week", "seven days ago")]

VERB, SIDE, PLACE, TIME = 1.5, 1.2, 0.6, 0.5
"""The weights of the parts of a scene; both sides, who acts and who is acted upon, have the same."""

SAME_KIND = 0.4  # how much two words of one kind agree; words of the same meaning agree fully

OTHER_VERB_FACTOR = 0.5  # for all other parts of scenes whose verbs are of two kinds

ONE_DENIED_FACTOR = 0.3  # for the whole, if one sentence denies what the other one says

HIGHEST = 5.0

CHANGE_RATES = (0.0, 0.1, 0.3, 0.5, 0.8)
"""How probable a change of each part of the second scene is; drawn for each pair, so that all scores occur."""

SWAP_RATE, DENIAL_RATE = 0.2, 0.15


@dataclass(frozen=True)
class Word:
    """A meaning: its kind and its place in that kind."""

    kind: int
    number: int


@dataclass(frozen=True)
class Scene:
    """What a sentence tells, whatever its words and their order."""

    agent: Word
    verb: Word
    patient: Word
    place: int | None
    time: int | None
    is_denied: bool


@dataclass(frozen=True)
class Pair:
    """Two sentences, and how similar they are, from 0 to 5."""

    text: str
    pair: str
    score: float


class GeneratedPairs(GeneratedRows):
    """Pairs of sentences with a score from 0 to 5 for how similar they are, for regression."""

    text_columns = ("text", "pair")

    kind: Literal["pairs"] = "pairs"
    spread: float = Field(0.6, ge=0)
    """How much the annotator differs from the true score: the standard deviation, in points."""

    def rows(self, split: Split) -> dict[str, list[str] | list[float]]:
        """The columns `text`, `pair` and `score` of one split; no pair occurs twice."""
        draw = self.random_of(split)
        pairs = self.distinct(split, partial(_pair, draw), lambda pair: f"{pair.text}\n{pair.pair}")
        if split == "train":
            scores = [_estimate(draw, pair.score, self.spread) for pair in pairs]
        else:
            scores = [round(pair.score, 2) for pair in pairs]
        return {"text": [pair.text for pair in pairs], "pair": [pair.pair for pair in pairs], "score": scores}


def similarity(one: Scene, other: Scene) -> float:
    """How similar two scenes are, from 0 to 5."""
    verbs = _agreement(one.verb, other.verb)
    # Parts that neither sentence has count neither as equal nor as different.
    parts = [(SIDE, _agreement(one.agent, other.agent)), (SIDE, _agreement(one.patient, other.patient))]
    parts += [(PLACE, float(one.place == other.place))] * (one.place is not None or other.place is not None)
    parts += [(TIME, float(one.time == other.time))] * (one.time is not None or other.time is not None)
    rest = sum(weight * agreement for weight, agreement in parts) * (1.0 if verbs else OTHER_VERB_FACTOR)
    share = (VERB * verbs + rest) / (VERB + sum(weight for weight, _ in parts))
    return HIGHEST * share * (1.0 if one.is_denied == other.is_denied else ONE_DENIED_FACTOR)


def _agreement(one: Word, other: Word) -> float:
    if one == other:
        return 1.0
    return SAME_KIND if one.kind == other.kind else 0.0


def _estimate(draw: random.Random, score: float, spread: float) -> float:
    """The annotator's score: half points from 0 to 5."""
    estimate = round(2 * draw.normalvariate(score, spread)) / 2
    return min(HIGHEST, max(0.0, estimate))


def _pair(draw: random.Random) -> Pair:
    """A scene, and a copy of it with no, some or many changes, each in words of its own."""
    one = _scene(draw)
    other = _changed(draw, one, draw.choice(CHANGE_RATES))
    return Pair(_sentence(draw, one), _sentence(draw, other), similarity(one, other))


def _scene(draw: random.Random) -> Scene:
    return Scene(
        agent=_word(draw, NOUNS),
        verb=_word(draw, VERBS),
        patient=_word(draw, NOUNS),
        place=_optional(draw, PLACES),
        time=_optional(draw, TIMES),
        is_denied=draw.random() < DENIAL_RATE,
    )


def _changed(draw: random.Random, scene: Scene, rate: float) -> Scene:
    """The scene, with each part changed with this probability."""

    def is_changed() -> bool:
        return draw.random() < rate

    if rate and draw.random() < SWAP_RATE:
        scene = replace(scene, agent=scene.patient, patient=scene.agent)
    return Scene(
        agent=_word(draw, NOUNS) if is_changed() else scene.agent,
        verb=_word(draw, VERBS) if is_changed() else scene.verb,
        patient=_word(draw, NOUNS) if is_changed() else scene.patient,
        place=_optional(draw, PLACES) if is_changed() else scene.place,
        time=_optional(draw, TIMES) if is_changed() else scene.time,
        is_denied=scene.is_denied != (rate > 0 and draw.random() < DENIAL_RATE),
    )


def _word(draw: random.Random, kinds: list[list[Words]]) -> Word:
    kind = draw.randrange(len(kinds))
    return Word(kind, draw.randrange(len(kinds[kind])))


def _optional(draw: random.Random, choices: list[Words]) -> int | None:
    """The number of one of the choices; None in half of the cases."""
    return draw.randrange(len(choices)) if draw.random() < 0.5 else None


def _sentence(draw: random.Random, scene: Scene) -> str:
    """A sentence that tells the scene, in one of many ways."""
    verb = draw.choice(VERBS[scene.verb.kind][scene.verb.number])
    first, second = _noun_phrase(draw, scene.agent), _noun_phrase(draw, scene.patient)
    if verb.startswith("<"):
        first, second = second, first
    never = "never " if scene.is_denied else ""
    verb = verb.removeprefix("<")
    clause = draw.choice((f"{first} {never}{verb} {second}", f"{second} was {never}{verb} by {first}"))
    phrases = [
        draw.choice(choices[number])
        for choices, number in ((PLACES, scene.place), (TIMES, scene.time))
        if number is not None
    ]
    draw.shuffle(phrases)
    if phrases and draw.random() < 0.3:
        clause = f"{phrases.pop()} {clause}"
    return " ".join([clause, *phrases, "."])


def _noun_phrase(draw: random.Random, noun: Word) -> str:
    return f"{draw.choice(('the', 'a'))} {draw.choice(NOUNS[noun.kind][noun.number])}"
