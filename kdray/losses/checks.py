"""Which settings of the loss a sweep is refused for: those without a meaning for its task, and those without effect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.losses.distribution import Distribution
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
            self._refuse_value_if("soft", soft, distribution.problem_of_term(SOFT_TERMS[soft]))

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

    def _values(self, name: str) -> tuple[Any, ...]:
        return self.searched.get(name, (getattr(self.fixed, name),))

    def _given(self) -> list[str]:
        """The settings that are searched, or have another value than their default."""
        fields = Distillation.model_fields
        return [name for name in fields if name in self.searched or getattr(self.fixed, name) != fields[name].default]

    def _no_meaning(self, name: str, distribution: Distribution, task: str) -> str:
        if name in distribution.settings:
            return ""
        meaningful = ", ".join(f"distillation.{each}" for each in sorted(distribution.settings))
        return f"it has no meaning for {task}. Leave it out; with a meaning: {meaningful}."

    def _no_effect(self, name: str, distribution: Distribution) -> str:
        """Why no trial would be another one with another value of this setting; empty if one would."""
        softs, schedules = self._values("soft"), self._values("schedule")
        if name in TERM_SETTINGS and not any(name in SOFT_TERMS[soft].settings() for soft in softs):
            (reader,) = (kind for kind, term in SOFT_TERMS.items() if name in term.settings())
            return (
                f"only distillation.soft={reader} reads it, and it is {' or '.join(softs)} here. Leave it out, or set "
                f"distillation.soft={reader}."
            )
        is_of_schedule = name.endswith(END) or name in scheduled() - {"schedule"}
        if is_of_schedule and set(schedules) == {"constant"}:
            return "it has no effect, because distillation.schedule is constant. Set it to linear or cosine."
        if name == "schedule" and not any(each.endswith(END) for each in self._given()):
            ends = sorted(f"distillation.{each}" for each in distribution.settings if each.endswith(END))
            return f"it has no effect without an end value. Set {' or '.join(ends)}, or leave it out."
        return ""

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
