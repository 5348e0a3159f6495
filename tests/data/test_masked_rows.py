"""Rows that are masked when they are read: the masks of a row depend on its number in the file, and on the pass."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdray.data.masked_rows import MaskedRows
from kdray.data.masking import Masking
from kdray.data.rows import Batch, Layout, Rows

PADDING, MASK, VOCABULARY = 1, 4, 90
ROWS = 12


def write_file(file: Path, has_words: bool, has_types: bool) -> Path:
    """Rows of 2 to 25 tokens, one special token on each side; the fourth row has no token to mask."""
    draw = np.random.default_rng(3)
    lengths = draw.integers(3, 26, ROWS)
    lengths[3] = 2
    inner = [[*map(int, draw.integers(5, VOCABULARY, length - 2))] for length in lengths]
    lists = {
        "label": pa.array(inner, pa.large_list(pa.int32())),
        "place": pa.array([[*range(1, length - 1)] for length in lengths], pa.large_list(pa.int32())),
    }
    if has_words:
        begins = [[int(place % 3 != 1) for place in range(len(row))] for row in inner]
        lists["begins"] = pa.array(begins, pa.large_list(pa.int8()))
    lists["input_ids"] = pa.array([[2, *row, 3] for row in inner], pa.large_list(pa.int32()))
    if has_types:
        lists["token_type_ids"] = pa.array([[1, *[0] * len(row), 1] for row in inner], pa.large_list(pa.int8()))
    batch = pa.record_batch({"id": np.arange(ROWS), "length": lengths.astype(np.int32), **lists})
    with pa.ipc.new_file(str(file), batch.schema) as writer:
        writer.write_batch(batch)
    return file


@pytest.fixture(scope="module", params=["tokens", "words", "types"])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MaskedRows:
    file = tmp_path_factory.mktemp("rows") / "train.arrow"
    write_file(file, has_words=request.param == "words", has_types=request.param == "types")
    padding = {"input_ids": PADDING} | ({"token_type_ids": 0} if request.param == "types" else {})
    return MaskedRows(file, Layout(padding, 32, top_k=5, masking=Masking(0.3, MASK, VOCABULARY)))


def plain(rows: MaskedRows) -> Rows:
    """The same rows as they are in the file."""
    return Rows(*rows._arguments[:2])


def masks(batch: Batch) -> dict[int, list[tuple[int, int, int]]]:
    """Example id -> place, token and gold of each masked token; the ids of these rows are different."""
    assert batch.places_A is not None
    width = batch.inputs["input_ids"].shape[1]
    found: dict[int, list[tuple[int, int, int]]] = {int(number): [] for number in batch.ids}
    for place, gold in zip(batch.places_A.tolist(), batch.gold.tolist(), strict=True):
        row, column = divmod(place, width)
        found[int(batch.ids[row])].append((column, int(batch.inputs["input_ids"][row, column]), gold))
    return found


def all_masks(rows: Rows) -> dict[int, list[tuple[int, int, int]]]:
    return masks(rows.batch(np.arange(len(rows))))


@given(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS, unique=True), st.sampled_from([1, 8]))
@settings(max_examples=30)
def test_padding_and_the_other_rows_of_a_batch_change_nothing(
    rows: MaskedRows, indices: list[int], multiple: int
) -> None:
    batch = rows.batch(np.array(indices), multiple)
    expected = all_masks(rows)
    assert masks(batch) == {row: expected[row] for row in indices}
    assert rows.count_answers(np.array(indices)) == (len(batch.gold), len(batch.gold))


def test_a_batch_differs_from_the_file_at_its_answers_alone(rows: MaskedRows) -> None:
    chosen = np.arange(ROWS)
    batch, whole = rows.batch(chosen), plain(rows).batch(chosen)
    assert batch.places_A is not None
    assert whole.places_A is not None
    before = whole.inputs["input_ids"].flatten()
    assert torch.equal(batch.gold, before[batch.places_A])
    changed = torch.nonzero(batch.inputs["input_ids"].flatten() != before)[:, 0]
    assert len(changed) > 10
    assert {*changed.tolist()} <= {*batch.places_A.tolist()} <= {*whole.places_A.tolist()}
    assert batch.inputs.keys() == whole.inputs.keys()
    for name in batch.inputs.keys() - {"input_ids"}:
        assert torch.equal(batch.inputs[name], whole.inputs[name])
    assert batch.top_k == 5
    assert batch.teacher_logits_AxC is None


def test_each_pass_has_its_own_masks(rows: MaskedRows) -> None:
    first = all_masks(rows)
    second = all_masks(rows.at_pass(1))
    assert second != first
    assert all_masks(rows.at_pass(1).at_pass(0)) == first == all_masks(rows.at_pass(0))
    long = [row for row in first if len(first[row]) >= 4]
    assert len(long) > 3
    assert all(first[row] != second[row] for row in long)


def test_the_tokens_of_rows_that_are_masked_anew_are_not_known(rows: MaskedRows) -> None:
    assert rows.token_ids is None
    assert rows.first(1).token_ids is None


def test_parts_and_copies_of_rows_keep_the_masks_and_the_pass(rows: MaskedRows) -> None:
    later = rows.at_pass(5)
    expected = all_masks(later)
    for part, numbers in (
        (later.first(4), range(4)),
        (later.part(3, 9), range(3, 9)),
        (later.part(3, 9).part(2, 5), range(5, 8)),
        (later.part(3, 9).first(2), range(3, 5)),
        (rows.part(3, 9).at_pass(5), range(3, 9)),
        (pickle.loads(pickle.dumps(later.part(1, 4))), range(1, 4)),
    ):
        assert all_masks(part) == {row: expected[row] for row in numbers}


def test_the_shares_of_two_workers_are_those_of_one(rows: MaskedRows) -> None:
    """Each worker has mapped the file itself, and reads its part of the global batch."""
    indices = np.array([7, 2, 9, 3, 0, 11])
    whole = rows.at_pass(2).batch(indices)
    shares = []
    for rank in range(2):
        own: MaskedRows = pickle.loads(pickle.dumps(rows))
        shares.append(own.at_pass(2).batch(indices[rank::2]))
    assert {**masks(shares[0]), **masks(shares[1])} == masks(whole)
    assert sum(len(share.gold) for share in shares) == rows.at_pass(2).count_answers(indices)[0]


def test_a_row_without_tokens_to_mask_has_no_answers(rows: MaskedRows) -> None:
    batch = rows.batch(np.array([3]))
    assert rows.count_answers(np.array([3])) == (0, 0)
    assert len(batch.gold) == 0
    assert batch.inputs["input_ids"].tolist() == [[2, 3]]


def test_the_file_is_not_changed(rows: MaskedRows) -> None:
    before = plain(rows).batch(np.arange(ROWS)).inputs["input_ids"]
    for number in range(3):
        rows.at_pass(number).batch(np.arange(ROWS))
    assert torch.equal(plain(rows).batch(np.arange(ROWS)).inputs["input_ids"], before)
