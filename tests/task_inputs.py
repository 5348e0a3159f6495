"""The inputs of a trial of each task beside text classification: generated rows, a teacher, its transfer set."""

from typing import Any

from kdray.data.splits import Data, load_splits
from kdray.data.tokens import tokenise
from kdray.models.fresh import FreshTransformer
from kdray.slots.local import LocalSlots
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.storage.paths import StoragePaths
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import FineTuning, Teacher, obtain_source, obtain_teacher
from kdray.teacher.transfer import Labelling, Transfer, obtain_transfer_set
from kdray.training.settings import Training
from kdray.training.trial import TrialInputs

ROWS = {"train_rows": 200, "validation_rows": 60, "test_rows": 40}
KINDS: dict[str, tuple[Task, Any]] = {
    # So few tokens that many sentences are read in several windows.
    "token_classification": (TokenClassification(max_length=10), GeneratedMentions(**ROWS)),
    "multi_label": (MultiLabel(label="labels", max_length=24), GeneratedMoods(**ROWS)),
    "regression": (Regression(pair="pair", label="score", max_length=32), GeneratedPairs(**ROWS)),
}
"""Kind of a task -> the task, and where its rows come from."""
TEACHER = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=300)


def make_inputs(kind: str, storage: StoragePaths) -> TrialInputs:
    """The inputs of a trial of the task of this kind, in `KINDS`."""
    task, source = KINDS[kind]
    splits = load_splits(Data(source=source), task)
    settings = Teacher(model=TEACHER, training=Training(epochs=2, learning_rate=3e-3, precision="fp32"))
    start = obtain_source(settings, task, splits, storage, seed=0)
    tokens = tokenise(splits, task, start.tokenizer(), storage)
    with LocalSlots() as slots:
        tuning = FineTuning(source=start, tokens=tokens, task=task, seed=0)
        teacher = obtain_teacher(settings, tuning, storage, slots, lambda report: None)
        labelling = Labelling(Transfer(precision="fp32", shard_rows=64), teacher, tokens)
        transfer = obtain_transfer_set(labelling, storage, slots, lambda done, shards: None)
    return TrialInputs(task=task, source=teacher, tokens=tokens, transfer=transfer)
