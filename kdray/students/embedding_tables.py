"""The embedding table of a student whose layers are drawn: that of its source, narrower where the student is.

In tensor names: V tokens of the vocabulary, E width of the source's table, W width of the student's table.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdray.errors import TeacherError

CHUNK = 16_384
"""Rows that are computed in float64 together: the whole table of a large vocabulary would need gigabytes."""


def source_table(source: PreTrainedModel) -> Tensor:
    """The input embeddings of the source (V x E). Raises TeacherError if it does not have one table of them."""
    try:
        table_VxE = source.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        table_VxE = None
    if not isinstance(table_VxE, Tensor) or table_VxE.ndim != 2:
        raise TeacherError(
            f"student: this {source.config.model_type} model has no table with one embedding for each token, so a "
            "student cannot take its words from it. It may teach students that are built from another model: say "
            "--set student.checkpoint=..."
        )
    return table_VxE.detach()


def narrow_table(table_VxE: Tensor, width: int) -> Tensor:
    """The table with at most this width (V x W, float32): itself, or its first principal components.

    A principal component is the projection of the centred rows on an eigenvector of their covariance, in descending
    order of the variance. The largest entry of each eigenvector is positive, because either sign would be right.
    """
    if width == table_VxE.shape[1]:
        return table_VxE.float()
    mean_E = sum((rows.double().sum(dim=0) for rows in table_VxE.split(CHUNK)), torch.zeros(())) / len(table_VxE)
    centred = [rows.double() - mean_E for rows in table_VxE.split(CHUNK)]
    covariance_ExE = sum((rows.T @ rows for rows in centred), torch.zeros(()))
    _, vectors_ExE = torch.linalg.eigh(covariance_ExE)  # in ascending order of the variance
    vectors_ExW = vectors_ExE.flip(1)[:, :width]
    largest_W = vectors_ExW.gather(0, vectors_ExW.abs().argmax(dim=0, keepdim=True))
    vectors_ExW = vectors_ExW * largest_W.sign()
    return torch.cat([(rows @ vectors_ExW).float() for rows in centred])
