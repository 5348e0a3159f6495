"""The text of a sweep for each model that reads it: with changed copies if the settings `augmentation` ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kdray.augmentation.copying import Copier, CopyInputs, copy_inputs
from kdray.data.copies import WithCopies
from kdray.data.splits import Splits
from kdray.data.tokens import TextBlocks
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Pretrained
from kdray.storage.paths import StoragePaths
from kdray.sweep import Sweep


@dataclass(frozen=True)
class SweepText:
    """The rows of a sweep, with the copies that its trials learn from."""

    splits: Splits
    count: int = 0
    """How many copies of each text there are: as many as the trial with the most copies needs."""
    inputs: CopyInputs | None = None
    """What copies are made with; None: there are none."""
    _copiers: dict[str, Copier] = field(default_factory=dict)
    """The key of a model -> what has written copies for it."""

    def read_by(self, model: Pretrained) -> TextBlocks:
        """The rows for this model: the mask token in a copy is that of its tokenizer."""
        if self.inputs is None:
            return self.splits
        if model.key not in self._copiers:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._copiers[model.key] = Copier(self.inputs, device, model.tokenizer())
        return WithCopies(self.splits, self.count, self._copiers[model.key].copy, self.inputs.key)

    @property
    def key(self) -> str | None:
        """A fingerprint of how the copies are made, whatever their number; None: there are none."""
        return None if self.inputs is None else self.inputs.key

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the copies that have been written."""
        return tuple(dict.fromkeys(note for copier in self._copiers.values() for note in copier.notes))


def sweep_text(sweep: Sweep, splits: Splits, teachers: Sequence[Pretrained], paths: StoragePaths) -> SweepText:
    """Find what the copies of a sweep are made with.

    `teachers` are the models that teach, before any fine-tuning; the copies have the words of the first pretrained one.
    Raises TeacherError or SpecError for ways that cannot be used with it.
    """
    if not sweep.most_copies:
        return SweepText(splits)
    are_fresh = [isinstance(model, FreshTransformer) for model in sweep.teacher.models]
    inputs = copy_inputs(sweep.augmentation, teachers[are_fresh.index(min(are_fresh))], paths)
    return SweepText(splits, sweep.most_copies, inputs)
