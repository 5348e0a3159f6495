"""The one list of the inner terms; the name of each is the setting with its weight."""

from kdray.losses.attention_maps import AttentionMaps, AttentionScores
from kdray.losses.attention_relations import Relations, ValueRelation
from kdray.losses.hidden_states import Embeddings, FirstToken, HiddenCosine, HiddenMSE
from kdray.losses.inner_settings import InnerSettings
from kdray.losses.inner_term import InnerTerm
from kdray.losses.schedule import scheduled

INNER_TERMS: dict[str, type[InnerTerm]] = {
    kind.name: kind
    for kind in (
        HiddenMSE,
        HiddenCosine,
        FirstToken,
        Embeddings,
        AttentionScores,
        AttentionMaps,
        Relations,
        ValueRelation,
    )
}

INNER_SETTINGS = frozenset(InnerSettings.model_fields) | scheduled()
"""The settings of the loss that concern inner terms. They have a meaning for every kind of outputs."""
