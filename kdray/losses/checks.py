"""Which settings of the loss a sweep is refused for: those without a meaning for its task, and those without effect."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.losses.distribution import Distribution
from kdray.losses.inner_term import InnerTerm
from kdray.losses.inner_terms import INNER_SETTINGS, INNER_TERMS
from kdray.losses.schedule import END, scheduled
from kdray.losses.soft_terms import SOFT_TERMS, TERM_SETTINGS

FEWEST_TO_STANDARDIZE = 3
"""Two standardised logits are always the same two numbers."""


@dataclass(frozen=True)
class LossSettings:
    """The settings of the loss that the trials of a sweep may have."""

    fixed: Distillation
    searched: Mapping[str, tuple[Any, ...]]
    """Name of a searched setting, without its group -> its values, or the ends of its range."""

    def check(self, distribution: Distribution, task: str) -> None:
        """Raise SpecError for a setting that has no meaning for the outputs of this task, or that no trial reads."""
        for name in self._given():
            self._refuse_if(name, self._no_meaning(name, distribution, task) or self._no_effect(name, distribution))
        for soft in self._values("soft"):
            self._refuse_value_if(
                "soft", soft, distribution.problem_of_term(SOFT_TERMS[soft]) or self._no_weights(soft)
            )

    def check_outputs(self, outputs: int) -> None:
        """Raise SpecError for a term that carries nothing with so few classes or labels; 0: the answer is a number."""
        if outputs == 0:
            return
        for soft in self._values("soft"):
            term = SOFT_TERMS[soft]
            if outputs < term.fewest_outputs:
                allowed = ", ".join(name for name, each in SOFT_TERMS.items() if each.fewest_outputs <= outputs)
                self._refuse_value_if(
                    "soft",
                    soft,
                    f"it needs at least {term.fewest_outputs} labels, and the data have {outputs}: {term.why_so_many}. "
                    f"Allowed: {allowed}.",
                )
        if outputs < FEWEST_TO_STANDARDIZE and True in self._values("standardize"):
            self._refuse_value_if(
                "standardize",
                True,
                f"it needs at least {FEWEST_TO_STANDARDIZE} labels, and the data have {outputs}: two standardised "
                "logits are always the same two numbers, so they only say which one is larger. Leave it out.",
            )

    def check_microbatches(self, microbatches: Iterable[int | None]) -> None:
        """Raise SpecError for a term that needs all answers of a batch at once, with these values of the setting."""
        given = [size for size in microbatches if size is not None]
        for soft in self._values("soft") if given else ():
            weight = SOFT_TERMS[soft].whole_batch
            if weight and any(self._values(weight)):
                raise SpecError(
                    f"training.microbatch: got {max(given)}, but distillation.soft={soft} relates all answers of a "
                    "batch with each other, so they must be computed at once. Leave microbatch out, or set "
                    f"distillation.{weight}=0."
                )

    def _values(self, name: str) -> tuple[Any, ...]:
        return self.searched.get(name, (getattr(self.fixed, name),))

    def _given(self) -> list[str]:
        """The settings that are searched, or have another value than their default."""
        fields = Distillation.model_fields
        return [name for name in fields if name in self.searched or getattr(self.fixed, name) != fields[name].default]

    def _no_meaning(self, name: str, distribution: Distribution, task: str) -> str:
        if name in distribution.settings | INNER_SETTINGS:
            return ""
        meaningful = _listed(sorted(distribution.settings), "and")
        return f"it has no meaning for {task}. Leave it out; with a meaning: {meaningful}; and those of inner terms."

    def _no_effect(self, name: str, distribution: Distribution) -> str:
        """Why no trial would be another one with another value of this setting; empty if one would."""
        return (
            self._no_soft_term(name)
            or self._no_inner_term(name)
            or self._no_schedule(name, distribution)
            or self._outside_of_stage(name)
        )

    def _no_soft_term(self, name: str) -> str:
        softs = self._values("soft")
        if name not in TERM_SETTINGS or any(name in SOFT_TERMS[soft].settings() for soft in softs):
            return ""
        (reader,) = (kind for kind, term in SOFT_TERMS.items() if name in term.settings())
        return (
            f"only distillation.soft={reader} reads it, and it is {' or '.join(softs)} here. Leave it out, or set "
            f"distillation.soft={reader}."
        )

    def _no_inner_term(self, name: str) -> str:
        used = self._inner_terms()
        if name == "inner_first" and not used:
            return (
                "it has no effect without an inner term, and the weights of all of them are 0. Leave it out, or give a "
                f"weight to {_listed(INNER_TERMS, 'or')}."
            )
        readers = [term for term, kind in INNER_TERMS.items() if name in kind.reads]
        if not readers or any(term in readers for term in used):
            return ""
        return (
            f"only {_listed(readers, 'and')} read it, and their weights are 0. Leave it out, or give one of them a "
            "weight."
        )

    def _no_schedule(self, name: str, distribution: Distribution) -> str:
        is_of_schedule = name.endswith(END) or name in scheduled() - {"schedule"}
        if is_of_schedule and self._is_constant():
            return "it has no effect, because distillation.schedule is constant. Set it to linear or cosine."
        if name == "schedule" and not any(each.endswith(END) for each in self._given()):
            ends = sorted(each for each in distribution.settings if each.endswith(END))
            ends += [f"{term}{END}" for term in self._inner_terms()]
            return f"it has no effect without an end value. Set {_listed(ends, 'or')}, or leave it out."
        return ""

    def _outside_of_stage(self, name: str) -> str:
        """Why an end value is never approached in the steps that have its term; empty if it is in some trial."""
        firsts, setting = self._values("inner_first"), name.removesuffix(END)
        if not name.endswith(END) or min(firsts) == 0:
            return ""
        begin, end = min(self._values("schedule_from")), max(self._values("schedule_to"))
        if setting in INNER_TERMS and begin >= max(firsts):
            return (
                f"it has no effect, because the inner terms end at distillation.inner_first={max(firsts):g}, and the "
                f"schedule begins at distillation.schedule_from={begin:g}. Leave it out, or let the schedule begin "
                "earlier."
            )
        if setting not in INNER_TERMS and end <= min(firsts):
            return (
                f"distillation.{setting} itself has no effect, because the schedule ends at distillation.schedule_to="
                f"{end:g}, and before distillation.inner_first={min(firsts):g} there are inner terms alone. Set "
                f"distillation.{setting} to the end value, or let the schedule end later."
            )
        return ""

    def _no_weights(self, soft: str) -> str:
        """Why this soft term is 0 in every trial; empty if it is not."""
        weights = sorted(SOFT_TERMS[soft].settings())
        if not weights or any(value != 0 for name in weights for value in self._values(name)):
            return ""
        return f"{_listed(weights, 'and')} are 0, so this term is always 0. Give one of them a weight."

    def _inner_terms(self) -> dict[str, type[InnerTerm]]:
        """The inner terms that have a weight above 0 at some step of some trial."""
        return {name: kind for name, kind in INNER_TERMS.items() if any(self._weights(name))}

    def _weights(self, term: str) -> tuple[float | None, ...]:
        """The weights of an inner term at the beginning and at the end of a schedule, over all trials."""
        return self._values(term) if self._is_constant() else (*self._values(term), *self._values(f"{term}{END}"))

    def _is_constant(self) -> bool:
        return set(self._values("schedule")) == {"constant"}

    def _refuse_if(self, name: str, reason: str) -> None:
        if not reason:
            return
        if name in self.searched:
            raise SpecError(f"space 'distillation.{name}': {reason}")
        self._refuse_value_if(name, getattr(self.fixed, name), reason)

    def _refuse_value_if(self, name: str, value: Any, reason: str) -> None:
        if not reason:
            return
        where = f"space 'distillation.{name}'" if name in self.searched else f"distillation.{name}"
        written = f"{value:g}" if isinstance(value, float) else f"{value!r}"
        raise SpecError(f"{where}: got {written}; {reason}")


def _listed(names: Iterable[str], word: str) -> str:
    """The full names of these settings, with this word before the last one."""
    *others, last = (f"distillation.{name}" for name in names)
    return f"{', '.join(others)} {word} {last}" if others else last
