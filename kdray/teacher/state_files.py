"""Write the hidden states of a teacher for all texts to train on, computed once by all slots together.

The teacher is in evaluation mode, so a live teacher would give the same states, but for rounding: they are stored in
bf16. Each layer has a folder of its own, which later sweeps share whatever other layers they need. How the files are
read is in `data.state_store`.

    states/<key>/ <first row>.safetensors (one tensor, see `state_store`)  manifest.json (see `shard_files`)

Shapes: T tokens without padding, H hidden size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdray.data.rows import TRAIN, Rows
from kdray.data.state_store import TENSOR, StateSet, state_file
from kdray.errors import JobError
from kdray.evaluation.outputs import evaluation_batches, evaluation_mode
from kdray.losses.states import Needs
from kdray.slots.job import Pool, Report, Worker
from kdray.storage.files import fingerprint, replace_file
from kdray.storage.mirror import fetch_files
from kdray.storage.paths import StoragePaths
from kdray.students.layers import transformer_layers
from kdray.students.recording import Recorder
from kdray.teacher.shard_files import cached_model, missing_files, run_jobs, write_manifest
from kdray.teacher.transfer import Labelling
from kdray.training.precision import autocast_dtype

MOST_TOKENS = 1 << 16
"""The most tokens of a file, padding included. A job has the states of a file in memory: 100 MB for each layer of a
model with a hidden size of 768."""
MOST_SHARDS = 8
"""The most shards that one job writes; each worker of a slot writes some of them."""
MAX_DIFFERENCE = 0.02
"""The largest difference of a stored number from a live one in fp32, as a share of the largest number. A bf16 number
has 8 significant bits."""
MAX_DIFFERENCE_IN_BF16 = 0.1
"""The same for a teacher that computes in bf16, whose rounding depends on the width of the batch."""


def states_key(labelling: Labelling, layer: int) -> str:
    """A fingerprint of everything that the states of a layer, and their division into files, depend on."""
    return fingerprint("states", labelling.key, layer)


def rows_of_a_file(labelling: Labelling) -> int:
    """The number of rows in each file but the last one."""
    return max(1, min(labelling.settings.shard_rows, MOST_TOKENS // labelling.tokens.layout.max_length))


def obtain_states(
    labelling: Labelling,
    layers: Sequence[int],
    paths: StoragePaths,
    pool: Pool,
    on_progress: Callable[[int, int], None],
    on_note: Callable[[str], None],
) -> StateSet:
    """Write the files of these layers that are missing or damaged, and return the complete states.

    `on_progress` receives the number of complete shards and the number of all shards. `on_note` receives a sentence for
    each damaged file. Raises TeacherError if the token ids are not those of the teacher's tokenizer, JobError if stored
    and live states differ.
    """
    teacher, tokens, shard_rows = labelling.teacher, labelling.tokens, rows_of_a_file(labelling)
    tokens.check_tokenizer(teacher.tokenizer(), f"teacher {teacher.folder}")
    starts = {state_file(start): start for start in range(0, len(tokens.all_rows(TRAIN)), shard_rows)}
    folders = {layer: fetch_files(paths.states(states_key(labelling, layer))) for layer in layers}
    found = {layer: missing_files(folder, starts, on_note) for layer, folder in folders.items()}
    to_write = _shards_to_write(starts, folders, {layer: missing for layer, (missing, _) in found.items()})
    done = len(starts) - len(to_write)
    jobs = _jobs(labelling, to_write, pool.count)
    for name in run_jobs(pool, jobs):
        done += len(jobs[name].shards)
        on_progress(done, len(starts))
    states = StateSet(folders, tokens, shard_rows)
    unchecked = [layer for layer, (_, must_check) in found.items() if must_check]
    # The manifests are written after the check, so files without a complete manifest have not been checked.
    if unchecked:
        list(pool.run(CheckStates(labelling, states, tuple(unchecked)), f"check-states-{labelling.key}"))
    for layer in unchecked:
        write_manifest(folders[layer], starts)
    return states


def _shards_to_write(
    starts: Mapping[str, int], folders: Mapping[int, Path], missing: Mapping[int, Sequence[str]]
) -> dict[int, dict[int, Path]]:
    """First row of a shard -> the folders that lack its file, by the number of the layer.

    A run that was cut off has written the files of all layers of a shard, or of some of them.
    """
    lacking = {layer: frozenset(names) for layer, names in missing.items()}
    found = {
        start: {layer: folder for layer, folder in folders.items() if name in lacking[layer]}
        for name, start in starts.items()
    }
    return {start: of_layers for start, of_layers in found.items() if of_layers}


def _jobs(labelling: Labelling, to_write: Mapping[int, Mapping[int, Path]], slots: int) -> dict[str, "RecordShards"]:
    """The jobs that write these shards (first row -> number of a layer -> folder), by name."""
    each = max(1, min(MOST_SHARDS, math.ceil(len(to_write) / slots)))
    shards = tuple(to_write.items())
    return {
        f"states-{labelling.key}-{shards[place][0]:09d}": RecordShards(labelling, shards[place : place + each])
        for place in range(0, len(shards), each)
    }


@dataclass(frozen=True)
class RecordShards:
    """The job that writes the states of some shards of the rows: a file for each shard and layer."""

    labelling: Labelling
    shards: Sequence[tuple[int, Mapping[int, Path]]]
    """The first row of each shard, and the folders that it gets a file in, by the number of the layer."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        rows, shard_rows = self.labelling.tokens.all_rows(TRAIN), rows_of_a_file(self.labelling)
        # Whole files for each rank: states are too large to send them to another process.
        for start, folders in self.shards[worker.rank :: worker.world]:
            part = rows.part(start, min(start + shard_rows, len(rows)))
            for layer, states_TxH in record_states(self.labelling, part, folders, worker).items():
                with replace_file(folders[layer] / state_file(start)) as temporary:
                    save_file({TENSOR: states_TxH}, temporary)
        worker.all_gather(None)  # rank 0 must not report before the files of all ranks are complete
        yield {"shards": len(self.shards)}


