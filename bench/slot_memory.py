"""Claim: one more slot on a node costs at most 10 % of the transfer set in memory.

Slots read a transfer set of about 100 MB (token ids of generated text, and logits) through the same `Rows` as trials
do: every batch of an epoch, and they keep it open. The ratio is the growth of a worker's own memory (USS: pages that
no other process has), the largest of all slots, / the size of the set on disk. The slots share the pages of the set
itself: `set_pss_mb` is the share of each worker in the pages that it has mapped, `set_rss_mb` is what `top` shows.
`copy_mb` is the growth of a worker that has the rows in memory as a list of examples, as most training scripts do.

    python bench/slot_memory.py [--megabytes 100] [--slots 2]                                    (about 2 minutes)
"""

import argparse
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from machine import machine, print_result

from kdray import FreshTransformer, SlotSettings, TextClassification
from kdray.data.batches import epoch_batches
from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet, tokenise
from kdray.data.transfer_set import TransferSet
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.ray_slots import RaySlots, open_slots
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.storage.paths import StoragePaths

TOKENS = 128
BYTES_PER_ROW = TOKENS * 5 + 32
"""int32 ids, int8 types; id, label, length, offsets and two logits."""
BATCH = 32


@dataclass(frozen=True)
class Texts:
    """Rows of several generated reviews each, in the form that `tokenise` reads: no row is short."""

    rows: int
    labels: tuple[str, ...] = ("negative", "positive")
    key: str = "slot memory"
    more_key: str | None = None

    def blocks(self, split: str) -> Iterator[Mapping[str, Any]]:
        rows = self.rows if split == "train" else 16
        reviews, draw = GeneratedReviews(train_rows=4000).rows("train")["text"], random.Random(split)
        texts = [" ".join(draw.choices(reviews, k=16)) for _ in range(rows)]
        yield {"id": np.arange(rows), "text": texts, "label": np.arange(rows) % 2}


@dataclass(frozen=True)
class Read:
    """The job that reads every batch of the set and keeps it open, as trials do."""

    tokens: TokenSet
    transfer: TransferSet

    def __call__(self, worker: Worker) -> Iterator[Report]:
        warm_up(self.tokens.rows("validation"))
        before = own_mb()
        rows = worker.cached("rows", lambda: self.transfer.rows(self.tokens, "train"))
        for indices in epoch_batches(rows.lengths, BATCH, seed=0, epoch=0):
            rows.batch(indices)
        yield {"pid": os.getpid(), "before_mb": before}


@dataclass(frozen=True)
class Copy:
    """The job that has the rows in memory as a list of examples."""

    tokens: TokenSet

    def __call__(self, worker: Worker) -> Iterator[Report]:
        warm_up(self.tokens.rows("validation"))
        before, rows = own_mb(), self.tokens.rows("train")
        examples = [rows.batch(np.array([row])).inputs for row in range(len(rows))]
        yield {"copy_mb": own_mb() - before, "rows": len(examples)}


def warm_up(rows: Rows) -> None:
    """Read some batches, because the first batch of a process loads libraries, which are no part of the data."""
    for _ in range(10):
        rows.batch(np.arange(len(rows)))


def own_mb(pid: int | None = None) -> float:
    """The USS of a process, in MB: the memory that would be free if it ended."""
    return float(psutil.Process(pid).memory_full_info().uss / 1e6)


def set_mb(pid: int, *folders: Path) -> dict[str, float]:
    """The mapped pages of the files in these folders, in MB: all of them (rss), and the share of this process (pss)."""
    maps = [m for m in psutil.Process(pid).memory_maps() if any(m.path.startswith(f"{f}/") for f in folders)]
    return {"rss": sum(m.rss for m in maps) / 1e6, "pss": sum(m.pss for m in maps) / 1e6}


def transfer_set(tokens: TokenSet, folder: Path) -> TransferSet:
    """A transfer set with invented logits for every training row, in the format of `kdray.teacher.transfer`."""
    ids = tokens.rows("train").ids
    logits = np.random.default_rng(0).normal(size=2 * len(ids)).astype(np.float32)
    table = pa.table({"id": ids, "logits": pa.FixedSizeListArray.from_arrays(pa.array(logits), 2)})
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "train-000000000.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return TransferSet(folder)


def run_on_all_slots(slots: RaySlots, job: Read) -> list[Report]:
    """Run the job on every slot at the same time, and return the report of each."""
    with ThreadPoolExecutor(slots.count) as threads:
        reports = list(threads.map(lambda slot: next(iter(list(slots.run(job, f"read-{slot}")))), range(slots.count)))
    assert len({report["pid"] for report in reports}) == slots.count, "one slot ran two of the jobs"
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100, help="size of the transfer set")
    parser.add_argument("--slots", type=int, default=2)
    options, on = parser.parse_args(), machine()
    if options.slots < 2:
        parser.error("--slots: at least 2, because the claim is about one more slot.")
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        paths, texts = StoragePaths(Path(name)), Texts(int(options.megabytes * 1e6 / BYTES_PER_ROW))
        task = TextClassification(max_length=TOKENS)
        _, tokenizer = FreshTransformer().create(next(texts.blocks("validation"))["text"], texts.labels, task, 0)
        tokens = tokenise(texts, task, tokenizer, paths)
        transfer = transfer_set(tokens, paths.transfer("made-up"))
        size = sum(f.stat().st_size for d in (tokens.folder, transfer.folder) for f in d.glob("train*.arrow")) / 1e6
        cluster = connect("local", False, Path(name) / "logs")
        with open_slots(SlotSettings(count=options.slots, cpus=0.5), Path(name) / "logs") as slots:
            slots.wait()
            reports = run_on_all_slots(slots, Read(tokens, transfer))
            grown = [own_mb(report["pid"]) - report["before_mb"] for report in reports]
            mapped = [set_mb(report["pid"], tokens.folder, transfer.folder) for report in reports]
            worker = own_mb(reports[0]["pid"])
            (copied,) = slots.run(Copy(tokens), "copy")
        cluster.close()
    print_result(
        "own memory of one more slot for the transfer set, against the set (share)",
        max(grown) / size,
        {
            "goal": 0.1,
            "set_mb": size,
            "grown_mb": grown,
            "set_pss_mb": [pages["pss"] for pages in mapped],
            "set_rss_mb": [pages["rss"] for pages in mapped],
            "copy_mb": copied["copy_mb"],
            "whole_worker_mb": worker,
            "rows": texts.rows,
            "slots": options.slots,
        },
        on,
    )


if __name__ == "__main__":
    main()
