"""The transfer set: the teacher's logits for every row, written once by all slots together, then read for ever.

The teacher is in evaluation mode and fine-tuning has no augmentation, so stored logits are what a live teacher would
give. They lie apart from the token ids and are keyed by example id, so that a student with another tokenizer reads the
same ones. Temperature is applied in the loss: one set serves every trial and every later sweep.

    transfers/<key>/ <split>-<first row>.arrow (columns id, logits)  manifest.json (rows and fingerprint of each)
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from transformers import PreTrainedModel

from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import SPLITS, TransferSet
from kdray.errors import JobError
from kdray.evaluation.outputs import compute_logits
from kdray.models.pretrained import Pretrained
from kdray.settings import Settings
from kdray.slots.job import Pool, Report, Worker
from kdray.storage.files import file_fingerprint, fingerprint, read_json, replace_file, write_json
from kdray.storage.mirror import fetch_files, remove
from kdray.storage.paths import StoragePaths
from kdray.training.precision import autocast_dtype


class Transfer(Settings):
    """How the teacher's outputs are recorded."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the training rows; validation and test rows are always labelled in fp32, for they measure."""
    batch_size: int = Field(128, ge=1)
    shard_rows: int = Field(1024, ge=1)
    """Rows in one job: what is lost at most when labelling is cut off."""
    check_rows: int = Field(32, ge=1)
    """Rows whose stored logits are compared with the live teacher's before anything learns from them."""


@dataclass(frozen=True)
class Labelling:
    """Which teacher labels which rows, and how."""

    settings: Transfer
    teacher: Pretrained
    tokens: TokenSet
    """The rows in the ids of the teacher's tokenizer."""

    @property
    def key(self) -> str:
        """A fingerprint of everything that the logits depend on, and of how the rows are divided into files."""
        return fingerprint(self.teacher.key, self.tokens.key, self.settings.precision, self.settings.shard_rows)


def obtain_transfer_set(
    labelling: Labelling,
    paths: StoragePaths,
    pool: Pool,
    on_progress: Callable[[int, int], None],
    on_note: Callable[[str], None] = lambda sentence: None,
) -> TransferSet:
    """The transfer set of this teacher and these rows: written where it is missing, verified where it is there.

    `on_progress` is called with the numbers of finished and of all files. A file whose bytes do not match the manifest
    is reported to `on_note` and written again. Raises TeacherError when the token ids are not of the teacher's
    tokenizer, JobError when stored and live logits differ.
    """
    teacher, tokens, shard_rows = labelling.teacher, labelling.tokens, labelling.settings.shard_rows
    tokens.check_tokenizer(teacher.tokenizer(), f"teacher {teacher.folder}")
    folder = fetch_files(paths.transfer(labelling.key))
    manifest = folder / "manifest.json"
    known: dict[str, str] = read_json(manifest) if manifest.exists() else {}
    jobs = {
        f"{split}-{start:09d}.arrow": LabelShard(labelling, split, start, folder)
        for split in SPLITS
        for start in range(0, len(tokens.rows(split)), shard_rows)
    }
    for name, digest in known.items():
        if (folder / name).exists() and file_fingerprint(folder / name) != digest:
            remove(folder / name)
            on_note(f"{folder / name}: damaged; its rows are labelled again.")
    missing = {name: job for name, job in jobs.items() if not (folder / name).exists()}
    done = len(jobs) - len(missing)
    with ThreadPoolExecutor(pool.count) as threads:
        for _ in threads.map(lambda item: list(pool.run(item[1], f"label-{labelling.key}-{item[0]}")), missing.items()):
            done += 1
            on_progress(done, len(jobs))
    if missing or known.keys() != jobs.keys():
        list(pool.run(CheckSample(labelling, folder), f"check-{labelling.key}"))
        fetch_files(folder)
        write_json(manifest, {name: file_fingerprint(folder / name) for name in jobs})
    return TransferSet(folder)


@dataclass(frozen=True)
class LabelShard:
    """The job that writes the teacher's logits of one range of rows."""

    labelling: Labelling
    split: str
    start: int
    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        settings = self.labelling.settings
        rows = self.labelling.tokens.rows(self.split)
        part = rows.part(self.start, min(self.start + settings.shard_rows, len(rows)))
        precision = settings.precision if self.split == "train" else "fp32"
        logits = compute_live_logits(self.labelling.teacher, part, settings.batch_size, precision, worker)
        if worker.rank == 0:
            with replace_file(self.folder / f"{self.split}-{self.start:09d}.arrow") as temporary:
                _write(temporary, part.ids, logits)
        yield {"rows": len(part)}


@dataclass(frozen=True)
class CheckSample:
    """The job that compares stored logits with the live teacher's on a sample of the training rows."""

    labelling: Labelling
    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        settings, teacher = self.labelling.settings, self.labelling.teacher
        rows = TransferSet(self.folder).rows(self.labelling.tokens, "train")
        sample = np.random.default_rng(0).permutation(len(rows))[: settings.check_rows]
        stored = rows.teacher_logits(sample)
        live = np.concatenate(
            [compute_live_logits(teacher, rows.part(int(i), int(i) + 1), 1, settings.precision, worker) for i in sample]
        )
        difference = float(np.abs(stored - live).max() / max(1.0, float(np.abs(live).max())))
        bf16 = autocast_dtype(settings.precision, worker.device, _cached_model(teacher, worker)) is not None
        # bf16 keeps eight bits of a number, and batches of other widths round otherwise.
        if not difference <= (0.1 if bf16 else 1e-3):
            raise JobError(
                f"transfer set {self.folder}: stored logits differ from the live teacher's by {difference:.4f} of "
                f"their size on a sample. Remove that folder and run again."
            )
        yield {"difference": difference}


def compute_live_logits(
    teacher: Pretrained, rows: Rows, batch_size: int, precision: Literal["auto", "fp32", "bf16"], worker: Worker
) -> np.ndarray:
    """The model's logits for these rows, N x C float32; the model stays warm in the worker."""
    model = _cached_model(teacher, worker)
    return compute_logits(model, rows, batch_size, worker, autocast_dtype(precision, worker.device, model))


def _cached_model(teacher: Pretrained, worker: Worker) -> PreTrainedModel:
    model: PreTrainedModel = worker.cached(("model", teacher.key), lambda: teacher.model().to(worker.device))
    return model


def _write(path: Path, ids: np.ndarray, logits_NxC: np.ndarray) -> None:
    flat = pa.array(np.ascontiguousarray(logits_NxC, np.float32).ravel())
    table = pa.table({"id": pa.array(ids), "logits": pa.FixedSizeListArray.from_arrays(flat, logits_NxC.shape[1])})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
