"""Which layer of a student learns from which layer of its teacher."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.losses.layer_map import LAYER_MAPS, layer_pairs

DEPTHS = range(1, 13)
every_name = pytest.mark.parametrize("name", list(LAYER_MAPS))


@every_name
def test_the_pairs_of_a_name_are_in_range_and_ascend_at_all_depths(name: str) -> None:
    for student in DEPTHS:
        for teacher in DEPTHS:
            pairs = layer_pairs(name, student, teacher)
            assert [pair[0] for pair in pairs] == ([student] if name == "final" else list(range(1, student + 1)))
            assert all(1 <= layer <= teacher for _, layer in pairs)
            # Two layers learn from one layer only where the student has more of them.
            fewest = 0 if student > teacher else 1
            assert all(after[1] - before[1] >= fewest for before, after in pairwise(pairs))


@every_name
def test_models_of_the_same_depth_have_each_layer_paired_with_its_own(name: str) -> None:
    assert layer_pairs(name, 6, 6)[-1] == (6, 6)
    assert all(student == teacher for student, teacher in layer_pairs(name, 6, 6))


@pytest.mark.parametrize("name", ["evenly", "last", "final"])
def test_the_last_layers_are_a_pair(name: str) -> None:
    assert all(layer_pairs(name, s, t)[-1] == (s, t) for s in DEPTHS for t in DEPTHS)


@pytest.mark.parametrize(
    ("name", "teachers"),
    [
        ("evenly", (3, 6, 9, 12)),  # TinyBERT with 4 layers
        ("skip", (3, 6, 9, 12)),
        ("first", (1, 2, 3, 4)),
        ("last", (9, 10, 11, 12)),
    ],
)
def test_four_layers_that_learn_from_twelve(name: str, teachers: tuple[int, ...]) -> None:
    assert layer_pairs(name, 4, 12) == tuple(enumerate(teachers, start=1))


def test_the_examples_of_the_documents_are_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (\d+:\d+[^|]*) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(LAYER_MAPS)
    for name, written in rows:
        assert ", ".join(f"{student}:{teacher}" for student, teacher in layer_pairs(name, 5, 12)) == written


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("1:4,2:8", ((1, 4), (2, 8))),
        (" 2 : 1 , 1:12 ", ((2, 1), (1, 12))),
        ("2:3,2:4,1:3", ((2, 3), (2, 4), (1, 3))),
    ],
)
def test_explicit_pairs(text: str, pairs: tuple[tuple[int, int], ...]) -> None:
    assert Distillation(layer_map=text).layer_map == text
    assert layer_pairs(text, 2, 12) == pairs


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("evenli", "did you mean 'evenly'? Allowed: evenly, skip, first, last, final. Or give pairs of layers, "),
        ("", "Allowed: evenly, skip, first, last, final. Or give pairs of layers, student:teacher from 1: "),
        ("1:4,", "Allowed: evenly, "),
        ("1:4;2:8", "Allowed: evenly, "),
        ("1-4", "Allowed: evenly, "),
        ("1:-4", "Allowed: evenly, "),
        ("1:99999", "Allowed: evenly, "),
        ("0:0,1:4", "layers are numbered from 1. The weight distillation.embeddings compares layer 0."),
        ("1:4,1:4", "it has a pair twice. Give each pair once."),
    ],
)
def test_other_texts_are_refused(text: str, part: str) -> None:
    with pytest.raises(SpecError) as caught:
        Distillation(layer_map=text)
    assert str(caught.value).startswith(f"Distillation.layer_map: got {text!r}; ")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("depths", "part"),
    [
        ((2, 12), "got '1:4,3:8', but the student has no layer 3: it has 2 layers, numbered from 1."),
        ((1, 12), "got '1:4,3:8', but the student has no layer 3: it has 1 layer, numbered from 1."),
        ((3, 6), "got '1:4,3:8', but the teacher has no layer 8: it has 6 layers, numbered from 1."),
    ],
)
def test_pairs_beyond_the_depths_are_refused(depths: tuple[int, int], part: str) -> None:
    with pytest.raises(SpecError, match=re.escape(f"distillation.layer_map: {part}")):
        layer_pairs("1:4,3:8", *depths)
