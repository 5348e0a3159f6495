"""The settings of a training. `fit` and `step` use them."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kdray.errors import SpecError
from kdray.settings import MAY_CHANGE, Settings, later_field


class Training(Settings):
    """How a model is trained: AdamW, linear warm-up and decay, length-bucketed batches."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows in one optimiser step, over all workers of the slot together."""
    microbatch: int | None = later_field(None, ge=1)
    """The most rows that a worker computes at the same time. The gradients of a step's rows are added up, so it changes
    memory and speed, and the loss by no more than rounding. None: all rows of a step at once."""
    learning_rate: float = Field(5e-5, gt=0)
    """The highest learning rate, at the end of the warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """The share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Not applied to biases and normalisation weights."""
    clip_norm: float = Field(1.0, gt=0)
    """The largest norm of the gradient of all parameters; a larger gradient is scaled down."""
    evaluations_per_epoch: int = Field(1, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the processor or GPU computes in it. The last evaluation is always fp32."""
    quantised: Literal["no", "int8"] = later_field("no")
    """`int8`: a student computes as its int8 file will, with rounded weights and activations, so that it learns to
    answer with them; its own weights stay float32. See `quantising`. Only for students, not for a teacher."""
    quantised_from: float = later_field(0.5, ge=0, lt=1)
    """With quantised="int8": the share of the training's steps after which it computes so. 0: from the first step."""
    checkpoint_minutes: float = Field(5.0, ge=0, json_schema_extra=MAY_CHANGE)
    """The longest time between two checkpoints, which is what a dead worker costs at most. 0: none by the clock."""
    checkpoint_evaluations: int = Field(0, ge=0, json_schema_extra=MAY_CHANGE)
    """Evaluations between two checkpoints, in addition to those by the clock. 0: none."""

    def evaluation_count(self, rows: int) -> int:
        """The number of evaluations of a training on `rows` rows that is not stopped early."""
        return self.epochs * len(evaluation_marks(math.ceil(rows / self.batch_size), self.evaluations_per_epoch))

    def is_quantised_at(self, progress: float) -> bool:
        """Whether a step computes in int8 when this share of the training is behind, from 0 to 1 at the last step."""
        return self.quantised == "int8" and progress >= self.quantised_from

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (counted from 0) of a training of `steps` steps."""
        warmup_steps = max(1, round(self.warmup * steps)) if self.warmup else 0
        if step < warmup_steps:
            # Step + 1, because a first step with rate 0 would change nothing.
            return self.learning_rate * (step + 1) / warmup_steps
        return self.learning_rate * (steps - step) / max(1, steps - warmup_steps)


def check_quantised(training: Training, searched: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise SpecError for `quantised_from` in a sweep of which no trial computes in int8.

    `searched`: the name of a searched setting, without its group -> its values, or the ends of its range.
    """
    is_given = "quantised_from" in searched or training.quantised_from != Training().quantised_from
    if is_given and "int8" not in searched.get("quantised", (training.quantised,)):
        raise SpecError(
            "training.quantised_from: it has no effect, because training.quantised is no. Leave it out, or set "
            "training.quantised=int8."
        )


def evaluation_marks(steps_per_epoch: int, evaluations: int) -> set[int]:
    """The numbers of batches of an epoch after which the model is evaluated; always after the last batch.

    A set: an epoch with fewer steps than evaluations has one evaluation after each step.
    """
    return {math.ceil(steps_per_epoch * part / evaluations) for part in range(1, evaluations + 1)}
