"""All ways to change texts, by name. A new way is one line here."""

from collections.abc import Mapping

from kdray.augmentation.delete import Delete
from kdray.augmentation.mask import Mask
from kdray.augmentation.masked_lm import MaskedLM
from kdray.augmentation.neighbours import Neighbours
from kdray.augmentation.ngrams import NGrams
from kdray.augmentation.order import Order
from kdray.augmentation.way import Way

WAYS: Mapping[str, type[Way]] = {
    "mask": Mask,
    "ngrams": NGrams,
    "neighbours": Neighbours,
    "masked_lm": MaskedLM,
    "order": Order,
    "delete": Delete,
}
"""The name of a way, in the setting `augmentation.ways` -> its class."""