@dataclass(frozen=True)
class CheckStates:
    """The job that compares stored states with those of the live teacher, on a sample of the rows.

    Raises JobError if they differ by more than rounding explains.
    """

    labelling: Labelling
    states: StateSet
    layers: tuple[int, ...]

    def __call__(self, worker: Worker) -> Iterator[Report]:
        settings, rows = self.labelling.settings, self.labelling.tokens.all_rows(TRAIN)
        sample = np.random.default_rng(0).permutation(len(rows))[: settings.check_rows]
        stored = {layer: self.states.layer(layer).of(sample) for layer in self.layers}
        # One row at a time, so without padding, unlike the batches from which the stored states were computed.
        live = [record_states(self.labelling, rows.part(int(i), int(i) + 1), self.layers, worker) for i in sample]
        difference = max(
            _relative_difference(stored[layer], torch.cat([each[layer] for each in live])) for layer in self.layers
        )
        dtype = autocast_dtype(settings.precision, worker.device, cached_model(self.labelling.teacher, worker))
        if not difference <= (MAX_DIFFERENCE if dtype is None else MAX_DIFFERENCE_IN_BF16):  # true for nan, too
            folders = ", ".join(str(self.states.folders[layer]) for layer in self.layers)
            raise JobError(
                f"stored states differ from the live teacher's by {difference:.4f} of their size on a sample. Remove "
                f"{folders} and run again."
            )
        yield {"difference": difference}


def record_states(labelling: Labelling, rows: Rows, layers: Iterable[int], worker: Worker) -> dict[int, Tensor]:
    """The teacher's states of these rows, by the number of the layer: T x H in bf16, one row after the other."""
    model = cached_model(labelling.teacher, worker)
    dtype = autocast_dtype(labelling.settings.precision, worker.device, model)
    multiple = worker.pad_multiple if labelling.padding else 1
    states: dict[int, Tensor] = {}
    with (
        evaluation_mode(model),
        torch.autocast(worker.device.type, dtype=dtype, enabled=dtype is not None),
        Recorder(model, transformer_layers(model), Needs(hidden=frozenset(layers))) as recorder,
    ):
        for indices in evaluation_batches(rows, labelling.settings.batch_size, worker, labelling.padding):
            batch = rows.batch(indices, multiple).to(worker.device)
            model(**batch.inputs)
            is_token_BxL, places_T = batch.inputs["attention_mask"].bool(), _places(rows.lengths, indices)
            for layer, states_BxLxH in recorder.take().hidden.items():
                own_TxH = states_BxLxH.bfloat16()[is_token_BxL].cpu()
                if layer not in states:
                    states[layer] = own_TxH.new_empty(int(rows.lengths.sum()), own_TxH.shape[1])
                states[layer][places_T] = own_TxH
            worker.progress += 1  # a worker whose count does not grow is taken for hung
    return states


def _places(lengths_N: np.ndarray, indices: np.ndarray) -> Tensor:
    """The places of the tokens of these rows among those of all rows."""
    starts_N = np.cumsum(lengths_N, dtype=np.int64) - lengths_N
    return torch.from_numpy(np.concatenate([starts_N[i] + np.arange(lengths_N[i]) for i in indices]))


def _relative_difference(stored_TxH: Tensor, live_TxH: Tensor) -> float:
    """The largest difference of a number, as a share of the largest one, or absolute if that is below 1."""
    live = live_TxH.float()
    return float((stored_TxH.float() - live).abs().max() / live.abs().max().clamp(min=1.0))
