"""SoftTerm: the base class of the ways in which the soft loss compares a student with its teacher.

Each way is a class in a file of its own, or beside its relatives, and a line in `soft_terms`. Shapes: A answers,
C outputs, K outcomes of which exactly one occurs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.comparison import Comparison, Outcomes


@dataclass(frozen=True)
class SoftTerm(ABC):
    """A way to compare outputs. Its fields are the settings of `Distillation` that only this way reads."""

    name: ClassVar[str]
    """The value of `distillation.soft`."""
    fewest_outputs: ClassVar[int] = 2
    """The smallest number of classes, or of labels, from which on the term carries more than `kl`."""
    why_so_many: ClassVar[str] = ""
    """Why fewer outputs are refused."""
    why_not_labels: ClassVar[str] = ""
    """Why the term is not defined for independent labels; empty: it is defined for them."""
    whole_batch: ClassVar[str] = ""
    """The setting that is the weight of what relates all answers of a batch with each other; empty: nothing does."""

    @classmethod
    def settings(cls) -> frozenset[str]:
        """The names of the settings that only this way reads."""
        return frozenset(field.name for field in fields(cls))

    @abstractmethod
    def of_classes(self, comparison: Comparison) -> Tensor:
        """The term for logits of classes (A)."""

    def of_labels(self, comparison: Comparison) -> Tensor:
        """The term for logits of independent labels (A). Raises SpecError if it is not defined for them."""
        raise SpecError(f"distillation.soft: got {self.name!r}; {self.why_not_labels}")


class Divergence(SoftTerm):
    """A term that is a sum over outcomes, and so the same for classes and for labels, each of which holds or not.

    It is multiplied by the power of the temperature T that keeps the size of its gradient similar for all T (for `kl`:
    Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2). Classes: the sum over the classes. Labels: the mean over
    the labels, as in all terms for them.
    """

    power: ClassVar[int] = 2

    @abstractmethod
    def parts(self, student: Outcomes, teacher: Outcomes) -> Tensor:
        """The share of each outcome in the divergence (... x K)."""

    def of_classes(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`."""
        parts_AxC = self.parts(*comparison.classes())
        return comparison.temperature**self.power * (parts_AxC * comparison.weights).sum(dim=-1)

    def of_labels(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`."""
        divergence_AxC = self.parts(*comparison.labels()).sum(dim=-1)
        return comparison.temperature**self.power * (divergence_AxC * comparison.weights).mean(dim=-1)
