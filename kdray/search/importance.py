"""Which setting matters: the share of the differences among completed trials that each setting explains."""

import logging
import math

from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from kdray.search.ledger import Ledger

log = logging.getLogger(__name__)

MIN_TRIALS = 4
"""With fewer completed trials there is no result."""


def setting_importances(ledger: Ledger) -> dict[str, float]:
    """Dotted name -> its share of the variance of the first objective, by fANOVA (Hutter et al. 2014); they sum to 1.

    Empty when there are too few completed trials, or when all are equally good.
    """
    if sum(record.state == "completed" for record in ledger.records()) < MIN_TRIALS:
        return {}
    try:
        # The seed fixes fANOVA's random forest: every report of a sweep shows the same shares.
        shares = get_param_importances(
            ledger.study(), evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[0]
        )
    except (ValueError, RuntimeError) as error:  # every trial has the same value of a setting, or of the objective
        log.info("importances: %s", error)
        return {}
    return {name: share for name, share in shares.items() if not math.isnan(share)}
