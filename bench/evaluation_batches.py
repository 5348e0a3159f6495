"""Claim: on a CPU, batches of at most 2,048 tokens are evaluated in less time than batches of 128 rows.

A model of MiniLM's size with drawn weights answers generated texts, short ones (4 to 64 tokens, 24 on average) and long
ones (64 to 256 tokens), in float32 on one thread, by the function that evaluates students and labels texts. Both kinds
of batches come in turns, and `seconds` are medians over the repeats, the first of which is not counted. The ratio is
the time with batches by tokens / that with batches of 128 rows, for long texts.

    python bench/evaluation_batches.py [--rows 600] [--repeats 3]                                  (about 3 minutes)
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from machine import machine, print_result

from kdray import Data, FreshTransformer, Teacher, TextClassification, Training
from kdray.data.rows import Rows
from kdray.data.splits import load_splits
from kdray.data.tokens import tokenise
from kdray.evaluation import outputs
from kdray.slots.job import Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.teacher.teacher import obtain_source

ROWS = 128
"""The most rows of a batch in an evaluation."""
LONGEST = 256
WORDS = 2000
MODEL = FreshTransformer(layers=6, width=384, heads=12, feed_forward=1536)


def lengths_of(kind: str, rows: int) -> np.ndarray:
    """The number of words of each text. There are fewer long texts, which take longer."""
    random = np.random.default_rng(0)
    if kind == "short":
        return np.clip(random.gamma(4, 6, rows), 4, 62).astype(int)
    return random.integers(62, LONGEST - 2, max(1, rows // 6))


def write_texts(folder: Path, lengths: Sequence[int]) -> None:
    """Write texts of so many words for each split, each split with texts of its own."""
    random = np.random.default_rng(1)
    folder.mkdir()
    for split in ("train", "validation", "test"):
        texts = [" ".join(f"w{word}" for word in random.integers(0, WORDS, length)) for length in lengths]
        lines = "".join(json.dumps({"text": text, "label": number % 2}) + "\n" for number, text in enumerate(texts))
        (folder / f"{split}.jsonl").write_text(lines)


def seconds(model: object, rows: Rows, worker: Worker, most_tokens: int) -> float:
    """The time of one evaluation with batches of at most so many tokens."""
    with mock.patch.object(outputs, "TOKENS_ON_CPU", most_tokens):
        started = time.perf_counter()
        outputs.compute_logits(model, rows, ROWS, worker, None)  # type: ignore[arg-type]
        return time.perf_counter() - started


def compare(kind: str, rows: int, repeats: int, folder: Path, worker: Worker) -> dict[str, float]:
    """The medians of the seconds with both kinds of batches."""
    write_texts(folder / kind, lengths_of(kind, rows).tolist())
    task, paths = TextClassification(text="text", label="label", max_length=LONGEST), StoragePaths(folder / "storage")
    splits = load_splits(Data(source=str(folder / kind)), task)
    source = obtain_source(Teacher(model=MODEL, training=Training()), task, splits, paths, seed=0)
    test = tokenise(splits, task, source.tokenizer(), paths).all_rows("test")
    model = source.model()
    plans = {"by_tokens": outputs.TOKENS_ON_CPU, "by_rows": ROWS * LONGEST}
    times: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(repeats + 1):
        for name, most_tokens in plans.items():
            times[name].append(seconds(model, test, worker, most_tokens))
    medians = {name: statistics.median(of_plan[1:]) for name, of_plan in times.items()}
    return medians | {"rows": len(test), "mean_tokens": float(test.lengths.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600, help="number of short texts")
    parser.add_argument("--repeats", type=int, default=3)
    options, on = parser.parse_args(), machine()
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as folder, LocalSlots(1) as slots:
        found = {
            kind: compare(kind, options.rows, options.repeats, Path(folder), slots.worker) for kind in ("short", "long")
        }
    print_result(
        f"seconds of an evaluation of long texts in batches of {outputs.TOKENS_ON_CPU:,} tokens, against {ROWS} rows",
        found["long"]["by_tokens"] / found["long"]["by_rows"],
        {"seconds": found},
        on,
    )


if __name__ == "__main__":
    main()
