"""Settings of several teachers and of a file, and the mean of several as one transfer set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdray.data.splits import Data, load_splits
from kdray.data.tokens import tokenise
from kdray.errors import SpecError
from kdray.models.fresh import FreshTransformer
from kdray.settings import dotted_values, identifying_values
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.teacher.answer_file import AnswerFile
from kdray.teacher.averaging import LabelledTeacher, average
from kdray.teacher.teacher import Teacher, obtain_sources
from kdray.teacher.transfer import Labelling, Transfer, obtain_transfer_set
from kdray.training.settings import Training
from kdray.training.trial import TrialInputs
from tests.task_inputs import KINDS

SMALL = FreshTransformer(layers=1, width=16, heads=2, feed_forward=32, vocabulary=40)
WIDE = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either model, a folder or a model hub name (or a list of them), or outputs"),
        ({"model": "a", "outputs": "b.csv"}, "give either model"),
        ({"model": []}, "model: got an empty list"),
        ({"model": ["a", "b"], "weights": [1]}, "weights: got 1 for 2 models; give one for each"),
        ({"model": ["a", "b"], "weights": [1, -1]}, "weights: got 1, -1; none may be negative"),
        ({"model": ["a", "b"], "weights": [0, 0]}, "weights: got 0, 0; none may be negative, and at least one"),
        ({"model": "a", "weights": [1]}, "weights: they are for several models"),
        ({"model": ["a", "b"], "revision": "main"}, "revision: several models have no common revision"),
        ({"outputs": "b.csv", "labels": ["x", "y"]}, "labels: has no meaning for a teacher that is a file"),
        ({"outputs": "b.csv", "training": Training()}, "training: has no meaning for a teacher that is a file"),
        ({"outputs": {"source": "b.csv", "form": "odds"}}, "form: got 'odds'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        Teacher(**fields)
    assert message in str(error.value)


def test_settings_of_one_teacher_are_recorded_as_before() -> None:
    values = identifying_values(Teacher(model="folder"))
    assert values == {"model": "folder", "revision": None, "training": None, "labels": None, "above_chance": 0.05}


@pytest.mark.parametrize(
    "teacher",
    [
        Teacher(model=["a", SMALL, "a"], weights=[1, 2, 1]),
        Teacher(outputs=AnswerFile(source="a.csv", form="logits", encoding="latin-1")),
        Teacher(outputs="a.csv"),
    ],
)
def test_settings_are_read_back_from_their_record(teacher: Teacher) -> None:
    assert Teacher(**identifying_values(teacher)) == teacher
    assert dotted_values(teacher)


def test_weights_are_shares() -> None:
    teacher = Teacher(model=["a", SMALL, "c"], weights=[2, 1, 1])
    assert teacher.shares == (0.5, 0.25, 0.25)
    assert teacher.display_name == "a + from scratch + c"
    assert Teacher(model=["a", "b"]).shares == (0.5, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_teachers_with_other_tokenizers(
    inputs_of: Callable[[str], TrialInputs], kind: str, tmp_path: Path
) -> None:
    inputs, (task, source) = inputs_of(kind), KINDS[kind]
    splits, storage = load_splits(Data(source=source), task), StoragePaths(tmp_path)
    settings = Teacher(model=[SMALL, WIDE, WIDE], weights=[3, 1, 0], training=Training())
    models = obtain_sources(settings, task, splits, storage, seed=0)
    assert len({model.key for model in models}) == 3
    labelled = []
    with LocalSlots() as slots:
        for model, share in zip(models, settings.shares, strict=True):
            own = tokenise(splits, task, model.tokenizer(), storage)
            labelling = Labelling(Transfer(precision="fp32", shard_rows=64), model, own)
            transfer = obtain_transfer_set(labelling, storage, slots, lambda done, shards: None)
            labelled.append(LabelledTeacher(labelling, transfer, share))
    assert len({each.labelling.tokens.tokenizer_key for each in labelled[:2]}) == 2
    distribution, tokens = task.distribution(np.zeros(1)), labelled[1].labelling.tokens
    mean = average(labelled, distribution, tokens, storage, lambda note: None)
    for split in ("train", "validation", "test"):
        parts = [each.transfer.logits(split).all() for each in labelled[:2]]
        expected_AxC = distribution.mean_outputs(parts, [0.75, 0.25])
        assert mean.logits(split).all() == pytest.approx(expected_AxC, abs=1e-6)
        # A student with a third tokenizer reads the same answers.
        assert np.array_equal(mean.all_rows(inputs.tokens, split).teacher_logits(), mean.logits(split).all())
    files = sorted(mean.folder.iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    assert average(labelled, distribution, tokens, storage, lambda note: None) == mean
    assert [file.stat().st_mtime_ns for file in files] == times
    damaged, content = files[-1], files[-1].read_bytes()
    damaged.write_bytes(content[:-8])
    notes: list[str] = []
    average(labelled, distribution, tokens, storage, notes.append)
    assert [damaged.name in note for note in notes] == [True]
    assert damaged.read_bytes() == content
