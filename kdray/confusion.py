"""Metrics of classes as functions of the confusion matrix, over any number of matrices at once.

A confusion matrix is a sum over rows, so whoever draws rows thousands of times need only add up. The task's own metrics
are scikit-learn's, and a test holds these to them.
"""

import numpy as np


def accuracy(confusion_CxC: np.ndarray) -> np.ndarray:
    """The share of rows on the diagonal; labels are the matrix's rows, answers its columns."""
    return np.trace(confusion_CxC, axis1=-2, axis2=-1) / confusion_CxC.sum(axis=(-2, -1))


def macro_f1(confusion_CxC: np.ndarray) -> np.ndarray:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that neither occur nor are answered do not count.

    As scikit-learn's f1_score(average="macro", zero_division=0) has it, which knows only classes that it sees.
    """
    right = np.diagonal(confusion_CxC, axis1=-2, axis2=-1)
    seen = confusion_CxC.sum(axis=-1) + confusion_CxC.sum(axis=-2)
    there = seen > 0
    return np.divide(2 * right, seen, out=np.zeros_like(right), where=there).sum(axis=-1) / there.sum(axis=-1)


def mcc(confusion_CxC: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient for C classes; 0 where labels or answers are all of one class.

    Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient", as in scikit-learn.
    """
    rows = confusion_CxC.sum(axis=(-2, -1))
    labels_C, answers_C = confusion_CxC.sum(axis=-1), confusion_CxC.sum(axis=-2)
    shared = np.trace(confusion_CxC, axis1=-2, axis2=-1) * rows - (labels_C * answers_C).sum(axis=-1)
    spread = (rows**2 - (labels_C**2).sum(axis=-1)) * (rows**2 - (answers_C**2).sum(axis=-1))
    return np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0)


CLASSIFIED = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
