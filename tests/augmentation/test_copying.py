"""Copies depend on the seed, their number and their row alone; nothing is dropped, and unchanged copies are counted."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdray.augmentation import copying
from kdray.augmentation.copying import Copier, CopyInputs, copy_inputs
from kdray.augmentation.settings import Augmentation
from kdray.augmentation.texts import words_of
from kdray.augmentation.ways import WAYS
from kdray.data.splits import Data, load_splits
from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import Pretrained
from kdray.storage.paths import StoragePaths
from tests.augmentation.tiny import TEXTS, WORDS, make_copier
from tests.task_inputs import KINDS

MANY = [" ".join(WORDS[first : first + length]) for first in range(20) for length in (3, 7, 12)]
EVERY = tuple(WAYS)

MakeCopier = Callable[..., Copier]


@pytest.fixture
def copier_of(tiny_teacher: Pretrained, tiny_masked_lm: Pretrained) -> MakeCopier:
    """A function that makes a copier with these settings of Augmentation and the tiny models."""

    def make(ways: str | tuple[str, ...] = EVERY, **settings: Any) -> Copier:
        model = {"model": "any"} if "masked_lm" in ways else {}
        return make_copier(tiny_teacher, tiny_masked_lm, ways=ways, **model, **settings)

    return make


@dataclass
class Found:
    """All copies of some rows."""

    columns: dict[str, list[Any]]
    unchanged: int
    notes: tuple[str, ...]


def copies_of(copier: Copier, number: int = 1, **columns: list[Any]) -> Found:
    """The copies of these columns, whose types they keep."""
    table = pa.table(columns)
    found = copier.copy(table, number)
    assert found.schema == table.schema
    return Found(found.to_pydict(), sum(each.unchanged for each in copier.copies(table, number)), copier.notes)


@pytest.mark.parametrize("ways", [*EVERY, EVERY])
def test_every_text_has_a_copy_and_unchanged_ones_are_counted(copier_of: MakeCopier, ways: Any) -> None:
    texts = [*TEXTS, *MANY]
    found = copies_of(copier_of(ways), text=texts)
    unchanged = [text for text, copy in zip(texts, found.columns["text"], strict=True) if text == copy]
    assert found.unchanged == len(unchanged)
    assert {"", "   "} <= set(unchanged) <= {"", "   ", "bad", *TEXTS}
    assert found.notes == (
        f"augmentation: {len(unchanged)} of {len(texts)} copies equal their text, because no way of augmentation.ways "
        f"can change it, such as {unchanged[0]!r}.",
    )


def test_copies_depend_on_number_and_seed(copier_of: MakeCopier) -> None:
    copier = copier_of()
    second = copies_of(copier, 2, text=MANY)
    assert copies_of(copier_of(copies=8), 2, text=MANY) == second
    assert copies_of(copier, 1, text=MANY) != second
    assert copies_of(copier_of(seed=1), 2, text=MANY) != second


@pytest.mark.parametrize("way", EVERY)
def test_a_copy_depends_on_no_other_row(copier_of: MakeCopier, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = copies_of(copier_of(way), text=MANY).columns["text"]
    assert copies_of(copier_of(way), text=MANY[:7]).columns["text"] == expected[:7]
    assert copies_of(copier_of(way), text=["other"] * 5 + MANY[5:]).columns["text"][5:] == expected[5:]
    monkeypatch.setattr(copying, "ROWS_AT_ONCE", 4)
    assert copies_of(copier_of(way), text=MANY).columns["text"] == expected


def test_the_same_text_has_other_copies_in_other_rows(copier_of: MakeCopier) -> None:
    assert len(set(copies_of(copier_of(), text=[MANY[-1]] * 30).columns["text"])) > 10


def test_every_way_is_used_about_equally_often(copier_of: MakeCopier) -> None:
    found = copies_of(copier_of(("mask", "ngrams", "delete")), text=[" ".join(WORDS)] * 300).columns["text"]
    masked = sum("[MASK]" in text for text in found)
    short = sum(len(text.split()) <= 5 for text in found)
    assert 70 < masked < 130
    assert 70 < short < 130


def test_another_way_is_tried_where_one_cannot_change_a_text(copier_of: MakeCopier) -> None:
    assert copies_of(copier_of("delete"), text=["bad"] * 10).unchanged == 10
    assert copies_of(copier_of(("delete", "order", "neighbours")), text=["bad"] * 10).unchanged == 0


def test_both_texts_of_a_pair_change_and_one_alone(copier_of: MakeCopier) -> None:
    first, second = MANY, MANY[::-1]
    found = copies_of(copier_of(("mask", "order")), text=first, pair=second)
    is_changed = [
        (text != copy, pair != other)
        for text, copy, pair, other in zip(first, found.columns["text"], second, found.columns["pair"], strict=True)
    ]
    counts = [is_changed.count(each) for each in ((True, False), (False, True), (True, True))]
    assert sum(counts) == len(MANY)
    assert min(counts) > 10
    # Each text has its own changes.
    same = copies_of(copier_of("mask"), text=first, pair=first).columns
    assert any(one != other for one, other in zip(same["text"], same["pair"], strict=True) if "[MASK]" in one + other)


def test_the_text_of_a_pair_that_has_words_changes(copier_of: MakeCopier) -> None:
    found = copies_of(copier_of("mask"), text=["", "bad", MANY[0]] * 10, pair=[MANY[0], MANY[1], ""] * 10)
    assert found.unchanged == 0
    assert set(found.columns["text"][0::3]) == {""}
    assert set(found.columns["text"][1::3]) == {"bad"}
    assert set(found.columns["pair"][2::3]) == {""}


def test_lists_of_words_keep_their_number_of_words(copier_of: MakeCopier) -> None:
    lists = [text.split() for text in MANY] + [["New York", "is", "good"], ["bad"], ["👩‍🚀"]]
    found = copies_of(copier_of(("mask", "neighbours", "masked_lm")), text=lists)
    assert [len(copy) for copy in found.columns["text"]] == [len(words) for words in lists]
    assert all(isinstance(copy, list) for copy in found.columns["text"])
    assert found.unchanged == 1


def test_a_student_reads_its_own_mask_token_in_the_same_places(tiny_teacher: Pretrained) -> None:
    reader = tiny_teacher.tokenizer()
    reader.mask_token = "<mask>"
    inputs = CopyInputs(Augmentation(ways=("mask", "neighbours", "delete")), tiny_teacher)
    expected = copies_of(Copier(inputs), text=MANY).columns["text"]
    found = copies_of(Copier(inputs, reader=reader), text=MANY).columns["text"]
    assert found == [text.replace("[MASK]", "<mask>") for text in expected]
    assert any("<mask>" in text for text in found)


def test_ways_that_do_not_keep_words_are_refused_for_lists(copier_of: MakeCopier) -> None:
    with pytest.raises(SpecError, match=r"augmentation\.ways: got order, which changes the number or the order"):
        copies_of(copier_of(("mask", "order")), text=[["a", "film"]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_every_task_have_copies(copier_of: MakeCopier, kind: str) -> None:
    task, source = KINDS[kind]
    rows = load_splits(Data(source=source), task).validation.data.table
    texts = rows.select([name for name in ("text", "pair") if name in rows.column_names])
    found = copier_of("mask").copy(texts, 1)
    assert found.schema == texts.schema
    assert found.num_rows == texts.num_rows
    assert found != texts


def test_words_of_languages_without_spaces_change_one_by_one(copier_of: MakeCopier) -> None:
    found = copies_of(copier_of("neighbours"), text=["好电影"] * 20)
    assert found.unchanged == 0
    assert all(len(words_of(text)) == 3 for text in found.columns["text"])
    deleted = copies_of(copier_of("delete"), text=["好电影"] * 20).columns["text"]
    assert set(deleted) <= {"好电", "电影", "好影"}


def test_copies_are_the_same_in_every_process(copier_of: MakeCopier) -> None:
    found = copies_of(copier_of(("ngrams", "order", "delete", "mask")), 3, text=MANY[:8])
    assert found.columns["text"] == GOLDEN


GOLDEN = [
    "the [MASK] film",
    "the film a movie plot story cast",
    "the [MASK] film movie plot story [MASK] script music with and of",
    "film a movie",
    "story cast",
    "a movie film story plot cast music script with and of is",
    "[MASK] movie plot",
    "film movie plot story script music",
]


def test_the_key_has_what_copies_depend_on(tiny_teacher: Pretrained, tiny_masked_lm: Pretrained) -> None:
    other = Pretrained(tiny_teacher.folder, "other")

    def key(teacher: Pretrained = tiny_teacher, model: Pretrained | None = None, **settings: Any) -> str:
        given = {"model": "any"} if model else {}
        return CopyInputs(Augmentation(**given, **settings), teacher, model).key

    different = [
        key(ways="order"),
        key(ways="delete"),
        key(ways="order,delete"),
        key(ways="order", seed=1),
        key(ways="order", share=0.2),
        key(ways="mask"),
        key(ways="mask", teacher=other),
        key(ways="masked_lm", model=tiny_masked_lm),
        key(ways="masked_lm", model=other),
    ]
    assert len(set(different)) == len(different)
    assert key(ways="order", copies=8) == key(ways="order")
    # Deletion needs no tokenizer, so another teacher changes nothing.
    assert key(ways="order", teacher=other) == key(ways="order")
    assert key(ways="masked_lm", model=tiny_masked_lm, teacher=other) == key(ways="masked_lm", model=tiny_masked_lm)


def test_inputs_are_checked_and_small_enough_to_be_sent_to_a_job(
    tiny_teacher: Pretrained, tiny_masked_lm: Pretrained, tmp_path: Path
) -> None:
    settings = Augmentation(ways=EVERY, model=str(tiny_masked_lm.folder))
    inputs = copy_inputs(settings, tiny_teacher, StoragePaths(tmp_path))
    sent = pickle.loads(pickle.dumps(inputs))
    assert len(pickle.dumps(inputs)) < 5000
    assert sent == inputs
    assert copies_of(Copier(sent), text=MANY[:4]) == copies_of(Copier(inputs), text=MANY[:4])
    with pytest.raises(TeacherError, match=r"augmentation\.model .*nowhere: no such folder"):
        copy_inputs(Augmentation(ways="masked_lm", model="./nowhere"), tiny_teacher, StoragePaths(tmp_path))


def test_no_note_where_all_texts_changed(copier_of: MakeCopier) -> None:
    assert copies_of(copier_of("mask"), text=MANY).notes == ()


def test_a_copy_that_is_made_again_is_counted_once(copier_of: MakeCopier) -> None:
    copier = copier_of("mask")
    for number in (1, 2, 1, 2):
        copier.copy(pa.table({"text": ["bad", MANY[0]]}), number)
    assert copier.notes[0].startswith("augmentation: 2 of 4 copies equal their text")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.large_list(pa.large_string())])
def test_no_rows_have_no_copies(copier_of: MakeCopier, kind: pa.DataType) -> None:
    none = pa.table({"text": pa.array([], kind)})
    assert copier_of("mask").copy(none, 1) == none
