"""InnerSettings: the weights of the terms that compare the layers of a student with those of its teacher."""

from typing import Annotated

from pydantic import AfterValidator

from kdray.losses.layer_map import check_layer_map
from kdray.settings import Settings, later_field


class InnerSettings(Settings):
    """The weights of the inner terms, and what they compare. All weights are 0 by default: no inner terms.

    Each term is a mean over the tokens of a batch and over the pairs of layers. docs/losses.md has the formula and the
    source of each.
    """

    hidden_mse: float = later_field(0.0, ge=0)
    """The weight of the mean squared difference of hidden states."""
    hidden_cosine: float = later_field(0.0, ge=0)
    """The weight of 1 - the cosine of the angle between hidden states."""
    hidden_first: float = later_field(0.0, ge=0)
    """The weight of the squared difference of the normalised hidden states of the first token, which a classifier
    reads."""
    embeddings: float = later_field(0.0, ge=0)
    """The weight of the mean squared difference of the embeddings."""
    attention_scores: float = later_field(0.0, ge=0)
    """The weight of the mean squared difference of the attention scores before the softmax."""
    attention_maps: float = later_field(0.0, ge=0)
    """The weight of the Kullback-Leibler divergence of the attention of each token to the others."""
    relations: float = later_field(0.0, ge=0)
    """The weight of the divergences of the relations between queries, between keys and between values."""
    value_relation: float = later_field(0.0, ge=0)
    """The weight of the divergence of the relations between values alone."""
    relation_heads: int | None = later_field(None, ge=1)
    """The number of heads in which relations are computed; None: as many as the teacher has. It must divide the widths
    of queries, keys and values of both models."""
    layer_map: Annotated[str, AfterValidator(check_layer_map)] = later_field("evenly")
    """Which layers of the student learn from which layers of the teacher: a name in `LAYER_MAPS`, or pairs
    student:teacher from 1, such as "1:4,2:8"."""
    inner_first: float = later_field(0.0, ge=0, lt=1)
    """The share of the training's steps that have the inner terms alone; the steps after them have none. 0: all steps
    have all terms."""
    hidden_mse_end: float | None = later_field(None, ge=0)
    """The weight at the end of the schedule; None: as at the beginning. The same holds for the other weights."""
    hidden_cosine_end: float | None = later_field(None, ge=0)
    hidden_first_end: float | None = later_field(None, ge=0)
    embeddings_end: float | None = later_field(None, ge=0)
    attention_scores_end: float | None = later_field(None, ge=0)
    attention_maps_end: float | None = later_field(None, ge=0)
    relations_end: float | None = later_field(None, ge=0)
    value_relation_end: float | None = later_field(None, ge=0)
