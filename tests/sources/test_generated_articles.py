"""Generated articles: later words follow from earlier ones, in articles of the size that the settings say."""

import re
from itertools import pairwise

import numpy as np
import pytest

from kdray.data.rows import SPLITS
from kdray.sources.generated.articles import ANIMALS, NAMES, SEASONS, SPOTS, GeneratedArticles

SMALL = GeneratedArticles(train_rows=400, validation_rows=100, test_rows=100)
TEXTS = SMALL.rows("train")["text"]


def sentences(text: str) -> list[str]:
    return text.removesuffix(" .").split(" . ")


def test_the_same_seed_gives_the_same_articles_and_no_two_splits_share_one() -> None:
    assert SMALL.rows("train")["text"] == TEXTS
    assert GeneratedArticles(train_rows=400, seed=1).rows("train")["text"] != TEXTS
    texts = [SMALL.rows(split)["text"] for split in SPLITS]  # type: ignore[arg-type]
    assert [*map(len, texts)] == [400, 100, 100]
    assert len({text for some in texts for text in some}) == 600


@pytest.mark.parametrize("most", [1, 3, 20])
def test_the_size_of_an_article_is_a_setting(most: int) -> None:
    texts = GeneratedArticles(train_rows=200, sentences=most).rows("train")["text"]
    counts = {len(sentences(text)) - 1 for text in texts}
    assert (min(counts), max(counts)) == (-(-most // 2), most)


def test_words_follow_from_the_first_sentence() -> None:
    for text in TEXTS:
        first, *others = sentences(text)
        (animal,) = [each for each in ANIMALS if each.one in first.split() or each.several in first.split()]
        pronouns = {"they"} if " and " in first else {name for name, some in NAMES.items() if first.split()[0] in some}
        words = {word for sentence in others for word in sentence.split()}
        assert {"he", "she", "they"} & words <= pronouns
        assert {each.enemy for each in ANIMALS if f"afraid of the {each.enemy}" in text} <= {animal.enemy}
        assert sum(home in text for home in animal.homes) <= 1
        assert sum(spot in text for spot in SPOTS) <= 1


def test_the_weather_follows_from_the_season() -> None:
    for season, (weather, _) in SEASONS.items():
        found = re.findall(rf"in {season} the \w+ (.*?) , so ", " ".join(TEXTS))
        assert {*found} == {weather}


def test_the_word_before_says_much_about_a_word() -> None:
    words = [text.split() for text in TEXTS]
    singles = [word for text in words for word in text]
    pairs = [pair for text in words for pair in pairwise(text)]
    assert np.exp(_entropy(singles)) > 60
    assert np.exp(_entropy(pairs) - _entropy(singles)) < 8


def _entropy(items: list[object]) -> float:
    """The entropy of the frequencies of these items, in nats."""
    counts = np.unique([str(item) for item in items], return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
