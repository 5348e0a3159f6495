"""The mean of several teachers: of their probabilities at temperature 1, stored as one transfer set.

Averaged probabilities are what an ensemble says (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 3). The teachers
may have different tokenizers: their logits are matched by answer, which depends on the data alone. A temperature is
applied later, in the loss, to the logits of the mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.losses.distribution import Distribution
from kdray.storage.files import fingerprint
from kdray.storage.paths import StoragePaths
from kdray.teacher.transfer import Labelling, write_transfer_set


@dataclass(frozen=True)
class LabelledTeacher:
    """A teacher whose transfer set is complete."""

    labelling: Labelling
    transfer: TransferSet
    share: float
    """Its weight in the mean."""


def average(
    teachers: Sequence[LabelledTeacher],
    distribution: Distribution,
    tokens: TokenSet,
    paths: StoragePaths,
    on_note: Callable[[str], None],
) -> TransferSet:
    """The transfer set with the mean of these teachers; `tokens` are those of the model that students are built from.

    Raises StorageError if the teachers have answered other rows.
    """
    counted = [teacher for teacher in teachers if teacher.share > 0]
    keys = [(teacher.labelling.key, teacher.share) for teacher in counted]
    shard_rows = teachers[0].labelling.settings.shard_rows
    rows_of: dict[str, list[Rows]] = {}

    def logits_of(split: str, answers: np.ndarray) -> np.ndarray:
        if split not in rows_of:
            rows_of[split] = [teacher.transfer.all_rows(tokens, split) for teacher in counted]
        logits = [rows.teacher_logits(answers) for rows in rows_of[split]]
        return distribution.mean_outputs(logits, [teacher.share for teacher in counted])

    folder = paths.transfer(fingerprint("mean", keys, tokens.key, shard_rows))
    return write_transfer_set(logits_of, tokens, shard_rows, folder, on_note)
