"""Teachers of taggers, of several labels and of numbers: which are refused, and what students learn from them."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdray.data.splits import Data, load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.data.transfer_set import TransferSet
from kdray.errors import TeacherError
from kdray.evaluation.outputs import compute_logits
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Worker
from kdray.storage.paths import StoragePaths
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.scheme_difference import scheme_difference
from kdray.tasks.tag_schemes import BILOU, BIO, BIOES, PLAIN, Scheme
from kdray.tasks.task import Outputs, Task
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import Teacher, check_quality, obtain_source
from kdray.training.settings import Training
from kdray.training.trial import TrialInputs
from tests.task_inputs import KINDS

InputsOf = Callable[[str], TrialInputs]
TASKS: dict[str, Task] = {kind: task for kind, (task, _) in KINDS.items()} | {
    "text_classification": TextClassification(max_length=16)
}


def rename(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of this model with other entries in its configuration."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def obtain(
    folder: Path, task: Task, labels: tuple[str, ...], storage: Path, said: tuple[str, ...] | None = None
) -> Pretrained:
    """Obtain the teacher in this folder for data with these labels; `said` is the setting teacher.labels."""
    splits: Any = SimpleNamespace(labels=labels, key="rows")
    return obtain_source(Teacher(model=str(folder), labels=said), task, splits, StoragePaths(storage), seed=0)


def refusal(folder: Path, task: Task, labels: tuple[str, ...], storage: Path) -> str:
    with pytest.raises(TeacherError) as caught:
        obtain(folder, task, labels, storage)
    return str(caught.value)


# Another task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_of_the_own_task_is_accepted(inputs_of: InputsOf, kind: str, tmp_path: Path) -> None:
    inputs = inputs_of(kind)
    source = obtain(inputs.source.folder, inputs.task, inputs.tokens.labels, tmp_path)
    assert source.model().config.num_labels == max(1, len(inputs.tokens.labels))


@pytest.mark.parametrize(("teacher_kind", "task_kind"), list(permutations(TASKS, 2)))
def test_a_teacher_of_another_task_is_refused(
    inputs_of: InputsOf, teacher: Pretrained, teacher_kind: str, task_kind: str, tmp_path: Path
) -> None:
    folder = teacher.folder if teacher_kind == "text_classification" else inputs_of(teacher_kind).source.folder
    labels = () if task_kind == "regression" else ("a", "b")
    message = refusal(folder, TASKS[task_kind], labels, tmp_path)
    assert f"{folder}: a model for {teacher_kind.replace('_', ' ')} (Bert" in message
    assert f"but the task is {TASKS[task_kind].name} (task.kind={task_kind})" in message
    assert message.endswith(f"or change the task: --set task.kind={teacher_kind}.")


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_a_classifier_of_five_labels_is_no_regression(
    inputs_of: InputsOf, problem_type: str | None, tmp_path: Path
) -> None:
    """Hub models often lack a problem type; then the number of their outputs says that they are classifiers."""
    names = {str(number): f"{number} stars" for number in range(1, 6)}
    folder = rename(
        inputs_of("multi_label").source.folder,
        tmp_path / "stars",
        problem_type=problem_type,
        id2label={str(number): name for number, name in enumerate(names.values())},
        label2id={name: number for number, name in enumerate(names.values())},
    )
    message = refusal(folder, Regression(), (), tmp_path)
    assert "a model for text classification (BertForSequenceClassification with 5 outputs" in message
    assert "the task is regression" in message
    # The names of its labels are not compared: a number has no name.
    assert "labels are" not in message


def test_a_model_with_one_output_and_without_a_problem_type_is_a_regression(
    inputs_of: InputsOf, tmp_path: Path
) -> None:
    folder = rename(inputs_of("regression").source.folder, tmp_path / "scores", problem_type=None)
    assert obtain(folder, Regression(max_length=32), (), tmp_path).model().config.num_labels == 1
    assert "a model for regression" in refusal(folder, TextClassification(max_length=16), ("a", "b"), tmp_path)


def test_a_model_without_a_problem_type_may_give_several_labels(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("multi_label")
    folder = rename(inputs.source.folder, tmp_path / "moods", problem_type=None)
    source = obtain(folder, MultiLabel(max_length=16), inputs.tokens.labels, tmp_path)
    assert source.model().config.problem_type == "multi_label_classification"


# Other tags -----------------------------------------------------------------------------------------------------------


def test_tags_in_another_order_are_refused_with_the_order(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("token_classification")
    labels, folder = inputs.tokens.labels, inputs.source.folder
    order = labels[1:] + labels[:1]
    message = refusal(folder, inputs.task, order, tmp_path)
    assert f"Only the order differs: say --set teacher.labels={','.join(labels)}." in message
    source = obtain(folder, inputs.task, order, tmp_path, said=labels)
    assert torch.equal(source.model().classifier.weight, inputs.source.model().classifier.weight.roll(-1, 0))


def scheme_of_teacher(inputs: TrialInputs, folder: Path, scheme: Scheme) -> tuple[Path, tuple[str, ...]]:
    """A copy of the teacher whose tags are called as in another scheme; it has as many as there is room for."""
    names = scheme.complete(["a", "b"])[: len(inputs.tokens.labels)]
    id2label = {str(number): name for number, name in enumerate(names)}
    label2id = {name: number for number, name in enumerate(names)}
    return rename(inputs.source.folder, folder / scheme.name, id2label=id2label, label2id=label2id), names


def test_tags_in_another_scheme_are_refused_with_the_mapping(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("token_classification")
    folder, names = scheme_of_teacher(inputs, tmp_path, BILOU)
    assert len(names) == 9
    message = refusal(folder, inputs.task, BIO.complete(["a", "b"]), tmp_path)
    assert "The teacher's tags are in the scheme BILOU, the data's are in the scheme BIO: " in message
    assert "its B- and U- are B-, its I- and L- are I-." in message
    assert "Write the data's labels like the teacher's, or fine-tune the teacher" in message
    own = BIOES.complete(["a", "b"])
    message = refusal(folder, inputs.task, own, tmp_path)
    said = message.split("--set teacher.labels=")[1].rstrip(".").split(",")
    # Only the letters differ, so the remedy is a new name for each output.
    assert sorted(said) == sorted(own)
    assert dict(zip(names, said, strict=True))["U-b"] == "S-b"
    assert obtain(folder, inputs.task, own, tmp_path, said=tuple(said)).model().config.num_labels == 9


@pytest.mark.parametrize(
    ("teacher", "data", "expected"),
    [
        (BIOES, BIO, "its B- and S- are B-, its I- and E- are I-"),
        (BIO, BIOES, "its B- is B- or S-, its I- is I- or E-"),
        (BILOU, BIOES, "its B- is B-, its I- is I-, its L- is E-, its U- is S-"),
        (PLAIN, BIO, "The teacher's tags are plain tags without spans, the data's are in the scheme BIO."),
    ],
)
def test_the_mapping_names_what_each_prefix_is(teacher: Scheme, data: Scheme, expected: str) -> None:
    found = scheme_difference(teacher.complete(["x", "y"]), data.complete(["x", "y"]))
    assert found is not None
    assert expected in found.sentence


def test_tags_of_one_scheme_with_other_types_are_compared_as_labels(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("token_classification")
    others = tuple(name.replace("-", "-new-") for name in inputs.tokens.labels)
    message = refusal(inputs.source.folder, inputs.task, others, tmp_path)
    assert "scheme" not in message
    assert "Say what each output means in the data's words" in message


# Quality --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_does_not_read_the_text_is_near_chance(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    rows = inputs.rows("validation", Worker())
    outputs_AxC = np.tile(rows.teacher_logits().mean(axis=0), (len(rows.gold), 1))
    outputs = inputs.task.outputs(outputs_AxC, rows)
    with pytest.raises(TeacherError, match=r"is (0\.\d+|nan|-?0\.\d+), near chance"):
        check_quality(Teacher(model="x"), inputs.task, outputs, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_teacher_is_accepted(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    rows = inputs.rows("validation", Worker())
    gold = rows.gold
    if gold.dtype.kind == "f":
        outputs_AxC = gold[:, None]
    else:
        outputs_AxC = 10.0 * (gold if gold.ndim == 2 else np.eye(len(rows.labels))[gold]) - 5
    outputs = inputs.task.outputs(outputs_AxC.astype(np.float32), rows)
    check_quality(Teacher(model="x"), inputs.task, outputs, rows)
    assert inputs.task.values(outputs, rows)[inputs.task.quality.name] == pytest.approx(1)
    assert inputs.task.chance(rows) < 0.7


@pytest.mark.parametrize(("factor", "offset"), [(0.2, 0.0), (1.0, -9.0), (1000.0, 0.0)])
def test_a_teacher_with_numbers_in_other_units_is_refused(inputs_of: InputsOf, factor: float, offset: float) -> None:
    """Its correlation is perfect, but students would learn from two different numbers for each text."""
    inputs = inputs_of("regression")
    rows = inputs.rows("validation", Worker())
    outputs = Outputs((factor * rows.gold[:, None] + offset).astype(np.float32))
    with pytest.raises(
        TeacherError, match=r"is 1\.000, but its numbers are in other units: they are from .* to .*, tho"
    ):
        check_quality(Teacher(model="x"), inputs.task, outputs, rows)
    # A teacher that is fine-tuned here has learnt the units of the data.
    check_quality(Teacher(model="x", training=Training()), inputs.task, outputs, rows)


def test_the_only_output_of_a_regression_has_no_name(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("regression")
    with pytest.raises(TeacherError, match=r"teacher\.labels: regression has no labels; its only output is a number"):
        obtain(inputs.source.folder, inputs.task, (), tmp_path, said=("score",))


# The transfer set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_logits_are_those_of_the_live_teacher(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    model = inputs.source.model()
    for split in ("train", "validation", "test"):
        rows = inputs.rows(split, Worker())
        indices = np.random.default_rng(0).permutation(len(rows))[:20]
        batch = rows.batch(indices)
        with torch.inference_mode():
            live = batch.answers(model(**batch.inputs).logits).numpy()
        assert batch.teacher_logits_AxC is not None
        np.testing.assert_allclose(batch.teacher_logits_AxC.numpy(), live, atol=1e-4)
        assert len(rows.teacher_logits()) == rows.answer_starts[-1] == len(rows.gold)


@pytest.fixture(scope="module")
def other_tokens(inputs_of: InputsOf, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """The tagger's sentences as token ids of another tokenizer, with more words in a window."""
    task, source = KINDS["token_classification"]
    splits = load_splits(Data(source=source), task)
    tokenizer = word_tokenizer([" ".join(words) for words in splits.train["text"]], 100, 24)
    longer = task.model_copy(update={"max_length": 24})
    return tokenise(splits, longer, tokenizer, StoragePaths(tmp_path_factory.mktemp("other")))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_student_with_another_tokenizer_learns_from_the_same_words(
    inputs_of: InputsOf, other_tokens: TokenSet, split: str
) -> None:
    inputs = inputs_of("token_classification")
    own, other = inputs.rows(split, Worker()), inputs.transfer.rows(other_tokens, split)
    assert len(own) > len(other)  # shorter windows
    assert np.array_equal(own.gold, other.gold)
    assert np.array_equal(own.example_starts, other.example_starts)
    assert np.array_equal(own.teacher_logits(), other.teacher_logits())
    # A sentence of the other rows has the logits of all its windows in the own rows.
    for example in (0, 5, len(own.example_starts) - 2):
        windows, whole = np.flatnonzero(own.ids == example), np.flatnonzero(other.ids == example)
        batches = own.batch(windows), other.batch(whole)
        gold = [batch.gold.tolist() for batch in batches]
        logits = [batch.teacher_logits_AxC for batch in batches]
        assert gold[0] == gold[1]
        assert logits[0] is not None
        assert logits[1] is not None
        assert torch.equal(logits[0], logits[1])


