"""The nearest rows of a table are those of the cosine, and do not depend on how they are computed."""

import numpy as np
import pytest

from kdray.augmentation import nearest as module
from kdray.augmentation.nearest import nearest

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(300, 24)).astype(np.float32) * RANDOM.uniform(0.1, 9, size=(300, 1)).astype(np.float32)
CANDIDATES = np.sort(RANDOM.permutation(300)[:200])
GROUPS = np.arange(200)
QUERIES = np.arange(0, 200, 3)


def places(table: np.ndarray = TABLE, groups: np.ndarray = GROUPS, count: int = 10) -> list[list[int]]:
    return [found.tolist() for found in nearest(table, CANDIDATES, groups, QUERIES, count)]


def test_they_are_those_of_the_cosine() -> None:
    rows = TABLE[CANDIDATES].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    for query, found in zip(QUERIES, places(), strict=True):
        expected = np.sort(cosines[query])[::-1][:10]
        assert np.allclose(cosines[query][found], expected, atol=3e-4)


def test_the_order_of_the_additions_changes_nothing() -> None:
    assert places(TABLE[:, ::-1]) == places(TABLE[:, RANDOM.permutation(24)]) == places()


def test_rows_of_the_same_numbers_in_another_order_are_equally_near_to_equal_numbers() -> None:
    numbers = RANDOM.normal(size=100)
    table = np.stack([np.ones(100), *(RANDOM.permutation(numbers) for _ in range(50))]).astype(np.float32)
    (found,) = nearest(table, np.arange(51), np.arange(51), np.array([0]), 10)
    assert found.tolist() == list(range(1, 11))


def test_the_sizes_of_the_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = places()
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(module, "CANDIDATES_AT_ONCE", 13)
    assert places() == expected


def test_a_row_is_no_neighbour_of_its_group() -> None:
    groups = np.arange(200) // 4
    for query, found in zip(QUERIES, places(groups=groups), strict=True):
        assert len(found) == 10
        assert groups[query] not in groups[found]


def test_there_are_fewer_neighbours_than_asked_for_in_a_small_table() -> None:
    found = nearest(TABLE, np.array([3, 5, 7]), np.array([0, 0, 1]), np.array([0, 2]), 10)
    assert [each.tolist() for each in found] == [[2], [0, 1]] or [each.tolist() for each in found] == [[2], [1, 0]]


def test_of_equally_near_rows_the_first_ones_are_taken() -> None:
    table = np.ones((6, 3), np.float32) * np.arange(1, 7, dtype=np.float32)[:, None]
    found = nearest(table, np.arange(6), np.arange(6), np.array([2]), 3)
    assert found[0].tolist() == [0, 1, 3]


def test_rows_of_zeros_and_rows_that_are_no_numbers_are_near_to_nothing() -> None:
    table = np.array([[1, 0], [0, 0], [np.nan, np.inf], [2, 0.1]], np.float32)
    assert nearest(table, np.arange(4), np.arange(4), np.array([0]), 1)[0].tolist() == [3]


@pytest.mark.parametrize("width", [4, 1024, 4096])
def test_every_sum_is_a_whole_number_that_float32_has(width: int) -> None:
    for row in (np.ones(width), np.eye(1, width)[0], RANDOM.normal(size=width)):
        whole = module._whole_numbers(row[None].astype(np.float32), [0])
        assert np.array_equal(whole, np.rint(whole))
        assert float((whole.astype(np.float64) ** 2).sum()) < 2**24
