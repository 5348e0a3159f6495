"""Generated pairs: scores that follow from the scenes, and an annotator who gives half points."""

import random
from dataclasses import replace

import numpy as np
import pytest

from kdray.sources.generated import pairs as generated_pairs
from kdray.sources.generated.pairs import GeneratedPairs, Scene, Word, similarity

SMALL = GeneratedPairs(train_rows=3000, validation_rows=3000, test_rows=50)

DOG, CAT, BOY = Word(0, 0), Word(0, 1), Word(1, 0)
CHASED, FOLLOWED, HELPED = Word(0, 0), Word(0, 1), Word(1, 0)
SCENE = Scene(agent=DOG, verb=CHASED, patient=BOY, place=0, time=None, is_denied=False)


def test_scores_lie_between_0_and_5_and_all_levels_occur() -> None:
    for split in ("train", "validation"):
        scores = np.array(SMALL.rows(split)["score"])
        assert (scores.min(), scores.max()) == (0.0, 5.0)
        assert (np.histogram(scores, bins=5, range=(0, 5))[0] > 150).all()


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({}, 5.0),
        ({"is_denied": True}, 1.5),
        ({"place": 1}, 5 * 3.9 / 4.5),
        ({"place": None}, 5 * 3.9 / 4.5),
        ({"verb": FOLLOWED}, 5 * 3.6 / 4.5),
        ({"verb": HELPED}, 5 * 1.5 / 4.5),
        ({"agent": CAT}, 5 * 3.78 / 4.5),
        ({"agent": BOY, "patient": DOG}, 5 * 2.1 / 4.5),
        ({"verb": HELPED, "place": 1, "agent": BOY, "patient": DOG}, 0.0),
    ],
)
def test_each_change_of_a_scene_costs_its_weight(changes: dict[str, object], score: float) -> None:
    other = replace(SCENE, **changes)  # type: ignore[arg-type]
    assert similarity(SCENE, other) == pytest.approx(score)
    assert similarity(other, SCENE) == pytest.approx(score)


def test_a_scene_has_many_sentences() -> None:
    draw = random.Random(0)
    followed = replace(SCENE, verb=Word(0, 1), place=None)
    sentences = {generated_pairs._sentence(draw, followed) for _ in range(2000)}
    assert {
        "the dog followed a boy .",
        "a lad was followed by the hound .",
        "a boy led the dog .",
        "the hound was led by a lad .",
    } <= sentences
    assert "the dog led a boy ." not in sentences


def test_the_annotator_gives_half_points_near_the_true_score() -> None:
    exact = SMALL.model_copy(update={"spread": 0.0}).rows("train")
    noisy = SMALL.rows("train")
    assert exact["text"] == noisy["text"]
    errors = np.array(noisy["score"]) - np.array(exact["score"])
    assert set(np.array(noisy["score"]) * 2) == set(range(11))
    assert abs(errors.mean()) < 0.1
    assert 0.4 < errors.std() < 0.7
