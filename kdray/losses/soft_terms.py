"""The one list of the ways in which the soft loss compares a student with its teacher: the values of
`distillation.soft`."""

from kdray.losses.decoupled import DKD
from kdray.losses.divergences import JSD, KL, TVD, ReverseKL
from kdray.losses.logit_difference import MSE
from kdray.losses.relations import DIST
from kdray.losses.schedule import scheduled
from kdray.losses.soft_term import SoftTerm

SOFT_TERMS: dict[str, type[SoftTerm]] = {kind.name: kind for kind in (KL, ReverseKL, JSD, TVD, MSE, DKD, DIST)}

TERM_SETTINGS = frozenset[str]().union(*(kind.settings() for kind in SOFT_TERMS.values()))
"""The settings that only some of the ways read."""

PROBABILITY_SETTINGS = scheduled("temperature", "alpha", "logit_mse") | TERM_SETTINGS | {"trust", "soft"}
"""The settings of the loss that have a meaning for outputs that are logits of probabilities."""
