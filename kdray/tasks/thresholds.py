"""From which probability on a label is given: thresholds chosen on validation rows, by F1.

0.5 is the wrong threshold for F1: for calibrated probabilities the best one is half of the best F1, so rare and
difficult labels need a lower one (Lipton, Elkan and Naryanaswamy 2014, "Thresholding classifiers to maximize F1
score"). The threshold that is best for one label overfits if the label has few positive rows: the best of very many
cuts is then mostly the luckiest (Fan and Lin 2007, "A study on threshold selection for multi-label classification"; Lin
and Lin 2023, "On the thresholding strategy for infrequent labels in multi-label classification"). So it is drawn
towards the threshold that is best for all labels together, the more, the fewer positive rows the label has.

Letters: N rows, C labels. Logits are those of a sigmoid; gold is 1 where a row has the label, else 0.
"""

import numpy as np
from scipy.special import expit, logit

COMMON_WEIGHT = 3
"""The common threshold weighs as much as the label's own one of this number of positive rows.

Simulated labels (0.1 to 20 % positive; 500 to 5,000 validation rows; logits that are calibrated, or wrong by constants
with a standard deviation of 0.3, 0.7 and 1.2, and by factors with one of 0.1, 0.2 and 0.3) had a macro F1 on new rows
of .363, .362, .371 and .357; with the own thresholds alone .350, .349, .368 and .353; with the common one alone .358,
.344, .338 and .299. With own thresholds from 10 positive rows on, and the common one below, it was .361, .356, .364
and .344.
"""
DEFAULT_THRESHOLD = 0.5
"""The threshold if the validation rows say nothing: no row has a label, or a logit is not finite."""
LOWEST_LOGIT, HIGHEST_LOGIT = -80.0, 20.0
"""Logits beyond these count as equal.

Up to the highest one, the probabilities of neighbouring float32 logits are different enough that a threshold between
them is still between them after its way to a logit; nearer to 1, float64 has too few probabilities. Down to the lowest
one, a threshold is a normal number in float32 as well.
"""
_SMALLEST_GAP = 8 * np.finfo(np.float64).eps
"""Probabilities whose difference is not larger than this share of them count as equal."""
_SAME = 1e-12
"""F1 values that differ less are equal: they differ by the rounding of sums only."""


def common_threshold(logits_NxC: np.ndarray, gold_NxC: np.ndarray) -> np.ndarray:
    """C equal thresholds (probabilities in (0, 1)): the one with the best macro F1 on these rows.

    All cuts between different scores are compared. Of several cuts with the best value, the one in the widest gap
    between two neighbouring probabilities is taken, and the threshold lies midway between these.
    """
    labels = gold_NxC.shape[1]
    if not _is_decidable(logits_NxC, gold_NxC):
        return np.full(labels, DEFAULT_THRESHOLD)
    scores_NxC, f1_NxC = _f1_of_cuts(logits_NxC, gold_NxC)
    # One more row that gets a label changes the F1 of that label only, so macro F1 is a running sum of such changes.
    changes = np.diff(f1_NxC, axis=0, prepend=0.0).ravel()
    order = np.argsort(-scores_NxC.ravel(), kind="stable")
    macro_f1 = np.cumsum(changes[order]) / labels
    return np.full(labels, _best_cuts(scores_NxC.ravel()[order][:, None], macro_f1[:, None])[0])


def label_thresholds(logits_NxC: np.ndarray, gold_NxC: np.ndarray) -> np.ndarray:
    """C thresholds (probabilities in (0, 1)): for each label the one with its best F1, drawn towards the common one.

    With p positive rows, the logit of a label's threshold is the mean of the logits of its own best threshold, with
    weight p, and of the common one, with weight `COMMON_WEIGHT`. A label without positive rows takes the common one.
    Ties as in `common_threshold`.
    """
    common_C = common_threshold(logits_NxC, gold_NxC)
    if not _is_decidable(logits_NxC, gold_NxC):
        return common_C
    positives_C = np.count_nonzero(gold_NxC, axis=0)
    own_share_C = positives_C / (positives_C + COMMON_WEIGHT)
    own_C = _best_cuts(*_f1_of_cuts(logits_NxC, gold_NxC))
    drawn_C = expit(own_share_C * logit(own_C) + (1 - own_share_C) * logit(common_C))
    # expit(logit(x)) may differ from x in the last digit.
    return np.where(positives_C > 0, drawn_C, common_C)


def threshold_margins(logits_NxC: np.ndarray, thresholds_C: np.ndarray) -> np.ndarray:
    """N x C in float64: logit(probability) - logit(threshold), so above 0 where the label is given."""
    return np.asarray(logits_NxC, np.float64) - logit(np.asarray(thresholds_C, np.float64))


def _is_decidable(logits_NxC: np.ndarray, gold_NxC: np.ndarray) -> bool:
    return bool(np.isfinite(logits_NxC).all() and np.any(gold_NxC))


def _f1_of_cuts(logits_NxC: np.ndarray, gold_NxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of each label, the highest first, and its F1 if it is given down to this one (both N x C)."""
    # Logits are compared as float32, which models compute in.
    limited_NxC = np.clip(np.asarray(logits_NxC, np.float32), LOWEST_LOGIT, HIGHEST_LOGIT)
    probabilities_NxC = expit(limited_NxC.astype(np.float64))
    order_NxC = np.argsort(-probabilities_NxC, axis=0, kind="stable")
    scores_NxC = np.take_along_axis(probabilities_NxC, order_NxC, axis=0)
    right_NxC = np.cumsum(np.take_along_axis(np.asarray(gold_NxC, bool), order_NxC, axis=0), axis=0)
    answered_Nx1 = np.arange(1, len(right_NxC) + 1)[:, None]
    return scores_NxC, 2 * right_NxC / (answered_Nx1 + right_NxC[-1])


def _best_cuts(scores_NxC: np.ndarray, f1_NxC: np.ndarray) -> np.ndarray:
    """C: for each column midway between the two neighbouring scores where its F1 is best. Scores are in falling order.

    Below the lowest score is 0, so that a label may be given to all rows. A cut above the highest score is not needed:
    F1 without answers is 0.
    """
    below_NxC = np.concatenate([scores_NxC[1:], np.zeros((1, scores_NxC.shape[1]))])
    gaps_NxC = scores_NxC - below_NxC
    # Rows with equal scores get the label together, so there is no cut between them.
    f1_NxC = np.where(gaps_NxC > _SMALLEST_GAP * scores_NxC, f1_NxC, -1.0)
    is_best_NxC = f1_NxC >= f1_NxC.max(axis=0) - _SAME
    best_C = np.where(is_best_NxC, gaps_NxC, -1.0).argmax(axis=0)[None]
    midway = (np.take_along_axis(scores_NxC, best_C, axis=0) + np.take_along_axis(below_NxC, best_C, axis=0)) / 2
    return np.asarray(midway[0])
