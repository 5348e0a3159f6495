"""Write the transfer set: the teacher's logits for every row, computed once by all slots together.

The teacher is in evaluation mode and fine-tuning has no augmentation, so a live teacher would give the same logits.
They are stored by example id and apart from the token ids, so a student with another tokenizer reads the same logits.
The temperature is applied in the loss, so one transfer set serves every trial and every later sweep. How it is read is
in `data.transfer_set`.

    transfers/<key>/ <split>-<first row>.arrow (columns id, logits)  manifest.json (see `shard_files`)

Letters: A answers, C outputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field
from transformers import PreTrainedModel

from kdray.data.rows import TRAIN, Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.errors import JobError
from kdray.evaluation.outputs import compute_logits, evaluation_mode, kept_outputs
from kdray.losses.top_k import logs_only
from kdray.models.pretrained import Pretrained
from kdray.settings import MAY_CHANGE, Settings
from kdray.slots.job import Job, Pool, Report, Worker
from kdray.storage.files import fingerprint, replace_file
from kdray.storage.mirror import fetch_files
from kdray.storage.paths import StoragePaths
from kdray.teacher.shard_files import MANIFEST, cached_model, missing_files, run_jobs, write_manifest
from kdray.training.precision import autocast_dtype

LABELLED_AGAIN = "its rows are labelled again"
MAX_DIFFERENCE = 1e-3
"""The largest difference of a logit between two computations in fp32, as a share of the largest logit."""


class Transfer(Settings):
    """How the teacher's outputs are computed and stored."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """For the training rows. Validation and test rows are always labelled in fp32, because metrics depend on them."""
    batch_size: int = Field(128, ge=1)
    """The most rows in one forward pass. On a CPU there are fewer long ones: see `outputs.TOKENS_ON_CPU`."""
    shard_rows: int = Field(1024, ge=1)
    """Rows in one job and in one file. Each job that is cut off loses at most this many rows."""
    check_rows: int = Field(32, ge=1)
    """Rows whose stored logits are compared with those of the live teacher before a student learns from them."""
    signal: Literal["auto", "stored", "live"] = Field("auto", json_schema_extra=MAY_CHANGE)
    """Where inner terms of the loss get the teacher's hidden states: from files that are written once, or from the
    teacher itself, which then runs in each slot while students are trained. auto: from files if they have at most
    `budget_gb` and no trial compares attention, which is never stored."""
    budget_gb: float = Field(10.0, gt=0, json_schema_extra=MAY_CHANGE)
    """The most GB (10^9 bytes) that the files with hidden states may have."""


@dataclass(frozen=True)
class Labelling:
    """What a transfer set is computed from: the teacher, the rows, and the settings."""

    settings: Transfer
    teacher: Pretrained
    tokens: TokenSet
    """The rows as token ids of the teacher's tokenizer."""
    padding: bool = True
    """Whether rows of different lengths are in one batch; False for a teacher whose answer depends on padding."""

    @property
    def key(self) -> str:
        """A fingerprint of everything that the logits and the division of the rows into files depend on."""
        without_padding = () if self.padding else ("without padding",)
        return fingerprint(
            self.teacher.key, self.tokens.key, self.settings.precision, self.settings.shard_rows, *without_padding
        )


def choose_padding(labelling: Labelling, paths: StoragePaths, pool: Pool, on_note: Callable[[str], None]) -> Labelling:
    """The labelling without padding if the answers of this teacher depend on padding, with a note; else unchanged.

    The stored logits of such a teacher would depend on the rows that were in the same batch by chance.
    """
    unpadded = replace(labelling, padding=False)
    if _is_complete(labelling, paths):
        return labelling
    if not _is_complete(unpadded, paths):
        (report,) = pool.run(CheckPadding(labelling), f"padding-{labelling.key}")
        if not report["difference"] > MAX_DIFFERENCE:
            return labelling
    on_note(
        "The teacher's answer for a text depends on the padding behind it, so the rows are labelled in batches of "
        "equal length, without padding. This takes longer where the lengths differ much."
    )
    return unpadded


