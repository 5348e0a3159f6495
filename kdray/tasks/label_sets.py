"""Several labels a row: what each row adds to the counts of the metrics, and the metrics of the summed counts.

A margin above 0 means that the model gives the label; `thresholds` makes margins of logits. A row whose margins are not
all finite has nan in all its counts, so that the metrics are nan as well: "no label" would look like an answer.

Letters: N rows, C labels, K = 3 C + 2 counts: for each label its right answers (true positives), for each label its
answers, for each label the rows that have it; then 1 if the whole row is right, and 1 for the row itself.
"""

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from sklearn.metrics import average_precision_score

from kdray.tasks.counts import MetricOfCounts


def label_set_counts(margins_NxC: np.ndarray, gold_NxC: np.ndarray) -> sparse.csr_array:
    """N x K: how much each row adds to each count. `gold_NxC` has 1 where the row has the label, else 0.

    A row whose gold is -1 counts nothing. Raises ValueError if the shapes differ.
    """
    _check_shapes(margins_NxC, gold_NxC)
    has_gold_Nx1 = (gold_NxC >= 0).all(axis=1, keepdims=True)
    answered_NxC, is_gold_NxC = (margins_NxC > 0) & has_gold_Nx1, gold_NxC > 0
    is_right_Nx1 = (answered_NxC == is_gold_NxC).all(axis=1, keepdims=True) & has_gold_Nx1
    parts = (answered_NxC & is_gold_NxC, answered_NxC, is_gold_NxC, is_right_Nx1, has_gold_Nx1)
    counts_NxK = sparse.csr_array(sparse.hstack([sparse.csr_array(part, dtype=np.float64) for part in parts]))
    is_unknown_Nx1 = ~np.isfinite(margins_NxC).all(axis=1, keepdims=True) & has_gold_Nx1
    if is_unknown_Nx1.any():
        counts_NxK += sparse.csr_array(np.where(is_unknown_Nx1, np.nan, np.zeros(counts_NxK.shape[1])))
    return counts_NxK


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (2 TP + FP + FN) of all labels together, of summed counts (... x K); 0 without labels and answers."""
    right_C, answered_C, gold_C = _label_sums(sums)
    return _f1(right_C.sum(axis=-1), answered_C.sum(axis=-1), gold_C.sum(axis=-1))


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """The mean of all labels' F1, of summed counts (... x K). A label without rows and answers counts as 0.

    This is scikit-learn's f1_score(average="macro", zero_division=0) of two N x C indicator matrices.
    """
    return _f1(*_label_sums(sums)).mean(axis=-1)


def label_f1(sums: np.ndarray, label: int) -> np.ndarray:
    """F1 of the label with this number, of summed counts (... x K); 0 if it has neither rows nor answers."""
    right_C, answered_C, gold_C = _label_sums(sums)
    return _f1(right_C[..., label], answered_C[..., label], gold_C[..., label])


def label_support(sums: np.ndarray) -> np.ndarray:
    """The number of rows that have each label (... x C), of summed counts (... x K)."""
    return _label_sums(sums)[2]


def subset_accuracy(sums: np.ndarray) -> np.ndarray:
    """The share of rows whose labels are all right, of summed counts (... x K)."""
    return np.asarray(sums[..., -2] / sums[..., -1])


LABEL_SET_METRICS: Mapping[str, MetricOfCounts] = {
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "subset_accuracy": subset_accuracy,
}
"""The metrics that are functions of summed counts. `label_f1` needs the number of a label as well."""


def average_precision(margins_NxC: np.ndarray, gold_NxC: np.ndarray) -> float:
    """The mean over labels of the area below the curve of precision and recall (scikit-learn's average precision).

    A label without positive rows has no such curve and is left out; 0 if all labels are. nan if a margin is not finite.
    Only the order of the rows matters, so thresholds change nothing. Raises ValueError if the shapes differ.
    """
    _check_shapes(margins_NxC, gold_NxC)
    if not np.isfinite(margins_NxC).all():
        return float("nan")
    labels = np.flatnonzero(np.any(gold_NxC, axis=0))
    values = [average_precision_score(gold_NxC[:, label], margins_NxC[:, label]) for label in labels]
    return float(np.mean(values)) if values else 0.0


def same_set_share(first_NxC: np.ndarray, second_NxC: np.ndarray) -> float:
    """The share of rows for which two models give the same labels, from their margins; nan if a margin is not finite.

    Raises ValueError if the shapes differ.
    """
    _check_shapes(first_NxC, second_NxC)
    if not (np.isfinite(first_NxC).all() and np.isfinite(second_NxC).all()):
        return float("nan")
    return float(((first_NxC > 0) == (second_NxC > 0)).all(axis=1).mean())


def _check_shapes(first_NxC: np.ndarray, second_NxC: np.ndarray) -> None:
    if first_NxC.ndim != 2 or first_NxC.shape != second_NxC.shape:
        raise ValueError(f"shapes {first_NxC.shape} and {second_NxC.shape}: both must be the same rows x labels.")


def _label_sums(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The right answers, the answers and the gold labels of each label, each ... x C."""
    labels = (sums.shape[-1] - 2) // 3
    return sums[..., :labels], sums[..., labels : 2 * labels], sums[..., 2 * labels : 3 * labels]


def _f1(right: np.ndarray, answered: np.ndarray, gold: np.ndarray) -> np.ndarray:
    # answered is TP + FP, gold is TP + FN.
    both = np.asarray(answered + gold, np.float64)
    # `!= 0` and not `> 0`: nan must stay nan.
    return np.divide(2.0 * right, both, out=np.zeros_like(both), where=both != 0)
