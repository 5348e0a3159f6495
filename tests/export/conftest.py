"""Finished sweeps of all tasks but text classification, on small data: seconds each, made once a session."""

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pytest

from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, load_splits
from kdray.evaluation.measuring import Latency
from kdray.export.shipped import read_shipped
from kdray.models.fresh import FreshTransformer
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.language_model import LanguageModel
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import Teacher
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training
from tests.cli.test_cli import kdray

ROWS = {"train_rows": 800, "validation_rows": 100, "test_rows": 80}
TASKS: dict[str, dict[str, Any]] = {
    "tags": {"task": TokenClassification(max_length=96), "data": Data(source=GeneratedMentions(**ROWS))},
    "labels": {"task": MultiLabel(label="labels", max_length=48), "data": Data(source=GeneratedMoods(**ROWS))},
    "numbers": {
        "task": Regression(pair="pair", label="score", range=(0.0, 5.0), max_length=64),
        "data": Data(source=GeneratedPairs(**ROWS)),
    },
}
"""A short name of each task -> the settings of its sweep."""
BIOES = "bioes"
"""The name of one more sweep of tags, in a scheme that the pipeline of transformers does not group."""
BLOCK = 32
LANGUAGE: dict[str, LanguageModel] = {"masked": MaskedLM(block=BLOCK), "causal": CausalLM(block=BLOCK)}
"""The names of two more sweeps -> their tasks, the language models."""
REGISTERED = {"tracking": Tracking(), "confirm": Confirm(candidates=1, seeds=1, controls=False)}
"""What a sweep needs so that its student can be registered."""
SENTENCE_WORDS = [
    ("the", "a", "this"),
    ("old", "new", "small", "warm"),
    ("king", "film", "house", "river"),
    ("sees", "likes", "knows"),
    ("the", "a", "this"),
    ("king", "film", "house", "river"),
    (".",),
]
"""What may stand at each place of a sentence in the texts of language models."""
GetSweep: TypeAlias = Callable[[str], SweepPaths]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> GetSweep:
    """A function that gives the finished sweep of a task in `TASKS` or `LANGUAGE`, or `BIOES`. Read it only."""

    @cache
    def paths_of(name: str) -> SweepPaths:
        folder = tmp_path_factory.mktemp(name)
        settings = TASKS.get(name)
        if name in LANGUAGE:
            source = str(_write_sentences(folder / "data"))
            settings = {"task": LANGUAGE[name], "data": Data(source=source), **REGISTERED}
        if settings is None:
            settings = {"task": TASKS["tags"]["task"], "data": Data(source=str(_write_bioes(folder)))}
        return run(_tiny_sweep(name, settings), SweepPaths(folder, name), RunOptions(local=True)).paths

    return paths_of


@pytest.fixture(scope="session")
def with_forms(finished: GetSweep, tmp_path_factory: pytest.TempPathFactory) -> GetSweep:
    """As `finished`, but a copy with both ONNX forms."""

    @cache
    def paths_of(name: str) -> SweepPaths:
        paths = copy_sweep(finished(name), tmp_path_factory.mktemp(f"{name}-forms"))
        done = kdray("export", paths.root)
        assert done.code == 0, done.err
        return paths

    return paths_of


def copy_sweep(paths: SweepPaths, to: Path) -> SweepPaths:
    """Copy the storage of a sweep."""
    shutil.copytree(paths.storage, to, dirs_exist_ok=True)
    return SweepPaths(to, paths.name)


def read_test_rows(paths: SweepPaths) -> datasets.Dataset:
    """The test rows of a sweep, with the columns text, pair and label."""
    student = read_shipped(paths)
    return load_splits(student.data, student.task).test


def _tiny_sweep(name: str, settings: dict[str, Any]) -> Sweep:
    training = Training(epochs=5, batch_size=32, learning_rate=5e-3, precision="fp32")
    model = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=400)
    return Sweep(
        name=name,
        teacher=Teacher(model=model, above_chance=0.0, training=training),
        training=training,
        space={"student.depth": [1]},
        search=Search(trials=1, stopping=None),
        latency=Latency(length=16, warmup=1, repeats=9),
        slots=SlotSettings(cpus=1),
        **{"tracking": Tracking(enabled=False), "confirm": Confirm(candidates=0, controls=False)} | settings,
    )


def _write_sentences(folder: Path) -> Path:
    """Write texts of one to six sentences; a text has more tokens than a block, or fewer."""
    folder.mkdir()
    draw = random.Random(0)
    for split, count in (("train", 150), ("validation", 30), ("test", 30)):
        texts = [
            " ".join(draw.choice(words) for _ in range(draw.randint(1, 6)) for words in SENTENCE_WORDS)
            for _ in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


def _write_bioes(folder: Path) -> Path:
    """Write the generated mentions as files of lists, with their tags in the scheme BIOES."""
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        rows = TASKS["tags"]["data"].source.rows(split)
        lines = [
            json.dumps({"tokens": words, "tags": _to_bioes(tags)})
            for words, tags in zip(rows["tokens"], rows["tags"], strict=True)
        ]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    return folder / "data"


def _to_bioes(tags: list[str]) -> list[str]:
    """B becomes S, and I becomes E, where no I follows."""
    ends = [not after.startswith("I-") for after in [*tags[1:], "O"]]
    last = {"B": "S", "I": "E"}
    return [last.get(tag[0], "O") + tag[1:] if end else tag for tag, end in zip(tags, ends, strict=True)]