def obtain_transfer_set(
    labelling: Labelling,
    paths: StoragePaths,
    pool: Pool,
    on_progress: Callable[[int, int], None],
    on_note: Callable[[str], None] = lambda sentence: None,
) -> TransferSet:
    """Write the files of the transfer set that are missing or damaged, and return the complete transfer set.

    `on_progress` receives the number of complete files and the number of all files. `on_note` receives a sentence for
    each file whose content does not match the manifest. Raises TeacherError if the token ids are not those of the
    teacher's tokenizer, JobError if stored and live logits differ.
    """
    teacher, tokens, shard_rows = labelling.teacher, labelling.tokens, labelling.settings.shard_rows
    tokens.check_tokenizer(teacher.tokenizer(), f"teacher {teacher.folder}")
    folder = fetch_files(paths.transfer(labelling.key))
    shards = _shards(tokens, shard_rows)
    missing, must_check = missing_files(folder, shards, on_note, LABELLED_AGAIN)
    jobs: dict[str, Job] = {
        f"label-{labelling.key}-{name}": LabelShard(labelling, *shards[name], folder) for name in missing
    }
    for done, _ in enumerate(run_jobs(pool, jobs), start=len(shards) - len(missing) + 1):
        on_progress(done, len(shards))
    # The manifest is written after the check, so files without a complete manifest have not been checked.
    if must_check:
        list(pool.run(CheckSample(labelling, folder), f"check-{labelling.key}"))
        write_manifest(folder, shards)
    return TransferSet(folder)


LogitsOf: TypeAlias = Callable[[str, np.ndarray], np.ndarray]
"""A function of a split and the numbers of answers in it that gives the logits of these answers (A x C)."""


def write_transfer_set(
    logits_of: LogitsOf, tokens: TokenSet, shard_rows: int, folder: Path, on_note: Callable[[str], None]
) -> TransferSet:
    """Write the files of a transfer set whose logits come from elsewhere than a model, and return the complete set.

    They have the names and the form of those that `obtain_transfer_set` writes. The name of the folder must depend on
    everything that the logits depend on: complete files are not written again.
    """
    fetch_files(folder)
    shards = _shards(tokens, shard_rows)
    missing, must_check = missing_files(folder, shards, on_note, LABELLED_AGAIN)
    rows_of = {split: tokens.all_rows(split) for split in tokens.stored_splits}
    for name in missing:
        split, start = shards[name]
        rows = rows_of[split]
        stop = min(start + shard_rows, len(rows))
        answers = np.arange(rows.answer_starts[start], rows.answer_starts[stop])
        with replace_file(folder / name) as temporary:
            _write_arrow(temporary, rows.part(start, stop).answer_ids, logits_of(split, answers))
    if must_check:
        write_manifest(folder, shards)
    return TransferSet(folder)


def _shards(tokens: TokenSet, shard_rows: int) -> dict[str, tuple[str, int]]:
    """The name of each file of a transfer set -> its split and its first row."""
    return {
        f"{split}-{start:09d}.arrow": (split, start)
        for split in tokens.stored_splits
        for start in range(0, len(tokens.all_rows(split)), shard_rows)
    }


@dataclass(frozen=True)
class LabelShard:
    """The job that writes the teacher's logits for one range of rows, from row `start` on, into one file."""

    labelling: Labelling
    split: str
    start: int
    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        settings = self.labelling.settings
        rows = self.labelling.tokens.all_rows(self.split)
        part = rows.part(self.start, min(self.start + settings.shard_rows, len(rows)))
        precision = settings.precision if self.split == TRAIN else "fp32"
        model = cached_model(self.labelling.teacher, worker)
        autocast = autocast_dtype(precision, worker.device, model)
        logits = compute_logits(model, part, settings.batch_size, worker, autocast, self.labelling.padding)
        if worker.rank == 0:
            with replace_file(self.folder / f"{self.split}-{self.start:09d}.arrow") as temporary:
                _write_arrow(temporary, part.answer_ids, logits)
        yield {"rows": len(part)}


