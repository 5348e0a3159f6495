"""Generated mentions: sentences whose names are tagged as person, place, work or product, for token classification.

Most names may be of any type, so the words around them decide:

    in May we left Jordan and Adelaide unread .                       (May: no name; Jordan, Adelaide: works)
    people love paris . paris is not a town but a singer .            (both: a person)
    Waiting for Florence , which Madison Austin wrote , is a film .   (Waiting for Florence: one work)

A tag depends on several effects that combine, so that the number of layers matters: what a verb has as its subject and
object, passive voice, relative clauses that part a name from its verb, lists of names that share one cue, a cue that
comes after the names ("left ... unread"), definitions of which one half is denied, names that are repeated where no cue
is, or only likened to another name, and names in names. Words such as "may" and "rose" are names in some places only.

The training tags are those of one simulated annotator, who takes a name for another type, or for no name at all, more
often where its cue is weak. A third of the sentences is in lower case.
"""

import math
import random
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from pydantic import Field

from kdray.sources.generated.drawing import GeneratedRows, Split, is_right

TYPES = ("person", "place", "work", "product")
OUTSIDE = "O"

# Names of any type. The words of the last line are also used as plain words, in `OPENINGS`.
NAMES = [
    *("Jordan", "Paris", "Florence", "Austin", "Sydney", "Lincoln", "Madison", "Savannah", "Chelsea", "Victoria"),
    *("Orlando", "Carolina", "Virginia", "Phoenix", "Aurora", "Eden"),
    *("May", "Rose", "Hope", "Mark", "Bill", "Will", "Dawn", "Summer"),
]

OPENINGS = [
    *("in May", "last Summer", "before Dawn", "when prices Rose", "to pay a Bill", "without Hope", "as you Will"),
    *("on the Mark", "two years ago", "after lunch", "once more", "to be fair"),
]

SURNAMES = ["Miller", "Baker", "Fisher", "Walker", "Stone", "Hill"]

MODELS = ["Pro", "Mini", "Max", "7", "90"]

# Names of several words by type; each @ is one of NAMES.
LONG_NAMES = {
    "person": ["@ @", "@ {surname}", "@ {surname}"],
    "place": ["New @", "Port @", "@ Hill", "Lake @"],
    "work": ["The Road to @", "Waiting for @", "A Night in @", "Goodbye @", "Mark of @"],
    "product": ["@ {model}"],
}

LONG_NAME_SHARE, ECHO_SHARE, OPENING_SHARE, LOWER_CASE_SHARE = 0.3, 0.8, 0.2, 1 / 3

NOUNS = {
    "person": ["singer", "doctor", "teacher", "sailor"],
    "place": ["town", "village", "harbour", "region"],
    "work": ["film", "novel", "song", "play"],
    "product": ["phone", "camera", "car", "drink"],
}

SLOT = re.compile(r"(<[a-z]+\+?>)")
"""In a clause, a type in angle brackets is a name of that type, with + a list of one to three names."""

CLEAR_CLAUSES = [
    "<person+> wrote <work+>",
    "<work> was written by <person+>",
    "<work> , which <person> wrote , made <place> famous",
    "<person> , who wrote <work> , moved to <place>",
    "<person+> bought <product+>",
    "<product> was bought by <person+> in <place>",
    "<product> , which <person> bought in <place> , broke",
    "<person> , who bought <product> , wrote <work>",
    "<person+> visited <place+>",
    "<place> was visited by <person+>",
    "<place> , where <person> wrote <work> , is lovely",
    "<person> , who visited <place+> , bought <product>",
    "the author of <work> met <person+>",
    "the mayor of <place> met <person+>",
    "the price of <product> made <person> angry",
    "the brother of <person> likes <product+>",
    "the book that <person> read was <work>",
    "the city that <person> visited was <place>",
]

WEAK_CLAUSES = [
    "we left <person+> in tears",
    "we left <place+> by train",
    "we left <work+> unread",
    "we left <product+> uncharged",
    "they found <person+> asleep",
    "they found <place+> on a map",
    "they found <work+> hard to follow",
    "they found <product+> hard to repair",
]

# {this} is a noun for the type of the name, {other} one for another type.
DEFINITIONS = [
    "<name> is not a {other} but a {this}",
    "<name> is a {this} and not a {other}",
    "<name> , a {this} , is not a {other}",
    "<name> , once thought to be a {other} , is a {this}",
    "they take <name> for a {other} , but we know that it is a {this}",
    "we know that <name> is a {this} , but they take it for a {other}",
    "nobody takes <name> for a {other} , because it is a {this}",
]

LINKS = [",", ", and", ", but", "."]

# Clauses that tell nothing about the type of the name, which another clause of the sentence names, too.
ECHOES = [
    "everybody talks about <name>",
    "people love <name>",
    "<name> is our favourite",
    "nobody forgets <name>",
    "again it is <name>",
    "<name> comes first",
]

# Clauses with a second name, of the same type as the first one, which another clause of the sentence names, too.
LIKENESSES = [
    "<name> is much like <new>",
    "<new> is much like <name>",
    "<name> is a kind of <new>",
    "many confuse <new> with <name>",
    "<new> is better than <name>",
    "<name> is one , and <new> is another",
]

