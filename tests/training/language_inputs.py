"""The inputs of trials of language models: generated text, a tiny teacher, and what is kept of its outputs."""

import json
import random
from dataclasses import replace
from pathlib import Path

from kdray.data.splits import Data, load_splits
from kdray.data.tokens import tokenise
from kdray.models.fresh import FreshTransformer
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.task import Task
from kdray.teacher.teacher import FineTuning, Teacher, obtain_source, obtain_teacher
from kdray.teacher.transfer import Labelling, Transfer, obtain_transfer_set
from kdray.training.settings import Training
from kdray.training.signal import LiveSignal
from kdray.training.trial import TrialInputs

DOCUMENTS = {"train": 90, "validation": 24, "test": 12}
NOUNS, VERBS = ("film", "plot", "cast", "music", "script", "scene"), ("shows", "loses", "finds", "leaves", "meets")
TEACHER = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=300)

FRESH, STORED, CAUSAL = "masked, fresh masks", "masked, stored maskings", "causal"
LANGUAGE_TASKS: dict[str, Task] = {
    FRESH: MaskedLM(block=16, top_k=5),
    STORED: MaskedLM(block=16, top_k=5, maskings=2),
    CAUSAL: CausalLM(block=16, top_k=5),
}


def write_documents(folder: Path) -> Path:
    """Write train.jsonl, validation.jsonl and test.jsonl: texts of a few sentences, some longer than a block."""
    folder.mkdir(parents=True)
    for split, count in DOCUMENTS.items():
        draw = random.Random(split)
        texts = []
        for _ in range(count):
            noun = draw.choice(NOUNS)
            sentences = [
                f"the {noun} {draw.choice(VERBS)} the {draw.choice(NOUNS)} ." for _ in range(draw.randint(1, 5))
            ]
            texts.append(" ".join(sentences))
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


def make_language_inputs(kind: str, documents: Path, storage: StoragePaths) -> TrialInputs:
    """The inputs of a trial of this kind, in `LANGUAGE_TASKS`; with fresh masks the teacher answers live."""
    task = LANGUAGE_TASKS[kind]
    splits = load_splits(Data(source=str(documents)), task)
    settings = Teacher(model=TEACHER, training=Training(epochs=2, learning_rate=3e-3, precision="fp32"))
    start = obtain_source(settings, task, splits, storage, seed=0)
    tokens = tokenise(splits, task, start.tokenizer(), storage)
    with LocalSlots() as slots:
        tuning = FineTuning(source=start, tokens=tokens, task=task, seed=0)
        teacher = obtain_teacher(settings, tuning, storage, slots, lambda report: None)
        labelling = Labelling(Transfer(precision="fp32", shard_rows=64), teacher, tokens)
        transfer = obtain_transfer_set(labelling, storage, slots, lambda done, shards: None)
    inputs = TrialInputs(task=task, source=teacher, tokens=tokens, transfer=transfer)
    return replace(inputs, signal=LiveSignal(teacher, "fp32")) if kind == FRESH else inputs
