"""Fixtures with small real objects: labelled rows, a teacher of four layers, its transfer set, trial inputs, a sweep.

They are made once a session, on slots in this process, in a few seconds. A test must not write into shared folders: a
test that changes files makes its own.
"""

import csv
import logging
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.data.transfer_set import TransferSet
from kdray.evaluation.measuring import Latency
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Pretrained
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotSettings
from kdray.storage.mirror import MIRROR_VARIABLE
from kdray.storage.paths import StoragePaths, SweepPaths
from kdray.students.transformer import TransformerStudent
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import FineTuning, Teacher, obtain_source, obtain_teacher
from kdray.teacher.transfer import Labelling, Transfer, obtain_transfer_set
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training
from kdray.training.trial import Recipe, TrialInputs
from tests.storage.bucket_server import BucketServer
from tests.task_inputs import make_inputs

# On a busy machine a single example may take seconds, which says nothing about the code.
hypothesis.settings.register_profile("kdray", deadline=None)
hypothesis.settings.load_profile("kdray")

GOOD, BAD = ("good", "warm", "witty", "fresh"), ("bad", "cold", "dull", "stale")
OTHER = ["the", "a", "film", "plot", "cast", "music", "script", "with", "and", "of", "this", "that", "its"]
ROWS = {"train": 320, "dev": 96, "test": 48}
TINY = FreshTransformer(layers=4, width=32, heads=2, feed_forward=64, vocabulary=100)


def write_rows(folder: Path, labels: tuple[Any, Any] = ("negative", "positive")) -> Path:
    """Write train.csv, dev.csv and test.csv: texts with three opinion words, of which two agree and give the label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in ROWS.items():
        draw = random.Random(split)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for _ in range(count):
                label = draw.randrange(2)
                majority, minority = (GOOD, BAD) if label else (BAD, GOOD)
                words = [draw.choice(OTHER) for _ in range(draw.randint(2, 6))]
                words += [draw.choice(majority), draw.choice(majority), draw.choice(minority)]
                draw.shuffle(words)
                writer.writerow([" ".join(words), labels[label]])
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: sums depend on the number of threads, and other programs share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Remove the log handlers that a test has added: the command line sends all log records to a sweep's file."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
        logging.root.removeHandler(handler)
        handler.close()
    logging.root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def own_user_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a user of its own, who has trusted no address yet, and no server in the environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setattr("kdray.storage.trust._accepted", set())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv, dev.csv, test.csv with the columns text and label."""
    return write_rows(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> StoragePaths:
    """The storage of the shared objects."""
    return StoragePaths(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[BucketServer]:
    with BucketServer() as server:
        yield server


@pytest.fixture
def bucket(bucket_server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder in a new bucket. This process is a node of its own, with its mirrors in `tmp_path`."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "node"))
    return f"{bucket_server.new_bucket()}/team"


@pytest.fixture(scope="session")
def slots() -> Iterator[LocalSlots]:
    with LocalSlots() as pool:
        yield pool


@pytest.fixture(scope="session")
def task() -> TextClassification:
    return TextClassification(max_length=16)


@pytest.fixture(scope="session")
def splits(data_folder: Path, task: TextClassification) -> Splits:
    return load_splits(Data(source=str(data_folder)), task)


@pytest.fixture(scope="session")
def teacher_settings() -> Teacher:
    """The settings of the shared teacher: trained from scratch in a second or two."""
    return Teacher(model=TINY, training=Training(epochs=6, learning_rate=3e-3, precision="fp32"))


@pytest.fixture(scope="session")
def source(teacher_settings: Teacher, task: TextClassification, splits: Splits, storage: StoragePaths) -> Pretrained:
    """The teacher before its training."""
    return obtain_source(teacher_settings, task, splits, storage, seed=0)


@pytest.fixture(scope="session")
def tokens(splits: Splits, task: TextClassification, source: Pretrained, storage: StoragePaths) -> TokenSet:
    return tokenise(splits, task, source.tokenizer(), storage)


@pytest.fixture(scope="session")
def teacher(
    teacher_settings: Teacher,
    source: Pretrained,
    task: TextClassification,
    tokens: TokenSet,
    storage: StoragePaths,
    slots: LocalSlots,
) -> Pretrained:
    """A teacher that has learnt its task, but makes some errors."""
    fine_tuning = FineTuning(source=source, tokens=tokens, task=task, seed=0)
    return obtain_teacher(teacher_settings, fine_tuning, storage, slots, lambda report: None)


@pytest.fixture(scope="session")
def transfer(teacher: Pretrained, tokens: TokenSet, storage: StoragePaths, slots: LocalSlots) -> TransferSet:
    settings = Transfer(precision="fp32", shard_rows=128)
    return obtain_transfer_set(Labelling(settings, teacher, tokens), storage, slots, lambda done, shards: None)


@pytest.fixture(scope="session")
def trial_inputs(task: TextClassification, teacher: Pretrained, tokens: TokenSet, transfer: TransferSet) -> TrialInputs:
    return TrialInputs(task=task, source=teacher, tokens=tokens, transfer=transfer)


@pytest.fixture(scope="session")
def inputs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrialInputs]:
    """A function that gives the inputs of a trial of another task, by its kind in `task_inputs.KINDS`."""
    return cache(lambda kind: make_inputs(kind, StoragePaths(tmp_path_factory.mktemp(kind))))


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The recipe of a student of two layers: two epochs of ten steps each, in float32."""
    training = Training(epochs=2, batch_size=32, learning_rate=1e-3, precision="fp32", checkpoint_evaluations=1)
    return Recipe(student=TransformerStudent(depth=2), training=training)


@pytest.fixture(scope="session")
def make_sweep(data_folder: Path, teacher: Pretrained, recipe: Recipe) -> Callable[..., Sweep]:
    """A function that makes a sweep of three trials over depth and learning rate; its arguments replace fields."""

    def make(**fields: Any) -> Sweep:
        settings: dict[str, Any] = {
            "name": "tiny",
            "data": Data(source=str(data_folder)),
            "teacher": Teacher(model=str(teacher.folder)),
            "task": TextClassification(max_length=16),
            "transfer": Transfer(precision="fp32"),
            "training": recipe.training,
            "space": {"student.depth": [1, 2], "training.learning_rate": [1e-3, 3e-3]},
            "search": Search(trials=3, stopping=None),
            "latency": Latency(length=16, warmup=1, repeats=9),
            "confirm": Confirm(candidates=0, controls=False),
            "tracking": Tracking(enabled=False),
            "smoke": {"data.max_rows": 64, "training.epochs": 1, "search.trials": 2},
        }
        return Sweep(**settings | fields)

    return make


@pytest.fixture(scope="session")
def chosen(make_sweep: Callable[..., Sweep], tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The paths of a finished sweep with a chosen student. Read it only."""
    sweep = make_sweep(search=Search(trials=1, stopping=None), slots=SlotSettings(cpus=1))
    return run(sweep, SweepPaths(tmp_path_factory.mktemp("chosen"), sweep.name), RunOptions(local=True)).paths
