"""The controls of the front: each of its architectures, trained on labels only and with default distillation.

Where there is more text than the labelled rows, a further control sees these alone; where a trial has inner terms, a
further control is trained without them. All have the seed and the number of steps of the search and are measured on the
validation rows, so tables and plots can show them beside the trials. They prove little: there is one seed, and the best
of many trials is overestimated on these rows. `verdict` computes what the chosen student gains.
"""

from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from kdray.choice.reruns import ControlsOf, Rerun, Role
from kdray.choice.rule import front_trials, signed
from kdray.evaluation.trial_record import TrialRecord
from kdray.students.student import Student
from kdray.training.trial import Recipe


class Control(BaseModel):
    """The outcome of one control of the front."""

    model_config = ConfigDict(frozen=True)

    trial: int
    """The number of the trial that it is compared with: the best one of its architecture on the front."""
    role: Role
    metrics: dict[str, float] = {}
    """Its metrics on the validation rows at the end of its training; empty if it failed."""
    error: str | None = None


def controls_of_front(
    records: Sequence[TrialRecord],
    objectives: Sequence[str],
    recipe_of: Callable[[Mapping[str, object]], Recipe],
    controls_of: ControlsOf,
    seed: int,
) -> list[Rerun]:
    """The reruns that are the controls of the front of these objectives, for each of its architectures.

    The first objective is a quality metric. `recipe_of` makes a recipe of searched settings, and `seed` is the seed of
    the search.
    """
    numbers = front_trials(records, objectives)
    on_front = [record for record in records if record.number in numbers]
    best_of_shape: dict[Student, TrialRecord] = {}
    for record in sorted(on_front, key=lambda record: (signed(record, objectives[0]), record.number)):
        best_of_shape.setdefault(recipe_of(record.params).student.shape, record)
    return [
        Rerun(trial=record.number, role=role, seed=seed, recipe=recipe)
        for record in best_of_shape.values()
        for role, recipe in controls_of(recipe_of(record.params)).items()
    ]
