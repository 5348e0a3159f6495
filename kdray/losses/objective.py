"""Objective: everything that a training lowers, the sum of the terms on outputs and of the inner terms, with weights.

Shapes: A answers of a batch, C outputs, B rows, L tokens of the longest row, N tokens without padding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.distribution import Distribution
from kdray.losses.inner_term import AttentionTerm, HiddenTerm, InnerTerm
from kdray.losses.layer_map import Pairs
from kdray.losses.states import InnerTargets, Needs

EMBEDDINGS: Pairs = ((0, 0),)
"""The pair of the embeddings of both models."""


class Objective(nn.Module):
    """The loss of a training. It owns the projections that inner terms learn, which are no part of the student."""

    def __init__(self, distillation: Distillation, distribution: Distribution, pairs: Pairs = ()) -> None:
        """`pairs` are those of the layer map, for the layers of student and teacher."""
        super().__init__()
        self.distillation, self.distribution, self._pairs = distillation, distribution, pairs
        self._inner = {
            name: kind(distillation.relation_heads) if issubclass(kind, AttentionTerm) else kind()
            for name, kind in distillation.inner_terms.items()
        }
        self.projections = nn.ModuleDict()

    def add_projections(self, student: Mapping[int, int], teacher: Mapping[int, int], seed: int) -> None:
        """Add a learnt projection for each pair of layers with different widths that a term on hidden states compares.

        `student` and `teacher` have the hidden sizes by the number of the layer, for all layers that are needed. `seed`
        decides the first values.
        """
        generator = torch.Generator().manual_seed(seed)
        terms = (term for term in self._inner.values() if isinstance(term, HiddenTerm))
        for pair in sorted({pair for term in terms for pair in self._pairs_of(term)}):
            before, after = student[pair[0]], teacher[pair[1]]
            if before != after:
                self.projections[_name(pair)] = _projection(before, after, generator)

    @property
    def student_needs(self) -> Needs:
        """The layers of the student that the inner terms read."""
        return self._needs(0)

    @property
    def teacher_needs(self) -> Needs:
        """The layers of the teacher that the inner terms read."""
        return self._needs(1)

    def compares_layers(self, progress: float) -> bool:
        """Whether the inner terms take part at this share of the training; without them no states are needed."""
        first = self.distillation.inner_first
        return bool(self._inner) and (first == 0 or progress < first)

    def compares_outputs(self, progress: float) -> bool:
        """Whether the outputs take part at this share of the training."""
        return not (self.compares_layers(progress) and self.distillation.inner_first > 0)

    def reads_teacher_outputs(self, progress: float) -> bool:
        """Whether the loss reads the teacher's outputs at this share of the training."""
        return self.compares_outputs(progress) and self.distillation.reads_teacher_at(progress)

    def forward(self, outputs_AxC: Tensor, targets: Targets, inner: InnerTargets | None = None) -> Loss:
        """Compute the loss in float32. `inner` is read if the inner terms take part at this time of the training."""
        return self.with_inner_terms(self.loss_of_outputs(outputs_AxC, targets), targets, inner)

    def loss_of_outputs(self, outputs_AxC: Tensor, targets: Targets) -> Loss:
        """The terms on the outputs of some answers of the batch; `targets` are those of the same answers."""
        if not self.compares_outputs(targets.progress):
            # Not without the outputs: DDP waits for a gradient of every parameter, those of the head included.
            return Loss(0.0 * outputs_AxC.float().sum(dim=-1), {})
        return self.distillation.loss(outputs_AxC, targets, self.distribution)

    def with_inner_terms(self, loss: Loss, targets: Targets, inner: InnerTargets | None = None) -> Loss:
        """The loss of all outputs of the batch, with the inner terms if they take part at this time of the training."""
        if not self.compares_layers(targets.progress):
            return self._keep_projections(loss)
        assert inner is not None
        with torch.autocast(loss.total_A.device.type, enabled=False):
            terms = self._inner_terms(inner, self.distillation.at(targets.progress))
        named = {name: value.detach() for name, value in terms.items()}
        return replace(loss, terms={**loss.terms, **named}, inner=torch.stack(list(terms.values())).sum())

    def _inner_terms(self, inner: InnerTargets, settings: Distillation) -> dict[str, Tensor]:
        """Name of a term -> its weighted sum over the batch, in the unit of an answer."""
        terms = {}
        for name, term in self._inner.items():
            unit = inner.row_weight if isinstance(term, HiddenTerm) and term.of_first_token else inner.token_weight
            pairs = self._pairs_of(term)
            values = [self._compare(term, pair, inner) for pair in pairs]
            terms[name] = getattr(settings, name) * unit * torch.stack(values).mean()
        return terms

    def _compare(self, term: InnerTerm, pair: tuple[int, int], inner: InnerTargets) -> Tensor:
        """The sum of a term over the tokens, or the rows, of the batch for one pair of layers."""
        student, teacher = pair
        if isinstance(term, AttentionTerm):
            value_N = term.values(
                inner.student.attention[student], inner.teacher.attention[teacher], inner.is_token_BxL
            )
            return value_N.sum()
        assert isinstance(term, HiddenTerm)
        student_BxLxH, teacher_BxLxH = inner.student.hidden[student], inner.teacher.hidden[teacher]
        if term.of_first_token:
            student_NxH, teacher_NxH = student_BxLxH[:, 0], teacher_BxLxH[:, 0]
        else:
            student_NxH, teacher_NxH = student_BxLxH[inner.is_token_BxL], teacher_BxLxH[inner.is_token_BxL]
        student_NxH = student_NxH.float()
        if _name(pair) in self.projections:
            student_NxH = self.projections[_name(pair)](student_NxH)
        return term.values(student_NxH, teacher_NxH.float()).sum()

    def _pairs_of(self, term: InnerTerm) -> Pairs:
        return EMBEDDINGS if isinstance(term, HiddenTerm) and term.of_embeddings else self._pairs

    def _needs(self, side: int) -> Needs:
        def layers(kind: type[InnerTerm]) -> frozenset[int]:
            terms = (term for term in self._inner.values() if isinstance(term, kind))
            return frozenset(pair[side] for term in terms for pair in self._pairs_of(term))

        return Needs(hidden=layers(HiddenTerm), attention=layers(AttentionTerm))

    def _keep_projections(self, loss: Loss) -> Loss:
        """The same loss, with gradients of 0 for the projections: DDP waits for a gradient of every parameter."""
        if not self.projections:
            return loss
        return replace(loss, inner=_zero(self.projections.parameters()))


def _name(pair: tuple[int, int]) -> str:
    return f"{pair[0]}_{pair[1]}"


def _zero(parameters: Iterable[Tensor]) -> Tensor:
    return 0.0 * torch.stack([parameter.sum() for parameter in parameters]).sum()


def _projection(student: int, teacher: int, generator: torch.Generator) -> nn.Linear:
    """A linear map without bias that keeps lengths and angles as well as the two widths allow."""
    linear = nn.Linear(student, teacher, bias=False)
    nn.init.orthogonal_(linear.weight, generator=generator)
    return linear
