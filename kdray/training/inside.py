"""The inside of a training: the states of student and teacher that the inner terms of its loss compare."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdray.data.rows import Batch, Rows
from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.losses.distribution import Distribution
from kdray.losses.layer_map import layer_pairs
from kdray.losses.objective import Objective
from kdray.losses.states import InnerTargets
from kdray.slots.job import Worker
from kdray.students.recording import Recorder
from kdray.training.signal import OpenSignal, Signal, hidden_widths


@dataclass(frozen=True)
class Inside:
    """Gives the inner targets of a batch, after the student has read it."""

    recorder: Recorder
    """Records the student."""
    signal: OpenSignal
    answers_live: bool = False
    """Whether the teacher's outputs come from the signal, because the rows have none."""

    def teacher_outputs(self, batch: Batch) -> Tensor:
        """The outputs of the teacher that runs here; call it before `targets`, which then need not run it again."""
        return self.signal.outputs(batch)

    def targets(self, batch: Batch, rows: np.ndarray, weights: tuple[float, float]) -> InnerTargets:
        """The inner targets of a batch with these rows. `weights` are those of a token and of a row."""
        return InnerTargets(
            student=self.recorder.take(),
            teacher=self.signal.states(batch, rows),
            is_token_BxL=batch.inputs["attention_mask"].bool(),
            token_weight=weights[0],
            row_weight=weights[1],
        )


def inner_weights(rows: Rows, indices: np.ndarray, answers: int) -> tuple[float, float]:
    """The answers for each token, and for each row, in the batch of all workers: these rows with so many answers."""
    return answers / max(1, int(rows.lengths[indices].sum())), answers / len(indices)


@contextmanager
def open_objective(
    distillation: Distillation,
    distribution: Distribution,
    student: tuple[PreTrainedModel, Sequence[nn.Module]],
    signal: Signal | None,
    seed: int,
    worker: Worker,
    answers_live: bool = False,
) -> Iterator[tuple[Objective, Inside | None]]:
    """The objective of a student's training, and the inside of the training if the objective has inner terms.

    `student` is the model with its layers, on the worker's device. `seed` decides the projections. `answers_live`: the
    teacher's outputs are not stored. Raises SpecError for inner terms without a signal, and for layers that one of the
    models does not have.
    """
    answers_live = answers_live and distillation.needs_teacher
    terms = [*distillation.inner_terms, *(["alpha"] if answers_live else [])]
    if not terms:
        yield Objective(distillation, distribution), None
        return
    if signal is None:
        what = "inner terms need the states" if distillation.inner_terms else "it needs the answers"
        raise SpecError(
            f"distillation.{terms[0]}: {what} of a teacher, and these inputs have none. Give a teacher that is a "
            "model, or leave them out."
        )
    model, layers = student
    pairs = layer_pairs(distillation.layer_map, len(layers), signal.layers) if distillation.inner_terms else ()
    objective = Objective(distillation, distribution, pairs)
    with (
        Recorder(model, layers, objective.student_needs) as recorder,
        signal.open(objective.teacher_needs, worker) as opened,
    ):
        objective.add_projections(hidden_widths(model, recorder), opened.widths, seed)
        yield objective.to(worker.device), Inside(recorder, opened, answers_live)
