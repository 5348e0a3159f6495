"""Generated moods: labels that follow from the words, rows without a label, rare labels, votes."""

from collections import Counter
from itertools import chain, combinations

import pytest

from kdray.data.rows import SPLITS
from kdray.sources.generated.moods import LABELS, WORDS, GeneratedMoods

SMALL = GeneratedMoods(train_rows=2000, validation_rows=2500, test_rows=300)
TRUE = SMALL.rows("validation")


@pytest.mark.parametrize("split", SPLITS)
def test_each_row_has_names_of_labels_in_order_and_some_have_none(split: str) -> None:
    labels = SMALL.rows(split)["labels"]  # type: ignore[arg-type]
    assert all(some == [label for label in LABELS if label in some] for some in labels)
    counts = Counter(map(len, labels))
    assert counts[0] > 0.1 * len(labels)
    assert counts[2] + counts[3] > 0.1 * len(labels)


def test_all_labels_occur_and_some_are_rare() -> None:
    counts = Counter(chain.from_iterable(TRUE["labels"]))
    assert set(counts) == set(LABELS)
    assert 10 < counts["pride"] < 0.03 * len(TRUE["labels"]) < counts["joy"]


def test_joy_comes_together_with_its_reasons() -> None:
    together = Counter(pair for some in TRUE["labels"] for pair in combinations(some, 2))
    counts = Counter(chain.from_iterable(TRUE["labels"]))
    assert together["joy", "pride"] > 0.8 * counts["pride"]
    assert together["joy", "pride"] > 3 * together["pride", "anger"]


def test_the_true_labels_follow_from_the_words() -> None:
    labels = {text: set(some) for text, some in zip(TRUE["text"], TRUE["labels"], strict=True)}
    compared = 0
    for mood, by_strength in WORDS.items():
        for word in chain.from_iterable(by_strength.values()):
            expected = {
                f"i am {word} .": {mood},
                f"i am {word} because it is monday .": {mood},
                f"the soup makes me {word} .": {mood},
                f"my brother is {word} and so am i .": {mood},
                f"my brother is {word} , which i am not .": set(),
                f"the soup makes my brother {word} .": set(),
                f"i would be {word} if it rained .": set(),
                f"i used to be {word} .": {"relief"} if mood == "fear" else set(),
                f"i won a prize , so i am {word} .": {mood, "pride"} if mood == "joy" else {mood},
            }
            for text in expected.keys() & labels.keys():
                assert labels[text] == expected[text], text
                compared += 1
    assert compared > 20


def test_a_less_sure_annotator_is_wrong_more_often() -> None:
    def error_rate(sureness: float) -> float:
        votes = SMALL.model_copy(update={"sureness": sureness}).rows("train")["labels"]
        true_labels = SMALL.model_copy(update={"sureness": 1000.0}).rows("train")["labels"]
        return sum(vote != some for vote, some in zip(votes, true_labels, strict=True)) / len(votes)

    assert 0.02 < error_rate(3.2) < error_rate(1.6) < error_rate(0.8) < 0.6
