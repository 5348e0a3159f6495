"""The nearest rows of a table of embeddings by cosine, the same ones on every machine.

Sums of floats depend on the order of the additions, which differs between processors and libraries, so that of two
equally near words one or the other would be taken. Here the rows are scaled to a length of 4000 and rounded to whole
numbers: every partial sum of a product of two rows is then a whole number below 2**24, which float32 adds without
rounding. The cosines are right to about 1e-4.

Letters: V rows of the table, H numbers of a row, C candidates, Q candidates whose neighbours are searched, K
neighbours.
"""

from collections.abc import Sequence

import numpy as np

LENGTH = 4000
"""The length of a row before rounding, which adds at most sqrt(H) / 2: up to H = 36,000, less than 4096 = 2**12."""
QUERIES_AT_ONCE, CANDIDATES_AT_ONCE = 512, 4096
"""The sizes of a block of similarities; with int64 it has 16 MB."""
EXCLUDED = np.iinfo(np.int64).min


def nearest(
    table_VxH: np.ndarray, candidates_C: np.ndarray, groups_C: np.ndarray, queries_Q: np.ndarray, count: int
) -> list[np.ndarray]:
    """For each query the places in `candidates_C` of its nearest candidates, at most `count`, nearest first.

    Candidates are rows of the table; queries are places in `candidates_C`. A candidate of the same group as the query
    is no neighbour, the query itself among them. Of equally near candidates, the first ones are taken.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(queries_Q), QUERIES_AT_ONCE):
        keys_QxK = _best_keys(table_VxH, candidates_C, groups_C, queries_Q[start : start + QUERIES_AT_ONCE], count)
        found += [_places(keys_K, len(candidates_C)) for keys_K in keys_QxK]
    return found


def _best_keys(
    table_VxH: np.ndarray, candidates_C: np.ndarray, groups_C: np.ndarray, queries_Q: np.ndarray, count: int
) -> np.ndarray:
    """The largest keys of each query (Q x K), not in order.

    A key is similarity * C + (C - 1 - place): keys are different, and greater for earlier places of equal similarity.
    """
    total = len(candidates_C)
    queries_QxH = _whole_numbers(table_VxH, candidates_C[queries_Q])
    best_QxK = np.full((len(queries_Q), count), EXCLUDED)
    for start in range(0, total, CANDIDATES_AT_ONCE):
        places = np.arange(start, min(start + CANDIDATES_AT_ONCE, total))
        similarities = queries_QxH @ _whole_numbers(table_VxH, candidates_C[places]).T
        keys = similarities.astype(np.int64) * total + (total - 1 - places)
        keys[groups_C[queries_Q][:, None] == groups_C[places]] = EXCLUDED
        best_QxK = np.partition(np.concatenate([best_QxK, keys], axis=1), -count, axis=1)[:, -count:]
    return best_QxK


def _places(keys_K: np.ndarray, total: int) -> np.ndarray:
    keys = np.sort(keys_K[keys_K != EXCLUDED])[::-1]
    return total - 1 - keys % total


def _whole_numbers(table_VxH: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """These rows with a length of about `LENGTH`, as whole numbers in float32."""
    chosen = np.nan_to_num(table_VxH[rows].astype(np.float64), posinf=0.0, neginf=0.0)
    lengths = np.sqrt((chosen * chosen).sum(axis=1, keepdims=True))
    return np.rint(chosen * (LENGTH / np.where(lengths > 0, lengths, 1.0))).astype(np.float32)
