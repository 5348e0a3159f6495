"""Students learn from all text, controls from the labelled rows alone, and the teacher is trained on these."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdray.augmentation.settings import Augmentation
from kdray.data.copies import WithCopies
from kdray.data.splits import Data, load_splits
from kdray.data.tokens import TextBlocks, tokenise
from kdray.losses.distillation import Distillation
from kdray.models.fresh import FreshTransformer
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import StoragePaths
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import FineTuning, Teacher, obtain_source, obtain_teacher
from kdray.teacher.transfer import Labelling, Transfer, compute_live_logits, obtain_transfer_set
from kdray.training.settings import Training
from kdray.training.trial import Recipe, Trial, TrialInputs

ROWS = {"train_rows": 90, "validation_rows": 40, "test_rows": 20, "unlabelled_rows": 70}
TASKS: dict[str, tuple[Task, Any]] = {
    "text_classification": (TextClassification(max_length=24), GeneratedReviews(**ROWS)),
    "token_classification": (TokenClassification(max_length=12), GeneratedMentions(**ROWS)),
    "multi_label": (MultiLabel(label="labels", max_length=24), GeneratedMoods(**ROWS)),
    "regression": (Regression(pair="pair", label="score", max_length=32), GeneratedPairs(**ROWS)),
}
COPIES = 2
TRAINING = Training(epochs=2, batch_size=16, learning_rate=1e-3, precision="fp32")
InputsOf = Callable[[str], TrialInputs]


def write_copy(texts: pa.Table, number: int) -> pa.Table:
    """The first texts with a word exchanged."""

    def change(text: Any) -> Any:
        return [f"copy{number}", *text[1:]] if isinstance(text, list) else f"copy{number} {text}"

    place = texts.column_names.index("text")
    return texts.set_column(
        place, "text", pa.array([change(text) for text in texts["text"].to_pylist()], texts["text"].type)
    )


def make_inputs(kind: str, storage: StoragePaths) -> TrialInputs:
    task, source = TASKS[kind]
    splits = load_splits(Data(source=source, unlabelled="unlabelled"), task)
    model = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=300)
    settings = Teacher(model=model, training=TRAINING)
    start = obtain_source(settings, task, splits, storage, seed=0)
    tokens = tokenise(WithCopies(splits, COPIES, write_copy, "copies"), task, start.tokenizer(), storage)
    with LocalSlots() as slots:
        teacher = obtain_teacher(settings, FineTuning(start, tokens, task, 0), storage, slots, lambda report: None)
        labelling = Labelling(Transfer(precision="fp32", shard_rows=64), teacher, tokens)
        transfer = obtain_transfer_set(labelling, storage, slots, lambda done, shards: None)
    return TrialInputs(task=task, source=teacher, tokens=tokens, transfer=transfer)


@pytest.fixture(scope="module")
def inputs_of(tmp_path_factory: pytest.TempPathFactory) -> InputsOf:
    made: dict[str, TrialInputs] = {}

    def inputs_of(kind: str) -> TrialInputs:
        if kind not in made:
            made[kind] = make_inputs(kind, StoragePaths(tmp_path_factory.mktemp(kind)))
        return made[kind]

    return inputs_of


def run(inputs: TrialInputs, recipe: Recipe, folder: Path, seed: int = 0) -> list[Report]:
    with LocalSlots() as slots:
        trial = Trial(recipe=recipe, inputs=inputs, seed=seed, target=folder / "student")
        return list(slots.run(trial, "trial-0"))


@pytest.mark.parametrize("kind", TASKS)
def test_the_blocks_are_the_labelled_rows_the_texts_and_the_copies(inputs_of: InputsOf, kind: str) -> None:
    tokens = inputs_of(kind).tokens
    rows = tokens.all_rows("train")
    labelled, texts, one_copy, two_copies = tokens.train_ends
    assert two_copies == len(rows)
    examples = [len(np.unique(rows.ids[:end])) for end in tokens.train_ends]
    assert examples == [90, 160, 320, 480]
    gold = rows.gold
    has_gold = np.isfinite(gold) if gold.dtype.kind == "f" else (gold if gold.ndim == 1 else gold[:, 0]) >= 0
    first_without = rows.answer_starts[labelled]
    assert has_gold[:first_without].all()
    assert not has_gold[first_without:].any()
    assert len(tokens.rows("train")) == labelled
    assert [tokens.texts(copies) for copies in range(3)] == [texts, one_copy, two_copies]


@pytest.mark.parametrize("kind", TASKS)
def test_the_transfer_set_has_the_teachers_answers_for_all_text(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    rows = inputs.texts(Recipe(), Worker())
    assert len(rows) == inputs.tokens.texts(0)
    live = compute_live_logits(inputs.source, inputs.tokens.all_rows("train").first(len(rows)), 8, "fp32", Worker())
    np.testing.assert_allclose(rows.teacher_logits(), live, atol=1e-4)
    np.testing.assert_array_equal(
        rows.first(inputs.tokens.train_ends[0]).teacher_logits(), inputs.rows("train", Worker()).teacher_logits()
    )


def test_the_teacher_is_that_of_the_labelled_rows(inputs_of: InputsOf, tmp_path: Path) -> None:
    """Also if the text without labels changes; the same tokenizer gives the labelled rows the same ids."""
    task, source = TASKS["text_classification"]
    inputs = inputs_of("text_classification")
    splits = load_splits(Data(source=source), task)
    alone = tokenise(splits, task, inputs.source.tokenizer(), StoragePaths(tmp_path))
    assert (alone.key, alone.train_ends) == (alone.labelled_key, (90, 90))
    assert alone.labelled_key == inputs.tokens.labelled_key
    assert inputs.tokens.key != alone.key
    every = np.arange(90)
    ids, expected = (each.rows("train").batch(every).inputs["input_ids"] for each in (inputs.tokens, alone))
    assert ids.equal(expected)


def test_token_files_of_earlier_versions_have_one_block(tmp_path: Path, inputs_of: InputsOf) -> None:
    task, source = TASKS["text_classification"]
    splits, tokenizer = load_splits(Data(source=source), task), inputs_of("text_classification").source.tokenizer()
    tokens = tokenise(splits, task, tokenizer, StoragePaths(tmp_path))
    meta = tokens.folder / "meta.json"
    write_json(meta, {name: value for name, value in read_json(meta).items() if name != "train_ends"})
    assert tokenise(splits, task, tokenizer, StoragePaths(tmp_path)) == tokens
    assert "train_ends" not in read_json(meta)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("learn_from", ["all text", "labelled rows"])
@pytest.mark.parametrize("copies", [0, 2])
def test_controls_make_as_many_steps_on_the_labelled_rows(
    inputs_of: InputsOf, kind: str, learn_from: str, copies: int, tmp_path: Path
) -> None:
    inputs = inputs_of(kind)
    recipe = Recipe(training=TRAINING, augmentation=Augmentation(copies=copies, ways=("mask",))).with_dotted(
        {"student.depth": 1, "learn_from": learn_from}
    )
    reports = run(inputs, recipe, tmp_path)
    all_text = inputs.tokens.train_ends[1 + copies]
    steps = -(-all_text // TRAINING.batch_size)
    assert [(report["epoch"], report["step"]) for report in reports] == [(1, steps), (2, 2 * steps)]
    labelled = inputs.tokens.train_ends[0]
    assert len(inputs.texts(recipe, Worker())) == (labelled if learn_from == "labelled rows" else all_text)
    assert inputs.has_more_text(recipe)
    assert all(np.isfinite(report["train_loss"]) for report in reports)


def test_a_control_does_not_depend_on_the_other_text(inputs_of: InputsOf, tmp_path: Path) -> None:
    """Only on its amount: the number of steps."""
    inputs = inputs_of("text_classification")
    recipe = Recipe(training=TRAINING, distillation=Distillation(alpha=0.0)).with_dotted(
        {"student.depth": 1, "learn_from": "labelled rows"}
    )
    expected = run(inputs, recipe, tmp_path / "a")
    ends = inputs.tokens.train_ends
    fewer = replace(inputs, tokens=replace(inputs.tokens, train_ends=(ends[0], ends[1] - 1, *ends[2:])))
    assert [report["train_loss"] for report in run(fewer, recipe, tmp_path / "b")] == [
        report["train_loss"] for report in expected
    ]


def test_a_training_on_fewer_rows_continues_where_it_was_cut_off(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("text_classification")
    recipe = Recipe(training=TRAINING).with_dotted(
        {"student.depth": 1, "learn_from": "labelled rows", "training.checkpoint_evaluations": 1, "training.epochs": 3}
    )
    expected = run(inputs, recipe, tmp_path / "whole")
    trial = Trial(recipe=recipe, inputs=inputs, seed=0, target=tmp_path / "cut" / "student")
    with LocalSlots() as slots:
        reports = slots.run(trial, "trial-0")
        next(reports)
        reports.close()
    continued = run(inputs, recipe, tmp_path / "cut")
    assert [report["train_loss"] for report in continued] == [report["train_loss"] for report in expected]
    assert [report["step"] for report in continued] == [10, 20, 30]


def test_any_source_of_blocks_will_do(inputs_of: InputsOf) -> None:
    task, source = TASKS["text_classification"]
    splits = load_splits(Data(source=source, unlabelled="unlabelled"), task)
    some: list[TextBlocks] = [splits, WithCopies(splits, 1, write_copy, "copies")]
    assert [len(list(text.blocks("train"))) for text in some] == [2, 3]
    assert [len(list(text.blocks("test"))) for text in some] == [1, 1]
    assert len({text.more_key for text in (*some, WithCopies(splits, 2, write_copy, "copies"))}) == 3
