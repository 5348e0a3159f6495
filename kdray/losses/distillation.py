"""The loss of a student: `alpha` * soft + (1 - `alpha`) * hard + `logit_mse` * logit MSE, and the share of each term.

These terms compare outputs; `objective` adds the terms that compare layers (`InnerSettings`). Where the teacher
contradicts the gold, `alpha` and `logit_mse` are multiplied by `trust`.

A `Distribution` computes the terms; `kdray.training` takes the mean over the answers and over the workers.
Shapes: A answers of a batch, C outputs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from kdray.errors import SpecError, did_you_mean
from kdray.losses.comparison import Comparison, Weights, own_sum
from kdray.losses.distribution import Distribution
from kdray.losses.inner_settings import InnerSettings
from kdray.losses.inner_term import InnerTerm
from kdray.losses.inner_terms import INNER_TERMS
from kdray.losses.logit_difference import mean_squared_difference
from kdray.losses.schedule import END, SCHEDULES, scheduled, value_between
from kdray.losses.soft_term import SoftTerm
from kdray.losses.soft_terms import SOFT_TERMS
from kdray.settings import later_field


@dataclass(frozen=True)
class Loss:
    """The loss of a batch."""

    total_A: Tensor
    """The loss of each answer, without inner terms."""
    terms: dict[str, Tensor]
    """Name of a term -> its weighted sum over the batch, without gradient. The terms add up to `total`."""
    inner: Tensor | float = 0.0
    """The sum of the inner terms over the batch."""

    @property
    def total(self) -> Tensor:
        """The sum of the loss over the answers of the batch."""
        return self.total_A.sum() + self.inner


@dataclass(frozen=True)
class Factors:
    """The numbers of `Distillation` that its terms are multiplied or divided by.

    They are tensors without dimensions where the losses of several students are computed at once (within
    `torch.vmap`).
    """

    temperature: float | Tensor
    alpha: float | Tensor
    logit_mse: float | Tensor
    trust: float | Tensor


@dataclass(frozen=True)
class Targets:
    """What the outputs of a student are compared with, for the answers of a batch, and when in the training."""

    gold: Tensor
    """A or A x C, as the distribution reads it."""
    teacher_AxC: Tensor | None = None
    """The teacher's outputs; None: these rows have none, or no term reads them now."""
    gold_weight: float = 1.0
    """The number of answers in the batch of all workers, divided by the number of those that have gold. With this
    factor the hard term is a mean over the answers with gold, as the soft term is one over all answers."""
    progress: float = 0.0
    """The share of the training that is behind: 0 at its first step, 1 at its last one."""
    sum_over_workers: Callable[[Tensor], Tensor] = own_sum
    """See `Comparison`."""
    is_live: bool = False
    """Whether the teacher answers while the student is trained, and only when a term reads its outputs."""

    def part(self, answers: slice) -> Self:
        """The targets of these answers."""
        teacher_AxC = None if self.teacher_AxC is None else self.teacher_AxC[answers]
        return replace(self, gold=self.gold[answers], teacher_AxC=teacher_AxC)


