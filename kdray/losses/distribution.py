"""Distribution: what the outputs of a model mean, and so how two models, or a model and the gold, are compared.

Each kind is a file of its own: `softmax`, `sigmoid`, `value`. A task names the one that its outputs have.
Shapes: A answers, C outputs.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from torch import Tensor, nn

from kdray.losses.comparison import Comparison, Weights
from kdray.losses.soft_term import SoftTerm

SUM_TOLERANCE = 0.01
"""How far the probabilities of an answer may be from 1 together: services round them to two or three digits."""


class Distribution(Protocol):
    """The terms of the loss for one kind of outputs, each with one value for each answer."""

    @property
    def settings(self) -> frozenset[str]:
        """The names in `Distillation` that have a meaning for these outputs."""
        ...

    def soft_loss(self, comparison: Comparison, term: SoftTerm) -> Tensor:
        """How much the student's outputs differ from the teacher's (A), if they are compared in the way of this term.

        Raises SpecError for a term that is not defined for these outputs.
        """
        ...

    def problem_of_term(self, term: type[SoftTerm]) -> str:
        """Why a term is not defined for these outputs; empty: it is defined."""
        ...

    def hard_loss(self, student_AxC: Tensor, gold: Tensor, weights: Weights = 1.0) -> Tensor:
        """How much the student's outputs differ from the gold (A); 0 for an answer without gold."""
        ...

    def contradicts(self, teacher_AxC: Tensor, gold: Tensor) -> Tensor:
        """Where the teacher's answer is wrong (bool): A x 1, or A x C if each output is an answer of its own.

        False where there is no gold, and for outputs that are never simply right or wrong.
        """
        ...

    def start_training(self, model: nn.Module) -> Self:
        """Change the head in place, so that the model answers in the units that it is trained in.

        Returns the distribution of this model in training.
        """
        ...

    def end_training(self, model: nn.Module) -> None:
        """Undo `start_training`: the model answers in the units of the data again."""
        ...

    def for_data_units(self) -> Self:
        """The distribution of a model that answers in the units of the data."""
        ...

    def in_data_units(self, outputs_AxC: np.ndarray) -> np.ndarray:
        """The outputs of a model in training, in the units of the data (A x C)."""
        ...

    def mean_outputs(self, outputs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """The outputs (A x C, float32) that say the mean of what these outputs (each A x C) say.

        What is averaged are probabilities, at temperature 1, or numbers. The weights are above 0 and add up to 1.
        """
        ...

    def problem_of(self, stated_AxC: np.ndarray) -> tuple[int, str] | None:
        """The first answer that states no probabilities (or no number), and what is wrong; None if all are right."""
        ...

    def outputs_stating(self, stated_AxC: np.ndarray, floor: float) -> np.ndarray:
        """The outputs (A x C, float32) that say these probabilities, or numbers.

        No output says a probability of 0, which would be an infinite logit: less than `floor` becomes `floor`.
        """
        ...

    def with_unlisted(self, listed_AxC: np.ndarray) -> np.ndarray:
        """The probabilities of answers that list those of some outputs only; nan stands for the others (A x C)."""
        ...


class Unchanged:
    """For a distribution whose outputs are trained as they are."""

    def start_training(self, model: nn.Module) -> Self:
        """Change nothing."""
        return self

    def end_training(self, model: nn.Module) -> None:
        """Change nothing."""

    def for_data_units(self) -> Self:
        """The distribution itself."""
        return self

    def in_data_units(self, outputs_AxC: np.ndarray) -> np.ndarray:
        """The outputs themselves."""
        return outputs_AxC


def output_layer(model: nn.Module, outputs: int) -> nn.Linear:
    """The layer of the head that gives the outputs: the model's last linear layer with so many of them."""
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == outputs][
        -1
    ]


def is_new(head: nn.Linear) -> bool:
    """Whether the head was drawn, not trained: transformers draws heads with a bias of 0, which no trained head has.

    A head without a bias counts as trained. If a trained head had a bias of 0, only the beginning of its training would
    be another one.
    """
    return head.bias is not None and not head.bias.any()


def outside_of_0_and_1(stated_AxC: np.ndarray) -> tuple[int, str] | None:
    """The first answer with a number that is no probability, and what is wrong with it."""
    is_wrong_AxC = ~((stated_AxC >= 0) & (stated_AxC <= 1))  # true for nan, too
    if not is_wrong_AxC.any():
        return None
    answer, output = (int(index) for index in np.argwhere(is_wrong_AxC)[0])
    return answer, f"{stated_AxC[answer, output]:g} is no probability (0 to 1)"
