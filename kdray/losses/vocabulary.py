"""Vocabulary: each answer is one token of a vocabulary. The teacher's outputs are kept as its `TopK` rows.

The loss compares K + 1 classes: the teacher's K most probable tokens, and all others together as one class. Shapes:
A answers, V tokens of the vocabulary, D numbers that are kept of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NoReturn

import numpy as np
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.comparison import Comparison, Outcomes, Weights
from kdray.losses.schedule import scheduled
from kdray.losses.soft_term import Divergence, SoftTerm
from kdray.losses.soft_terms import SOFT_TERMS
from kdray.losses.softmax import NO_GOLD, Softmax
from kdray.losses.top_k import TopK


@dataclass(frozen=True)
class _TopKComparison(Comparison):
    """The comparison of a student's logits (A x V) with the kept rows of its teacher (A x D)."""

    def classes(self) -> tuple[Outcomes, Outcomes]:
        """The probabilities of the K kept tokens and of the rest, of student and teacher, at the temperature."""
        teacher, temperature = TopK.of_rows(self.teacher_AxC), float(self.temperature)
        return teacher.outcomes_of(self.student_AxC, temperature), teacher.outcomes(temperature)


class Vocabulary(Softmax):
    """The terms of the loss for logits of tokens, of a teacher of which only the `TopK` rows are kept."""

    settings = scheduled("temperature", "alpha") | {"trust", "soft", "jsd_beta"}

    def soft_loss(self, comparison: Comparison, term: SoftTerm) -> Tensor:
        """The term for the kept tokens and the rest. Raises SpecError for a term that needs every logit."""
        if problem := self.problem_of_term(type(term)):
            raise SpecError(f"distillation.soft: got {term.name!r}; {problem}")
        values = {field.name: getattr(comparison, field.name) for field in fields(comparison)}
        return term.of_classes(_TopKComparison(**values))

    def problem_of_term(self, term: type[SoftTerm]) -> str:
        """Only divergences are sums over outcomes, of which the rest can be one."""
        if issubclass(term, Divergence):
            return ""
        allowed = ", ".join(name for name, each in SOFT_TERMS.items() if issubclass(each, Divergence))
        return (
            "it needs every logit of the teacher, but of a vocabulary only the largest are kept (task.top_k). Allowed: "
            f"{allowed}."
        )

    def contradicts(self, teacher_AxC: Tensor, gold: Tensor) -> Tensor:
        """Whether the teacher's most probable token is not the gold token (A x 1)."""
        return ((TopK.of_rows(teacher_AxC).ids_AxK[:, 0] != gold) & (gold != NO_GOLD))[:, None]

    def for_data_units(self) -> "KeptVocabulary":
        """The distribution of outputs of which only the `TopK` rows are kept."""
        return KeptVocabulary()

    def mean_outputs(self, outputs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """Not defined."""
        _refuse()

    def problem_of(self, stated_AxC: np.ndarray) -> tuple[int, str] | None:
        """Not defined."""
        _refuse()

    def outputs_stating(self, stated_AxC: np.ndarray, floor: float) -> np.ndarray:
        """Not defined."""
        _refuse()

    def with_unlisted(self, listed_AxC: np.ndarray) -> np.ndarray:
        """Not defined."""
        _refuse()


class KeptVocabulary(Vocabulary):
    """The same for a student of which only the kept rows (A x D) are left, as after an evaluation."""

    def hard_loss(self, student_AxC: Tensor, gold: Tensor, weights: Weights = 1.0) -> Tensor:
        """The negative logarithm of the gold token's probability; 0 for an answer without gold (A)."""
        return (-TopK.of_rows(student_AxC).gold_A[:, None] * weights)[:, 0]


def _refuse() -> NoReturn:
    raise SpecError("the outputs over a vocabulary are neither averaged nor read from a file.")


VOCABULARY = Vocabulary()
