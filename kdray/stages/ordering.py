"""Brings the units of the models that narrower students are cut from into the order of their importance."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdray.data.batches import ordered_batches
from kdray.data.rows import Batch, Rows
from kdray.data.tokens import TokenSet
from kdray.models.pretrained import Pretrained, save_model
from kdray.slots.job import Report, Worker
from kdray.stages.session import Session
from kdray.storage.files import fingerprint, upload_folder
from kdray.storage.mirror import fetch
from kdray.students.axes import structure_of
from kdray.students.importance import Importance, measure_importance, reorder
from kdray.students.sources import BySource
from kdray.students.transformer import cut_widths, describe_tied_widths
from kdray.students.widths import Width
from kdray.training.trial import TrialInputs

MEASURED_ROWS = 1024
"""The most training rows that importance is measured on, as many as Minitron takes (arXiv:2407.14679)."""
BATCH_SIZE = 32
"""Rows in one forward and backward pass."""


def order_units(session: Session, inputs: BySource[TrialInputs]) -> BySource[TrialInputs]:
    """The inputs of the trials; a source of narrower students is replaced by a copy with its best units first.

    The copy answers as the source does, but for rounding. It is made once by a slot, and kept in the storage.
    """
    students = session.sweep.students
    noted: set[str] = set()

    def note(sentence: str) -> None:
        # Sources that differ in their vocabulary alone have the same widths, and so the same notes.
        if sentence not in noted:
            noted.add(sentence)
            session.screen.note(sentence)

    def ordered(each: TrialInputs) -> TrialInputs:
        own = [student for student in students if inputs.of(student) is each]
        config = each.source.config()
        widths = cut_widths(own, config)
        if not widths:
            return each
        key = fingerprint("units by importance", each.source.key, each.tokens.key, widths, MEASURED_ROWS)
        copy = Pretrained(session.paths.model(key), key)
        if not fetch(copy.folder).exists():
            note(_describe_measurement(each, widths))
            list(session.slots.run(OrderUnits(each.source, each.tokens, widths, copy.folder), f"importance-{key}"))
        for sentence in describe_tied_widths(own, config):
            note(sentence)
        return replace(each, source=copy)

    return inputs.map(ordered)


@dataclass(frozen=True)
class OrderUnits:
    """The job that measures the importance of a model's units, and writes the model with the best ones first."""

    source: Pretrained
    tokens: TokenSet
    """The rows as token ids of the source's tokenizer."""
    widths: tuple[Width, ...]
    target: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        model = self.source.model().to(worker.device)
        structure = structure_of(type(model), model.config, self.widths)
        rows = self.tokens.all_rows("train")
        sample = _sample(rows)
        shares = worker.all_gather(measure_importance(model, structure, _batches(rows, sample, worker)))
        if worker.rank == 0:
            reorder(model, structure, _sum_of(shares))
            with upload_folder(self.target) as folder:
                save_model(model.cpu(), self.source.tokenizer(), folder)
        yield {"rows": len(sample)}


def _sample(rows: Rows) -> np.ndarray:
    """The numbers of the rows that importance is measured on: the same in each session, in ascending order."""
    return np.sort(np.random.default_rng(0).permutation(len(rows))[:MEASURED_ROWS])


def _batches(rows: Rows, sample: np.ndarray, worker: Worker) -> Iterator[Batch]:
    """The batches of this rank."""
    for places in ordered_batches(rows.lengths[sample], BATCH_SIZE)[worker.rank :: worker.world]:
        yield rows.batch(sample[places])
        worker.progress += 1  # a worker whose count does not grow is taken for hung


def _sum_of(shares: list[Importance]) -> Importance:
    """The importance over the rows of all ranks. A rank without rows has none."""
    total: Importance = {}
    for share in shares:
        for width, values in share.items():
            total[width] = total[width] + values if width in total else values
    return total


def _describe_measurement(inputs: TrialInputs, widths: tuple[Width, ...]) -> str:
    rows = min(MEASURED_ROWS, len(inputs.tokens.all_rows("train")))
    return (
        f"Narrower students ({', '.join(f'student.{width}' for width in widths)}) keep the units that matter most for "
        f"the answers of the model that they are cut from, measured on {rows:,} texts."
    )
