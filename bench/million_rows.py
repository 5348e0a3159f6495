"""Claim: a million rows are read, tokenised, labelled and read back with at most 2 GB of memory in any process.

Generated reviews without labels are written to Parquet files first, and are not counted. Then a process of its own goes
through the stages of a sweep: it reads and checks the files, makes a small teacher, tokenises, has the slots label all
rows, and lets each slot read every batch of an epoch through the same `Rows` as trials do. The ratio is the largest
resident memory of a process, of the driver, the slots and all processes of Ray, / 2 GB. Pages of memory-mapped files
count, although the slots share them and Linux may drop them. The same is done for a tenth of the rows:
`bytes_a_further_row` is the difference of driver and slot.

    python bench/million_rows.py [--rows 1000000] [--slots 2]                                     (about 6 minutes)
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, print_result

from kdray import Data, FreshTransformer, SlotSettings, Teacher, TextClassification, Training
from kdray.data.batches import epoch_batches
from kdray.data.splits import load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.data.transfer_set import TransferSet
from kdray.data.truncation import describe_truncation
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.ray_slots import RaySlots, open_slots
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.storage.paths import StoragePaths
from kdray.teacher.teacher import obtain_source
from kdray.teacher.transfer import Labelling, Transfer, obtain_transfer_set

GOAL_GB = 2.0
FILE_ROWS = 50_000
BATCH = 32
TASK = TextClassification(max_length=64)
TEACHER = Teacher(model=FreshTransformer(layers=2), training=Training())
LABELLED = GeneratedReviews(train_rows=2000, validation_rows=500, test_rows=500)

T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """The job that reads every batch of the set."""

    tokens: TokenSet
    transfer: TransferSet

    def __call__(self, worker: Worker) -> Iterator[Report]:
        started = time.perf_counter()
        rows = self.transfer.all_rows(self.tokens, "train")
        for indices in epoch_batches(rows.lengths, BATCH, seed=0, epoch=0):
            rows.batch(indices)
        yield {"pid": os.getpid(), "seconds": time.perf_counter() - started}


@dataclass
class Stages:
    """The seconds that each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, stage: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = stage()
        self.seconds[name] = time.perf_counter() - started
        return result


def write_texts(folder: Path, rows: int, number: int) -> None:
    """Write one file with texts. Those of different files may be equal."""
    texts = GeneratedReviews(train_rows=rows, seed=number + 1).rows("train")["text"]
    pq.write_table(pa.table({"text": texts}), folder / f"unlabelled-{number:05d}-of-{10**5 - 1}.parquet")


def write_files(folder: Path, rows: int) -> float:
    """Write all files, on all cores, and return the seconds."""
    started = time.perf_counter()
    folder.mkdir()
    for split in ("train", "validation", "test"):
        pq.write_table(pa.table(LABELLED.rows(split)), folder / f"{split}.parquet")
    sizes = [min(FILE_ROWS, rows - start) for start in range(0, rows, FILE_ROWS)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(partial(write_texts, folder), sizes, range(len(sizes))))
    return time.perf_counter() - started


def peak_gb(pid: int) -> float:
    """The largest resident memory that a process has had; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(fields[0]) * 1024 / 1e9 if fields else 0.0


def read_on_all_slots(slots: RaySlots, job: Read) -> list[Report]:
    """Run the job as many times as there are slots, at the same time, and return the report of each."""
    with ThreadPoolExecutor(slots.count) as threads:
        return list(threads.map(lambda slot: next(iter(list(slots.run(job, f"read-{slot}")))), range(slots.count)))


def measure(files: Path, folder: Path, slot_count: int) -> dict[str, Any]:
    """Go through all stages in this process and in slots. Rows a second of each stage, and memory in GB."""
    stages, paths = Stages(), StoragePaths(folder)
    splits = stages.time("read", lambda: load_splits(Data(source=str(files), unlabelled="unlabelled"), TASK))
    teacher = stages.time("teacher", lambda: obtain_source(TEACHER, TASK, splits, paths, 0))
    tokens = stages.time("tokenise", lambda: tokenise(splits, TASK, teacher.tokenizer(), paths))
    # A sweep that is continued does this again: it compares fingerprints of the files.
    stages.time("tokenise_again", lambda: tokenise(splits, TASK, teacher.tokenizer(), paths))
    describe_truncation(tokens, splits, TASK, teacher.tokenizer())
    cluster = connect("local", False, folder / "logs")
    with open_slots(SlotSettings(count=slot_count, cpus=0.5), folder / "logs") as slots:
        slots.wait()
        labelling = Labelling(Transfer(), teacher, tokens)
        transfer = stages.time("label", lambda: obtain_transfer_set(labelling, paths, slots, lambda done, files: None))
        stages.time("label_again", lambda: obtain_transfer_set(labelling, paths, slots, lambda done, files: None))
        reports = read_on_all_slots(slots, Read(tokens, transfer))
        of_slots = max(peak_gb(report["pid"]) for report in reports)
        of_all = [peak_gb(child.pid) for child in psutil.Process().children(recursive=True)]
    cluster.close()
    stages.seconds["batches"] = max(report["seconds"] for report in reports)
    driver, rows = peak_gb(os.getpid()), len(tokens.all_rows("train"))
    return {
        "rows": rows,
        "rows_a_second": {name: rows / seconds for name, seconds in stages.seconds.items()},
        "driver_gb": driver,
        "slot_gb": of_slots,
        "largest_gb": max(driver, of_slots, *of_all),
        "token_file_gb": (tokens.folder / "train.arrow").stat().st_size / 1e9,
        "transfer_files": len(list(transfer.folder.glob("train-*"))),
    }


def measure_in_process(files: Path, slots: int) -> dict[str, Any]:
    """What `measure` returns, of a process of its own, so that its largest memory is that of these rows."""
    command = [sys.executable, __file__, "--files", str(files), "--slots", str(slots)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="texts without labels")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--files", type=Path, help="measure these files, and print the figures; for the script itself")
    options, on = parser.parse_args(), machine()
    if options.files is not None:
        print(json.dumps(measure(options.files, options.files / "storage", options.slots)))
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        for number, rows in enumerate((max(1, options.rows // 10), options.rows)):
            files = Path(name) / f"files-{number}"
            seconds = write_files(files, rows)
            found.append({**measure_in_process(files, options.slots), "generated_a_second": rows / seconds})
    few, many = found
    more = many["rows"] - few["rows"]
    print_result(
        "largest resident memory of a process, against 2 GB (share)",
        many["largest_gb"] / GOAL_GB,
        {
            "goal": 1.0,
            **many,
            "bytes_a_further_row": {
                who: (many[f"{who}_gb"] - few[f"{who}_gb"]) * 1e9 / more for who in ("driver", "slot")
            },
            "a_tenth": few,
            "slots": options.slots,
        },
        on,
    )


if __name__ == "__main__":
    main()
