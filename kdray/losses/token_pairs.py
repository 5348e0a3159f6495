"""Token pairs: what each token of a row says about the others, as scores or as shares that add up to 1.

Attention and relations are both scores of pairs of tokens. Padding has no part in them, whatever it contains.
Shapes: B rows, A heads, L tokens of the longest row, D numbers of a head. In L x L, the first token looks at the
second one.
"""

import torch
from torch import Tensor
from torch.nn import functional


def pairs_of_tokens(is_token_BxL: Tensor) -> Tensor:
    """Whether both tokens of a pair are no padding (B x 1 x L x L)."""
    return is_token_BxL[:, None, :, None] & is_token_BxL[:, None, None, :]


def pair_scores(left_BxAxLxD: Tensor, right_BxAxLxD: Tensor, scaling: float, is_token_BxL: Tensor) -> Tensor:
    """scaling * left right^T (B x A x L x L), in float32 or float64; the scores of padding are 0."""
    is_padding = ~is_token_BxL[:, None, :, None]
    # Before the product: padding may be nan, and 0 * nan in the gradient of the product is nan.
    left_BxAxLxD, right_BxAxLxD = (
        each.to(torch.promote_types(each.dtype, torch.float32)).masked_fill(is_padding, 0.0)
        for each in (left_BxAxLxD, right_BxAxLxD)
    )
    return (scaling * left_BxAxLxD) @ right_BxAxLxD.transpose(-1, -2)


def log_shares(scores_BxAxLxL: Tensor, counts: Tensor) -> Tensor:
    """The logarithm of the softmax of each token's scores of the tokens that count (bool, broadcast to the scores).

    A token for which none counts has equal shares.
    """
    # Not -inf: where no token counts, its softmax is nan, and so is the gradient.
    lowest = torch.finfo(scores_BxAxLxL.dtype).min / 2
    return functional.log_softmax(scores_BxAxLxL.masked_fill(~counts, lowest), dim=-1)


def divergence(student_BxAxLxL: Tensor, teacher_BxAxLxL: Tensor) -> Tensor:
    """KL(teacher || student) of `log_shares`, for each token (B x A x L).

    A pair that does not count adds 0 to it, because its share is 0 in both.
    """
    parts_BxAxLxL = functional.kl_div(student_BxAxLxL, teacher_BxAxLxL, reduction="none", log_target=True)
    return parts_BxAxLxL.sum(dim=-1)
