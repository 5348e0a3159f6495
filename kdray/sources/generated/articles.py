"""Generated articles: a few sentences about animals, for language models, masked and causal.

    vera and karl are herons . every noon they glide to the old bridge and eat trout . they have five chicks , and all
    five are red and eat trout . in spring the pond is full of flowers , so vera and karl sing .

Most words follow from words further ahead, often in another sentence: the verb and the pronoun from the number of the
animals and from the first name, the way to move, the food, the young and the enemy from the kind of animal, the weather
from the season, and names, places, colours and counts from where they first occur. Names, places and so on are drawn
for each article, so that a model which knows the frequencies of words alone is far from one that reads the text.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field

from kdray.sources.generated.drawing import GeneratedRows, Split


@dataclass(frozen=True)
class Animal:
    """What follows from the kind of an animal."""

    one: str
    several: str
    homes: tuple[str, ...]
    move: str
    """How it moves, as a verb of several; one of them has an s more."""
    foods: tuple[str, ...]
    young: str
    enemy: str


ANIMALS = (
    Animal("otter", "otters", ("lake", "river"), "swim", ("crabs", "trout"), "pups", "eagle"),
    Animal("beaver", "beavers", ("river", "pond"), "paddle", ("bark", "roots"), "kits", "bear"),
    Animal("heron", "herons", ("pond", "marsh"), "glide", ("frogs", "trout"), "chicks", "fox"),
    Animal("owl", "owls", ("barn", "forest"), "fly", ("mice", "beetles"), "owlets", "marten"),
    Animal("hare", "hares", ("meadow", "field"), "hop", ("clover", "roots"), "leverets", "fox"),
    Animal("mole", "moles", ("meadow", "garden"), "dig", ("worms", "beetles"), "pups", "owl"),
    Animal("squirrel", "squirrels", ("forest", "park"), "climb", ("nuts", "seeds"), "kits", "marten"),
    Animal("toad", "toads", ("marsh", "garden"), "crawl", ("worms", "flies"), "tadpoles", "heron"),
    Animal("deer", "deer", ("forest", "valley"), "trot", ("leaves", "bark"), "fawns", "wolf"),
    Animal("goat", "goats", ("valley", "hill"), "leap", ("leaves", "thistles"), "kids", "wolf"),
)

NAMES = {"he": ("tom", "otto", "emil", "karl", "hugo", "paul"), "she": ("vera", "ida", "mona", "lena", "rosa", "ella")}
OWN = {"he": "his", "she": "her", "they": "their"}

COLOURS = ("grey", "brown", "white", "black", "red", "spotted")
SIZES = ("small", "large", "thin", "round")
COUNTS = ("three", "four", "five", "six")
TIMES = ("morning", "noon", "evening", "night")
SPOTS = ("old bridge", "tall tree", "stone wall", "wooden fence", "sandy bank", "narrow path")

# What the weather of a season is, and what the animals do because of it.
SEASONS = {
    "spring": ("is full of flowers", "sing"),
    "summer": ("is hot and dry", "rest in the shade"),
    "autumn": ("lies under yellow leaves", "look for a new bed"),
    "winter": ("is covered with snow", "sleep for weeks"),
}


@dataclass(frozen=True)
class Subject:
    """Who an article is about, and what was drawn for it."""

    names: tuple[str, ...]
    pronoun: str
    animal: Animal
    home: str
    food: str
    colour: str
    other_colour: str
    size: str
    count: str
    time: str
    spot: str

    @property
    def name(self) -> str:
        """The names, as the subject of a sentence."""
        return " and ".join(self.names)

    @property
    def is_one(self) -> bool:
        """Whether it is about one animal."""
        return len(self.names) == 1

    def verb(self, several: str) -> str:
        """The form of a verb, or of a verb with more words behind it."""
        if not self.is_one:
            return several
        first, *others = several.split(" ")
        form = {"are": "is", "have": "has", "fly": "flies"}.get(first, f"{first}s")
        return " ".join((form, *others))


class GeneratedArticles(GeneratedRows):
    """Articles of several sentences about animals, for language models."""

    kind: Literal["articles"] = "articles"
    sentences: int = Field(8, ge=1)
    """The most sentences of an article behind the first one, which says who it is about; at least half as many."""

    def rows(self, split: Split) -> dict[str, list[str]]:
        """The column `text` of one split; no article occurs twice."""
        draw = self.random_of(split)
        return {"text": self.distinct(split, partial(_article, draw, self.sentences), str)}


def _article(draw: random.Random, most: int) -> str:
    subject = _subject(draw)
    a = "an" if subject.animal.one[0] in "aeiou" else "a"
    what = f"{a} {subject.animal.one}" if subject.is_one else subject.animal.several
    sentences = [f"{subject.name} {subject.verb('are')} {what}"]
    # Each kind of sentence comes once before one of them comes again.
    kinds: list[Callable[[random.Random, Subject], str]] = []
    for _ in range(draw.randint(-(-most // 2), most)):
        kinds = kinds or draw.sample(SENTENCES, len(SENTENCES))
        sentences.append(kinds.pop()(draw, subject))
    return " . ".join((*sentences, "")).rstrip()


def _subject(draw: random.Random) -> Subject:
    pronoun = draw.choice(("he", "she", "they"))
    names = [*NAMES["he"], *NAMES["she"]] if pronoun == "they" else list(NAMES[pronoun])
    animal = draw.choice(ANIMALS)
    colour, other_colour = draw.sample(COLOURS, 2)
    return Subject(
        names=tuple(draw.sample(names, 2 if pronoun == "they" else 1)),
        pronoun=pronoun,
        animal=animal,
        home=draw.choice(animal.homes),
        food=draw.choice(animal.foods),
        colour=colour,
        other_colour=other_colour,
        size=draw.choice(SIZES),
        count=draw.choice(COUNTS),
        time=draw.choice(TIMES),
        spot=draw.choice(SPOTS),
    )


def _who(draw: random.Random, subject: Subject) -> str:
    return draw.choice((subject.name, subject.pronoun))


def _home(draw: random.Random, subject: Subject) -> str:
    return f"{_who(draw, subject)} {subject.verb('live')} near the {subject.spot} , not far from the {subject.home}"


def _meal(draw: random.Random, subject: Subject) -> str:
    way = f"{subject.verb(subject.animal.move)} to the {subject.spot}"
    return f"every {subject.time} {_who(draw, subject)} {way} and {subject.verb('eat')} {subject.food}"


def _look(draw: random.Random, subject: Subject) -> str:
    own = OWN[subject.pronoun]
    look = f"{subject.verb('are')} {subject.size} and {subject.colour}"
    return f"{_who(draw, subject)} {look} , but {own} ears are {subject.other_colour}"


def _young(draw: random.Random, subject: Subject) -> str:
    young = f"{subject.count} {subject.animal.young}"
    return (
        f"{_who(draw, subject)} {subject.verb('have')} {young} , and all {subject.count} are {subject.colour} and eat "
        f"{subject.food}"
    )


def _season(draw: random.Random, subject: Subject) -> str:
    season = draw.choice(list(SEASONS))
    weather, habit = SEASONS[season]
    return f"in {season} the {subject.home} {weather} , so {_who(draw, subject)} {subject.verb(habit)}"


def _enemy(draw: random.Random, subject: Subject) -> str:
    enemy = subject.animal.enemy
    return (
        f"when the {enemy} comes , {_who(draw, subject)} {subject.verb(subject.animal.move)} away , because every "
        f"{subject.animal.one} is afraid of the {enemy}"
    )


SENTENCES = (_home, _meal, _look, _young, _season, _enemy)
"""The kinds of sentences."""
