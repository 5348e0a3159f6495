"""The confusion matrix of one class for each row as counts, and the metrics that are functions of it.

In a confusion matrix the gold classes are the rows, the answers the columns. Shapes: N rows, C classes.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from kdray.tasks.counts import Counts, MetricOfCounts


def confusion_counts(answers_N: np.ndarray, gold_N: np.ndarray, classes: int, metrics: Sequence[str]) -> Counts:
    """The counts of answered classes, with these metrics of `CONFUSION_METRICS`. A gold of -1 counts nothing."""
    has_gold_N = gold_N >= 0
    # Each row adds 1 to one of the C * C cells of the confusion matrix, so most counts are 0: the matrix is sparse.
    places_N = np.where(has_gold_N, gold_N, 0) * classes + answers_N
    counts_NxK = sparse.csr_array(
        (has_gold_N.astype(np.float64), (np.arange(len(gold_N)), places_N)), shape=(len(gold_N), classes**2)
    )
    return Counts(counts_NxK, {name: _of_counts(name, classes) for name in metrics})


def _of_counts(name: str, classes: int) -> MetricOfCounts:
    metric = CONFUSION_METRICS[name]
    return lambda sums: metric(sums.reshape(*sums.shape[:-1], classes, classes))


def accuracy(confusion_CxC: np.ndarray) -> np.ndarray:
    """The share of rows on the diagonal."""
    return np.trace(confusion_CxC, axis1=-2, axis2=-1) / confusion_CxC.sum(axis=(-2, -1))


def macro_f1(confusion_CxC: np.ndarray) -> np.ndarray:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN), over the classes that occur as a label or an answer.

    This is scikit-learn's f1_score(average="macro", zero_division=0), which knows only the classes that occur.
    """
    occurs_C = confusion_CxC.sum(axis=-1) + confusion_CxC.sum(axis=-2) > 0
    return class_f1(confusion_CxC).sum(axis=-1) / occurs_C.sum(axis=-1)


def class_f1(confusion_CxC: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (2 TP + FP + FN) of each class (... x C); 0 for a class that is neither a label nor an answer."""
    right_C = np.diagonal(confusion_CxC, axis1=-2, axis2=-1)
    # TP + FN is the number of labels of a class, TP + FP is the number of answers.
    labels_and_answers_C = confusion_CxC.sum(axis=-1) + confusion_CxC.sum(axis=-2)
    return np.divide(2 * right_C, labels_and_answers_C, out=np.zeros_like(right_C), where=labels_and_answers_C > 0)


def mcc(confusion_CxC: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient for C classes; 0 if the labels or the answers are all of one class.

    Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient", as in scikit-learn.
    """
    rows = confusion_CxC.sum(axis=(-2, -1))
    labels_C, answers_C = confusion_CxC.sum(axis=-1), confusion_CxC.sum(axis=-2)
    shared = np.trace(confusion_CxC, axis1=-2, axis2=-1) * rows - (labels_C * answers_C).sum(axis=-1)
    spread = (rows**2 - (labels_C**2).sum(axis=-1)) * (rows**2 - (answers_C**2).sum(axis=-1))
    return np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0)


CONFUSION_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
