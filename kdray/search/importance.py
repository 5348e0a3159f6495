"""Which setting matters: how much of the differences among completed trials each of them explains."""

import logging

from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from kdray.search.ledger import Ledger

log = logging.getLogger(__name__)

FEWEST = 4
"""Completed trials below which nothing can be said."""


def setting_importances(ledger: Ledger) -> dict[str, float]:
    """Dotted name -> its share of the variance of the first objective, by fANOVA (Hutter et al. 2014); they sum to 1.

    Empty where there are too few completed trials, or they are all equally good.
    """
    if sum(record.state == "completed" for record in ledger.records()) < FEWEST:
        return {}
    try:
        found = get_param_importances(
            ledger.study(), evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[0]
        )
    except (ValueError, RuntimeError) as error:  # a setting with one value, trials without a difference
        log.info("importances: %s", error)
        return {}
    return {name: share for name, share in found.items() if share == share}
