"""Terms that compare relations: how similar the queries, keys or values of a token are to those of the others.

The widths and the numbers of heads of two models may differ: what the heads of a token have is concatenated, and split
into the same number of relation heads for both. Relations are between all tokens of a row without padding, also in
models whose attention is causal or local: nothing is predicted from them, so a later token gives nothing away.
Shapes: B rows, A attention heads, R relation heads, L tokens of the longest row, D numbers of a head, N tokens without
padding.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.inner_term import AttentionTerm
from kdray.losses.states import Attention
from kdray.losses.token_pairs import divergence, log_shares, pair_scores, pairs_of_tokens


class Relations(AttentionTerm):
    """KL(teacher || student) of the relations between queries, between keys and between values: mean over relation
    heads and over the three (their sum, in Wang et al. 2021, arXiv:2012.15828, section 3.1).

    A relation of x with D numbers in a head is softmax(x x^T / sqrt(D)).
    """

    name = "relations"
    reads = frozenset({"layer_map", "relation_heads"})
    compared: ClassVar[tuple[str, ...]] = ("queries", "keys", "values")

    def values(self, student: Attention, teacher: Attention, is_token_BxL: Tensor) -> Tensor:
        """See `AttentionTerm`. Raises SpecError if the number of relation heads does not divide a width."""
        of_student, of_teacher = (self._vectors(each) for each in (student, teacher))
        widths = {
            f"{owner}'s {what}": vectors_BxAxLxD.shape[1] * vectors_BxAxLxD.shape[3]
            for owner, vectors in (("student", of_student), ("teacher", of_teacher))
            for what, vectors_BxAxLxD in vectors.items()
        }
        heads = check_relation_heads(self.relation_heads, teacher.queries_BxAxLxD.shape[1], widths)
        values_BxL = []
        for what in self.compared:
            student_BxRxLxL = _relation(of_student[what], heads, is_token_BxL)
            teacher_BxRxLxL = _relation(of_teacher[what], heads, is_token_BxL)
            values_BxL.append(divergence(student_BxRxLxL, teacher_BxRxLxL).mean(dim=1))
        return torch.stack(values_BxL).mean(dim=0)[is_token_BxL]

    def _vectors(self, attention: Attention) -> dict[str, Tensor]:
        return {what: getattr(attention, f"{what}_BxAxLxD") for what in self.compared}


class ValueRelation(Relations):
    """The same of values alone: Wang et al. 2020, arXiv:2002.10957, section 3.2."""

    name = "value_relation"
    compared: ClassVar[tuple[str, ...]] = ("values",)


def check_relation_heads(relation_heads: int | None, teacher_heads: int, widths: Mapping[str, int]) -> int:
    """The number of relation heads; `relation_heads` is the setting, and None stands for the teacher's heads.

    `widths`: what is compared, such as "student's queries" -> its numbers for each token, all heads together.
    Raises SpecError if the number does not divide one of them.
    """
    heads = teacher_heads if relation_heads is None else relation_heads
    for what, width in widths.items():
        if width % heads:
            common = math.gcd(*widths.values())
            allowed = ", ".join(str(each) for each in range(1, common + 1) if common % each == 0)
            given = (
                f"got {heads}" if relation_heads else f"not given, so it is {heads}, as many heads as the teacher has"
            )
            raise SpecError(
                f"distillation.relation_heads: {given}; it does not divide the width of the {what} ({width}). "
                f"Allowed for these two models: {allowed}."
            )
    return heads


def _relation(vectors_BxAxLxD: Tensor, heads: int, is_token_BxL: Tensor) -> Tensor:
    """The logarithms of the relations of the tokens of each row (B x R x L x L)."""
    concatenated_BxLxAxD = vectors_BxAxLxD.transpose(1, 2)
    split_BxRxLxD = concatenated_BxLxAxD.reshape(*concatenated_BxLxAxD.shape[:2], heads, -1).transpose(1, 2)
    scores_BxRxLxL = pair_scores(split_BxRxLxD, split_BxRxLxD, split_BxRxLxD.shape[-1] ** -0.5, is_token_BxL)
    return log_shares(scores_BxRxLxL, pairs_of_tokens(is_token_BxL))