@dataclass(frozen=True)
class CheckPadding:
    """The job that compares the teacher's logits of short rows with and without the padding of a long one, in fp32."""

    labelling: Labelling

    def __call__(self, worker: Worker) -> Iterator[Report]:
        teacher, all_rows = self.labelling.teacher, self.labelling.tokens.all_rows("train")
        order = np.argsort(all_rows.lengths, kind="stable")
        rows = np.unique([*order[: self.labelling.settings.check_rows], order[-1]])
        model = cached_model(teacher, worker)
        padded = _logits_in_one_batch(model, all_rows, rows, worker)
        alone = np.concatenate(
            [_logits_in_one_batch(model, all_rows, rows[i : i + 1], worker) for i in range(len(rows))]
        )
        yield {"difference": _relative_difference(*(_comparable(logits, all_rows) for logits in (padded, alone)))}


@dataclass(frozen=True)
class CheckSample:
    """The job that compares stored logits with those of the live teacher, on a sample of the training rows.

    Raises JobError if they differ by more than rounding explains.
    """

    labelling: Labelling
    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        settings, teacher = self.labelling.settings, self.labelling.teacher
        split = self.labelling.tokens.stored_splits[0]
        precision = settings.precision if split == TRAIN else "fp32"
        rows = TransferSet(self.folder).all_rows(self.labelling.tokens, split)
        sample = np.random.default_rng(0).permutation(len(rows))[: settings.check_rows]
        stored = rows.teacher_logits(rows.answers(sample))
        # One row at a time, so without padding, unlike the batches from which the stored logits were computed.
        live = np.concatenate(
            [compute_live_logits(teacher, rows.part(int(i), int(i) + 1), 1, precision, worker) for i in sample]
        )
        difference = _relative_difference(*(_comparable(logits, rows) for logits in (stored, live)))
        bf16 = autocast_dtype(precision, worker.device, cached_model(teacher, worker)) is not None
        # A bf16 number has 8 significant bits, and the rounding depends on the width of the batch.
        tolerance = 0.1 if bf16 else MAX_DIFFERENCE
        if not difference <= tolerance:  # true for nan, too
            raise JobError(
                f"transfer set {self.folder}: stored logits differ from the live teacher's by {difference:.4f} of "
                f"their size on a sample. Remove that folder and run again."
            )
        yield {"difference": difference}


def compute_live_logits(
    teacher: Pretrained, rows: Rows, batch_size: int, precision: Literal["auto", "fp32", "bf16"], worker: Worker
) -> np.ndarray:
    """Compute the teacher's logits for these rows (A x C, float32). The model stays in the worker for the next job."""
    model = cached_model(teacher, worker)
    return compute_logits(model, rows, batch_size, worker, autocast_dtype(precision, worker.device, model))


def _logits_in_one_batch(model: PreTrainedModel, rows: Rows, indices: np.ndarray, worker: Worker) -> np.ndarray:
    """The logits of these rows (A x C) as one batch, so that the shorter ones are padded to the longest."""
    batch = rows.batch(indices).to(worker.device)
    with evaluation_mode(model):
        logits_AxC: np.ndarray = kept_outputs(model, batch).float().cpu().numpy()
    return logits_AxC


def _comparable(logits_AxC: np.ndarray, rows: Rows) -> np.ndarray:
    """The logits themselves; of what is kept of those over a vocabulary, the logarithms."""
    return logits_AxC if rows.top_k is None else logs_only(logits_AxC)


def _relative_difference(logits_AxC: np.ndarray, expected_AxC: np.ndarray) -> float:
    """The largest difference of a logit, as a share of the largest expected one, or absolute if that is below 1."""
    return float(np.abs(logits_AxC - expected_AxC).max() / max(1.0, float(np.abs(expected_AxC).max())))


def _is_complete(labelling: Labelling, paths: StoragePaths) -> bool:
    """Whether the transfer set of this labelling was written and checked before."""
    return (fetch_files(paths.transfer(labelling.key)) / MANIFEST).exists()


def _write_arrow(path: Path, ids: np.ndarray, logits_AxC: np.ndarray) -> None:
    # Lists of a fixed size are one flat array in the file, so a reader can map it as A x C without a copy.
    flat = pa.array(np.ascontiguousarray(logits_AxC, np.float32).ravel())
    table = pa.table({"id": pa.array(ids), "logits": pa.FixedSizeListArray.from_arrays(flat, logits_AxC.shape[1])})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
