"""The losses of several students on the same answers, computed together, each with its own settings.

Students whose settings differ in numbers only (temperature, alpha, weights) have the same terms, so that one
computation serves all of them. Shapes: N students, S students with the same terms, A answers, C outputs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from kdray.losses.distillation import Distillation, Factors, Targets
from kdray.losses.distribution import Distribution
from kdray.losses.soft_terms import TERM_SETTINGS

SAME_TERMS = ("soft", "standardize", *sorted(TERM_SETTINGS))
"""The settings that students of one computation have in common."""


@dataclass(frozen=True)
class FusedLoss:
    """The losses of a batch."""

    total: Tensor
    """The sum over students and answers. Its gradient for a student's outputs is that of the student's own loss."""
    terms: dict[str, Tensor]
    """Name of a term -> its weighted sum over the batch for each student (N), without gradient; 0 for students that do
    not have the term."""


class FusedObjective:
    """The losses of students whose outputs are of one distribution."""

    def __init__(self, settings: Sequence[Distillation], distribution: Distribution, device: torch.device) -> None:
        """`settings` are those of the students in order, without inner terms."""
        self._settings, self._distribution, self._device = tuple(settings), distribution, device
        self._now: tuple[Distillation, ...] = ()
        self._groups: list[_Group] = []

    @property
    def names(self) -> list[frozenset[str]]:
        """The names of the terms that each student had in the last loss."""
        names = {student: group.names for group in self._groups for student in group.students}
        return [names[student] for student in range(len(self._settings))]

    def loss(self, students_NxAxC: Tensor, targets: Targets, progress: Sequence[float]) -> FusedLoss:
        """Compute the losses in float32, also under autocast. `progress` is the share of each student's training.

        Raises SpecError if a term needs the teacher's outputs and the targets have none.
        """
        with torch.autocast(self._device.type, enabled=False):
            values = students_NxAxC.float()
            if targets.teacher_AxC is None:
                for own in self._settings:  # raises the error of a student that needs them
                    own.loss(values[0], targets, self._distribution)
            total = values.new_zeros(())
            terms: dict[str, Tensor] = {}
            for group in self._groups_at(progress):
                for name, sums_S in group.sums(values, targets, self._distribution).items():
                    total = total + sums_S.sum()
                    terms.setdefault(name, values.new_zeros(len(values)))[group.index] = sums_S.detach()
        return FusedLoss(total, terms)

    def _groups_at(self, progress: Sequence[float]) -> list["_Group"]:
        now = tuple(own.at(share) for own, share in zip(self._settings, progress, strict=True))
        # Tensors of new numbers are copied to the device, so that is done only if a schedule has changed a number.
        if now != self._now:
            self._now, self._groups = now, _groups(now, self._device)
        return self._groups


class _Group:
    """Students with the same terms."""

    def __init__(self, students: list[int], settings: Sequence[Distillation], device: torch.device) -> None:
        self.students, self.names = students, frozenset[str]()
        # Of one group alone: a slice, which is faster than an index and needs no copy.
        self.index = slice(None) if len(students) == len(settings) else torch.tensor(students, device=device)
        # Any of them says which terms there are.
        self._settings = settings[students[0]]
        factors = [astuple(settings[student].factors) for student in students]
        self._factors = torch.tensor(factors, dtype=torch.float32, device=device).unbind(dim=1)

    def sums(self, values_NxAxC: Tensor, targets: Targets, distribution: Distribution) -> dict[str, Tensor]:
        """Name of a term -> its weighted sum over the answers, of each student of the group (S)."""

        def sums_of_one(student_AxC: Tensor, *factors: Tensor) -> dict[str, Tensor]:
            terms_A = self._settings.terms(student_AxC, targets, distribution, Factors(*factors))
            return {name: term_A.sum() for name, term_A in terms_A.items()}

        sums: dict[str, Tensor] = torch.vmap(sums_of_one)(values_NxAxC[self.index], *self._factors)
        self.names = frozenset(sums)
        return sums


def _groups(settings: Sequence[Distillation], device: torch.device) -> list[_Group]:
    """The students in groups with the same terms."""
    students: dict[Hashable, list[int]] = {}
    for student, own in enumerate(settings):
        # A weight of 0 decides that a term is not computed, and a trust of 1 that nobody asks who is right.
        switches = own.alpha > 0, own.alpha < 1, own.logit_mse > 0, own.trust == 1
        students.setdefault((switches, *(getattr(own, name) for name in SAME_TERMS)), []).append(student)
    return [_Group(group, settings, device) for group in students.values()]