class Rank(Worker):
    """One rank of a group. The ranks are threads of one process."""

    def all_gather(self, value: Any) -> list[Any]:
        values, barrier = self.cache["group"]
        values[self.rank] = value
        barrier.wait(timeout=60)
        return list(values)


@pytest.mark.parametrize("world", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_do_not_depend_on_the_number_of_ranks(inputs_of: InputsOf, kind: str, world: int) -> None:
    inputs = inputs_of(kind)
    rows, model = inputs.rows("test", Worker()), inputs.source.model()
    group = ([None] * world, Barrier(world))
    ranks = [Rank(rank, world, cache={"group": group}) for rank in range(world)]
    with ThreadPoolExecutor(world) as threads:
        of_ranks = list(threads.map(lambda rank: compute_logits(model, rows, 9, rank, None), ranks))
    alone = compute_logits(model, rows, 9, Worker(), None)
    assert all(np.array_equal(logits, alone) for logits in of_ranks)
    quality = inputs.task.quality.name
    values = [inputs.task.values(inputs.task.outputs(logits, rows), rows)[quality] for logits in (alone, of_ranks[0])]
    assert values[0] == values[1]
    np.testing.assert_allclose(alone, rows.teacher_logits(), atol=1e-4)


def test_a_transfer_set_of_other_words_is_refused(inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = inputs_of("token_classification")
    transfer = TransferSet(inputs.transfer.folder)
    with pytest.raises(OSError, match="its example ids are not the data's"):
        transfer.logits("test").of(inputs.tokens.rows("validation"))


def test_outputs_with_thresholds_keep_them(inputs_of: InputsOf) -> None:
    """The thresholds of the teacher are those of the validation rows, on the test rows, too."""
    inputs = inputs_of("multi_label")
    validation, test = (inputs.teacher_outputs(split, Worker()) for split in ("validation", "test"))
    assert isinstance(validation, Outputs)
    assert validation.thresholds_C is not None
    assert test.thresholds_C is not None
    assert np.array_equal(validation.thresholds_C, test.thresholds_C)