def _one_of(names: Iterable[str]) -> AfterValidator:
    """Accept these names only."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"got {name!r}; {did_you_mean(name, names, listed=names)}")
        return name

    return AfterValidator(check)


class Distillation(InnerSettings):
    """The terms that compare a student with the teacher's outputs and with the labels, and their weights."""

    temperature: float = Field(2.0, gt=0)
    """The logits of teacher and student are divided by it before the soft loss compares their distributions."""
    alpha: float = Field(0.5, ge=0, le=1)
    """The weight of the soft loss; the hard loss has 1 - alpha. 1: labels have no effect, unless `trust` is below 1;
    0: soft targets have none."""
    logit_mse: float = Field(0.0, ge=0)
    """The weight of the mean squared difference of the logits, which is added to the other terms."""
    trust: float = later_field(1.0, ge=0, le=1)
    """Where the teacher contradicts the gold, alpha and logit_mse are multiplied by it, and the hard loss has the
    weight that the soft loss loses. 1: all soft targets count alike; 0: labels alone correct the teacher's mistakes
    (with alpha 1, the conditional learning of Meng et al. 2019, arXiv:1904.12399). Rows without a label stay as they
    are."""
    soft: Annotated[str, _one_of(SOFT_TERMS)] = later_field("kl")
    """How the soft loss compares the student with the teacher: one of the names in `soft_terms`. docs/losses.md has the
    formula and the source of each."""
    standardize: bool = later_field(False)
    """Whether the soft loss compares logits with mean 0 and standard deviation 1 over the classes of each answer, so
    that the student need not have the size of the teacher's logits (Sun et al. 2024, arXiv:2403.01427)."""
    jsd_beta: float = later_field(0.5, gt=0, lt=1)
    """With soft="jsd": the share of the teacher in the mixture that both are compared with."""
    dkd_alpha: float = later_field(1.0, ge=0)
    """With soft="dkd": the weight of the target class."""
    dkd_beta: float = later_field(8.0, ge=0)
    """With soft="dkd": the weight of the other classes. 8 is the authors' value for CIFAR-100, 0.5 for ImageNet."""
    dist_beta: float = later_field(1.0, ge=0)
    """With soft="dist": the weight of the correlation within each answer."""
    dist_gamma: float = later_field(1.0, ge=0)
    """With soft="dist": the weight of the correlation within each class."""
    schedule: Annotated[str, _one_of(SCHEDULES)] = later_field("constant")
    """How temperature, alpha and the weights of terms go from their own value to their end value: constant (never),
    linear, or cosine (slowly at the beginning and at the end)."""
    schedule_from: float = later_field(0.0, ge=0, lt=1)
    """The share of the training's steps after which they begin to change."""
    schedule_to: float = later_field(1.0, gt=0, le=1)
    """The share of the training's steps after which they have their end values."""
    temperature_end: float | None = later_field(None, gt=0)
    """The temperature at the end of the schedule; None: as at the beginning."""
    alpha_end: float | None = later_field(None, ge=0, le=1)
    """The alpha at the end of the schedule; None: as at the beginning."""
    logit_mse_end: float | None = later_field(None, ge=0)
    """The logit_mse at the end of the schedule; None: as at the beginning."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.schedule_from >= self.schedule_to:
            raise SpecError(
                f"Distillation.schedule_from: got {self.schedule_from:g}, which is not before the end of the schedule; "
                f"give shares of the training, the first one below schedule_to ({self.schedule_to:g})."
            )
        return self

    def labels_only(self) -> "Distillation":
        """The same settings with weight 0 for all terms that compare a student with the teacher.

        All settings of such terms have their defaults: they have no effect, and equal trainings must have equal
        settings. The temperature stays, because the controls of earlier sweeps have it.
        """
        # logit_mse is 0 by default. The weight of a new term with another default must be set to 0 here.
        return Distillation(temperature=self.temperature, alpha=0.0)

    def logits_only(self) -> "Distillation":
        """The same settings without inner terms; equal trainings have equal settings, as in `labels_only`."""
        fields = type(self).model_fields
        unread = set(InnerSettings.model_fields)
        ends = (name for name in fields if name.endswith(END) and name not in unread)
        if all(getattr(self, name) is None for name in ends):
            unread |= scheduled()
        return self.model_copy(update={name: fields[name].default for name in unread})

    @property
    def inner_terms(self) -> dict[str, type[InnerTerm]]:
        """The inner terms that have a weight above 0 at some step, by name."""
        ends = self.at(1.0)
        return {name: kind for name, kind in INNER_TERMS.items() if getattr(self, name) or getattr(ends, name)}

    @property
    def needs_teacher(self) -> bool:
        """Whether a term that compares a student with the teacher's outputs has a weight above 0 at some step."""
        ends = self.at(1.0)
        return max(self.alpha, self.logit_mse, ends.alpha, ends.logit_mse) > 0

    def reads_teacher_at(self, progress: float) -> bool:
        """Whether the loss reads the teacher's outputs at this share of the training."""
        now = self.at(progress)
        return max(now.alpha, now.logit_mse) > 0

    @property
    def soft_term(self) -> SoftTerm:
        """The way in which the soft loss compares, with its settings."""
        kind = SOFT_TERMS[self.soft]
        return kind(**{name: getattr(self, name) for name in kind.settings()})

    def at(self, progress: float) -> "Distillation":
        """The settings at this share of the training: those with an end value have their value of that time."""
        if self.schedule == "constant":
            return self
        time = (progress - self.schedule_from) / (self.schedule_to - self.schedule_from)
        share = SCHEDULES[self.schedule](min(1.0, max(0.0, time)))
        return self.model_copy(
            update={
                name: value_between(getattr(self, name), end, share)
                for name in type(self).model_fields
                if (end := getattr(self, f"{name}{END}", None)) is not None
            }
        )

    def loss(self, student_AxC: Tensor, targets: Targets, distribution: Distribution) -> Loss:
        """Compute the loss in float32, also under autocast; a term of weight 0 is not computed.

        Raises SpecError if a term needs the teacher's outputs and the targets have none.
        """
        # Rows without logits are refused at the first step, also if a term begins later.
        must_be_there = self.reads_teacher_at(targets.progress) if targets.is_live else self.needs_teacher
        if must_be_there and targets.teacher_AxC is None:
            raise SpecError(
                f"distillation: {self._written('alpha')} and {self._written('logit_mse')} need the teacher's logits, "
                f"and these rows have none. Give rows with logits, or set both to 0."
            )
        # bf16 keeps eight bits of a number: too few for the differences of logits.
        with torch.autocast(student_AxC.device.type, enabled=False):
            terms_A = self.at(targets.progress).terms(student_AxC.float(), targets, distribution)
        total_A = torch.stack(list(terms_A.values())).sum(dim=0)
        return Loss(total_A, {name: term_A.detach().sum() for name, term_A in terms_A.items()})

    @property
    def factors(self) -> Factors:
        """The factors of the terms, as they are at the beginning of the training."""
        return Factors(self.temperature, self.alpha, self.logit_mse, self.trust)

    def terms(
        self, student_AxC: Tensor, targets: Targets, distribution: Distribution, factors: Factors | None = None
    ) -> dict[str, Tensor]:
        """Name of a term -> its weighted value for each answer, of outputs in float32. Schedules have no effect.

        The settings decide which terms there are; `factors` replaces their numbers.
        """
        factors = factors or self.factors
        teacher_AxC = None if targets.teacher_AxC is None else targets.teacher_AxC.float()
        trust = self._trust(teacher_AxC, targets.gold, distribution, factors)
        terms_A: dict[str, Tensor] = {}
        if teacher_AxC is not None and self.alpha > 0:
            comparison = self._comparison(student_AxC, teacher_AxC, targets, factors.temperature, trust)
            terms_A["soft"] = factors.alpha * distribution.soft_loss(comparison, self.soft_term)
        if self.alpha < 1:
            weight = (1 - factors.alpha) * targets.gold_weight
            terms_A["hard"] = weight * distribution.hard_loss(student_AxC, targets.gold)
        if isinstance(trust, Tensor) and self.alpha > 0:
            # Without `gold_weight`: this weight comes from the soft term, which is a mean over all answers.
            moved_A = factors.alpha * distribution.hard_loss(student_AxC, targets.gold, 1 - trust)
            terms_A["hard"] = terms_A["hard"] + moved_A if "hard" in terms_A else moved_A
        if teacher_AxC is not None and self.logit_mse > 0:
            terms_A["logit_mse"] = factors.logit_mse * mean_squared_difference(student_AxC, teacher_AxC, trust)
        return terms_A

    def _written(self, name: str) -> str:
        start, end = getattr(self, name), getattr(self.at(1.0), name)
        return f"{name} {start:g}" if start == end else f"{name} {start:g} to {end:g}"

    def _comparison(
        self,
        student_AxC: Tensor,
        teacher_AxC: Tensor,
        targets: Targets,
        temperature: float | Tensor,
        trust: Weights,
    ) -> Comparison:
        comparison = Comparison(
            student_AxC=student_AxC,
            teacher_AxC=teacher_AxC,
            temperature=temperature,
            gold=targets.gold,
            weights=trust,
            sum_over_workers=targets.sum_over_workers,
        )
        return comparison.standardized() if self.standardize else comparison

    def _trust(self, teacher_AxC: Tensor | None, gold: Tensor, distribution: Distribution, factors: Factors) -> Weights:
        """The factor of the terms that compare with the teacher: `trust` where it contradicts the gold, otherwise 1."""
        if teacher_AxC is None or self.trust == 1:
            return 1.0
        return 1 - (1 - factors.trust) * distribution.contradicts(teacher_AxC, gold).to(teacher_AxC.dtype)
