"""The front's controls: each architecture on it, on labels alone and with distillation as it comes.

They have the search's own seed and as many epochs, and are measured on the validation rows, so they can stand beside
the trials in every table and picture. One seed says little, and the best of many trials is flattered on these rows:
what the chosen student owes to distillation and to the search is `verdict`'s to say.
"""

from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from kdray.choice.reruns import Rerun, Role, control_recipes
from kdray.choice.rule import front_trials
from kdray.evaluation.trial_record import TrialRecord
from kdray.models.transformer import TransformerStudent
from kdray.training.trial import Recipe


class Control(BaseModel):
    """What came of one of them."""

    model_config = ConfigDict(frozen=True)

    trial: int
    """The trial that it is a control of: the best of its architecture on the front."""
    role: Role
    metrics: dict[str, float] = {}
    """On the validation rows, at the end of its training; none where it failed."""
    error: str | None = None


def controls_of_front(
    records: Sequence[TrialRecord],
    objectives: Sequence[str],
    recipe_of: Callable[[Mapping[str, object]], Recipe],
    seed: int,
) -> list[Rerun]:
    """All that must be trained for the front of these objectives; of the first, a student's quality, more is better."""
    numbers = front_trials(records, objectives)
    on_front = [record for record in records if record.number in numbers]
    best: dict[TransformerStudent, TrialRecord] = {}
    for record in sorted(on_front, key=lambda record: (-record.metrics[objectives[0]], record.number)):
        best.setdefault(recipe_of(record.params).student.shape, record)
    return [
        Rerun(record.number, role, seed, recipe)
        for record in best.values()
        for role, recipe in control_recipes(recipe_of(record.params), recipe_of({})).items()
    ]
