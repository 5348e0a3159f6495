"""Widths: how many heads, feed-forward units and hidden units a Transformer has, as its configuration says.

`axes` finds the weights that follow each width, `narrowing` cuts them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from kdray.errors import SpecError, TeacherError

Width: TypeAlias = Literal["heads", "feed_forward", "hidden"]
"""A width of a model, named as the setting of the student is."""

WIDTHS: tuple[Width, ...] = ("heads", "feed_forward", "hidden")

NARROWED = ("BERT", "RoBERTa", "DistilBERT", "ELECTRA", "MPNet", "DeBERTa-v2", "ALBERT", "ModernBERT", "GPT-2", "Llama")
"""Families of which all widths can be cut, for messages."""
FEED_FORWARD = ("intermediate_size", "hidden_dim", "n_inner")
"""The names of the feed-forward width in configurations of transformers, which has no common name for it. GPT-2 and its
relatives have None there for four times the hidden size."""
FOLLOWS_HIDDEN = ("embedding_size", "pooler_hidden_size")
"""Entries that are equal to the hidden size in most models of a family, and must then stay equal to it."""


@dataclass(frozen=True)
class Widths:
    """The widths of a model."""

    heads: int
    feed_forward: int
    hidden: int
    head_size: int
    """How many numbers a head computes for each token. No student has another head size than its source."""
    is_tied: bool
    """Whether the hidden size must be `heads` times `head_size`, because the configuration has no entry for the size of
    a head. transformers builds most encoders so."""
    shares_keys: bool
    """Whether several heads have the same keys and values, so that no single head can be cut."""

    @classmethod
    def of(cls, config: Any) -> "Widths":
        """The widths in a configuration of transformers. Raises TeacherError if one of them is not in it."""
        heads, hidden = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
        name = _feed_forward_name(config)
        feed_forward = getattr(config, name) if name else None
        if name and feed_forward is None and type(hidden) is int:
            feed_forward = 4 * hidden
        if not type(heads) is type(hidden) is type(feed_forward) is int:
            raise TeacherError(cannot_cut(config.model_type, "its configuration does not say how wide it is"))
        head_size = config.to_dict().get("head_dim")
        return cls(
            heads=heads,
            feed_forward=feed_forward,
            hidden=hidden,
            head_size=head_size or hidden // heads,
            is_tied=not head_size,
            shares_keys=getattr(config, "num_key_value_heads", None) not in (None, heads),
        )

    def write(self, config: Any) -> None:
        """Give these widths to a configuration."""
        hidden_before, heads_before = config.hidden_size, config.num_attention_heads
        for name in FOLLOWS_HIDDEN:
            if getattr(config, name, None) == hidden_before:
                setattr(config, name, self.hidden)
        if getattr(config, "num_key_value_heads", None) == heads_before:
            config.num_key_value_heads = self.heads
        if not self.is_tied:
            config.head_dim = self.head_size
        config.hidden_size, config.num_attention_heads = self.hidden, self.heads
        setattr(config, str(_feed_forward_name(config)), self.feed_forward)

    def with_counts(self, counts: Mapping[Width, int]) -> "Widths":
        """These widths with other numbers of units."""
        return replace(
            self,
            heads=counts.get("heads", self.heads),
            feed_forward=counts.get("feed_forward", self.feed_forward),
            hidden=counts.get("hidden", self.hidden),
        )

    def count(self, width: Width) -> int:
        """The number of units of one width."""
        return int(getattr(self, width))

    def cut_from(self, source: "Widths") -> tuple[Width, ...]:
        """The widths in which this model is narrower than its source."""
        return tuple(name for name in WIDTHS if self.count(name) < source.count(name))


def requested_widths(source: Widths, requested: Mapping[Width, int | None], family: str) -> Widths:
    """The widths of a student of this source. A width that is None is that of the source, or follows from the others.

    Raises SpecError for a width that the source does not have, or that its family does not allow; TeacherError for a
    family whose heads cannot be cut.
    """
    given = {name: count for name, count in requested.items() if count is not None}
    for name, count in given.items():
        if count > source.count(name):
            raise SpecError(
                f"student.{name}: got {count}, but the model it is built from has {source.count(name)}; allowed are 1 "
                f"to {source.count(name)}."
            )
    widths = source.with_counts(_with_tied_width(source, given, family))
    if source.shares_keys and widths.heads < source.heads:
        raise TeacherError(cannot_cut(family, "several of its heads share their keys and values", "heads"))
    return widths


def cannot_cut(family: str, reason: str, width: Width | None = None) -> str:
    """Why a student of this family cannot have fewer units of a width than its source, and what to do."""
    setting = "student" if width is None else f"student.{width}"
    return (
        f"{setting}: a {family} model cannot be made narrower, because {reason}. Leave the width out, or take "
        f"{', '.join(NARROWED[:-1])} or {NARROWED[-1]} as the model that the students are built from."
    )


def _feed_forward_name(config: Any) -> str | None:
    return next((name for name in FEED_FORWARD if hasattr(config, name)), None)


def _with_tied_width(source: Widths, given: Mapping[Width, int], family: str) -> Mapping[Width, int]:
    """The given widths, with the hidden size that follows from the heads, or the heads that follow from it."""
    if not source.is_tied or not {"heads", "hidden"} & given.keys():
        return given
    rule = f"in a {family} model the hidden size is the number of heads times the size of a head ({source.head_size})"
    hidden = given.get("hidden", source.head_size * given.get("heads", 0))
    heads = hidden // source.head_size
    if hidden % source.head_size:
        raise SpecError(
            f"student.hidden: got {hidden}, but {rule}; allowed are the multiples of {source.head_size} up to "
            f"{source.hidden}."
        )
    if given.get("heads", heads) != heads:
        raise SpecError(
            f"student.heads: got {given['heads']} with student.hidden {hidden}, but {rule}. Give one of the two, the "
            f"other one follows: {given['heads']} heads have a hidden size of {given['heads'] * source.head_size}."
        )
    return {**given, "heads": heads, "hidden": hidden}