CLEAR, WEAK, ECHOED = 2.0, 1.0, 0.8
"""How clear the type of a name is. The annotator is wrong more often where it is less clear."""


@dataclass(frozen=True)
class Part:
    """Words of a sentence: one name, or words that are no name."""

    words: tuple[str, ...]
    type: str | None = None
    clearness: float = 0.0

    @property
    def tags(self) -> list[str]:
        """One tag a word, in the scheme BIO."""
        if self.type is None:
            return [OUTSIDE] * len(self.words)
        return [f"B-{self.type}", *[f"I-{self.type}"] * (len(self.words) - 1)]


class GeneratedMentions(GeneratedRows):
    """Sentences with names of four types, for token classification."""

    text_columns = ("tokens",)

    kind: Literal["mentions"] = "mentions"
    sureness: float = Field(1.6, gt=0)
    """How sure the annotator is: the type of a name that is as clear as c is right with probability
    1 / (1 + exp(-sureness * c)); c is 2 for a clear cue, 1 for a weak one, and 0.8 where no cue is near."""

    def rows(self, split: Split) -> dict[str, list[list[str]]]:
        """The columns `tokens` and `tags` (BIO) of one split, one list a sentence; no sentence occurs twice."""
        draw = self.random_of(split)
        sentences = self.distinct(split, partial(_sentence, draw), lambda parts: " ".join(_words(parts)))
        sureness = self.sureness if split == "train" else math.inf
        return {
            "tokens": [_words(parts) for parts in sentences],
            "tags": [[tag for part in parts for tag in _read(draw, part, sureness).tags] for parts in sentences],
        }


def _words(parts: list[Part]) -> list[str]:
    return [word for part in parts for word in part.words]


def _read(draw: random.Random, part: Part, sureness: float) -> Part:
    """The part as the annotator reads it: a name may be taken for one of another type, or for plain words."""
    if part.type is None or is_right(draw, part.clearness, sureness):
        return part
    return replace(part, type=draw.choice([None, *(kind for kind in TYPES if kind != part.type)]))


def _sentence(draw: random.Random) -> list[Part]:
    """One or two clauses with names; in most sentences a further clause repeats one of the names."""
    names = draw.sample(NAMES, len(NAMES))  # in this order, so that only a repetition names something twice
    clauses = [_clause(draw, names) for _ in range(draw.choice((1, 2, 2)))]
    if draw.random() < ECHO_SHARE:
        name = draw.choice([part for clause in clauses for part in clause if part.type])
        clauses.insert(draw.randint(0, len(clauses)), _echo(draw, name, names))
    parts = _plain(draw.choice(OPENINGS)) if draw.random() < OPENING_SHARE else []
    for number, clause in enumerate(clauses):
        parts += (_plain(draw.choice(LINKS)) if number else []) + clause
    parts += _plain(".")
    if draw.random() < LOWER_CASE_SHARE:
        parts = [replace(part, words=tuple(word.lower() for word in part.words)) for part in parts]
    return parts


def _clause(draw: random.Random, names: list[str]) -> list[Part]:
    """A clause with names, whose words are taken from the end of `names`."""
    clauses, clearness = draw.choice(((CLEAR_CLAUSES, CLEAR), (WEAK_CLAUSES, WEAK), (DEFINITIONS, CLEAR)))
    template = draw.choice(clauses)
    this, other = draw.sample(TYPES, 2)
    template = template.format(this=draw.choice(NOUNS[this]), other=draw.choice(NOUNS[other]))
    parts: list[Part] = []
    for text in SLOT.split(template.replace("<name>", f"<{this}>")):
        if not SLOT.fullmatch(text):
            parts += _plain(text)
            continue
        kind, count = text.strip("<+>"), draw.choice((1, 1, 2, 3)) if "+" in text else 1
        parts += _list_of([Part(_name(draw, kind, names), kind, clearness) for _ in range(count)])
    return parts


def _name(draw: random.Random, kind: str, names: list[str]) -> tuple[str, ...]:
    """The words of a name of this type."""
    form = draw.choice(LONG_NAMES[kind]) if draw.random() < LONG_NAME_SHARE else "@"
    form = form.format(surname=draw.choice(SURNAMES), model=draw.choice(MODELS))
    return tuple(names.pop() if word == "@" else word for word in form.split())


def _list_of(names: list[Part]) -> list[Part]:
    """The names with commas between them, and "and" before the last one."""
    parts = names[:1]
    for number, name in enumerate(names[1:], 2):
        parts += [*_plain("and" if number == len(names) else ","), name]
    return parts


def _echo(draw: random.Random, name: Part, names: list[str]) -> list[Part]:
    """A clause that repeats a name, and may liken it to a new one of the same type."""
    new = Part(_name(draw, name.type, names), name.type) if name.type else name
    slots = {"<name>": replace(name, clearness=ECHOED), "<new>": replace(new, clearness=ECHOED)}
    template = draw.choice(draw.choice((ECHOES, LIKENESSES)))
    return [part for text in SLOT.split(template) for part in ([slots[text]] if text in slots else _plain(text))]


def _plain(text: str) -> list[Part]:
    """Words that are no name, as one part; no part if there are none."""
    words = tuple(text.split())
    return [Part(words)] if words else []
