"""A teacher is obtained once, and a teacher that is not good enough is refused with a remedy that works."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.errors import SpecError, TeacherError
from kdray.evaluation.outputs import compute_logits
from kdray.models.pretrained import Pretrained
from kdray.settings import parse_value
from kdray.slots.job import Job, Report, Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Outputs
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import FineTuning, Teacher, check_quality, obtain_source, obtain_teacher
from kdray.training.settings import Training
from tests.conftest import TINY, write_rows

TRAINED = Training(epochs=2, learning_rate=1e-3, precision="fp32", checkpoint_evaluations=1)


class NoSlots:
    """A pool that fails the test if a job runs on it."""

    count = 1
    threads_alone = 1

    def run(self, job: Job, name: str) -> Iterator[Report]:
        raise AssertionError(f"the job {name} ran")


@pytest.fixture
def folder(teacher: Pretrained, tmp_path: Path) -> Path:
    """A copy of the teacher's folder, which a test may change."""
    return Path(shutil.copytree(teacher.folder, tmp_path / "model"))


def rename_outputs(folder: Path, *names: str) -> None:
    """Give the outputs of the model in this folder these names."""
    model = Pretrained(folder, "").model()
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)


def swap_outputs(folder: Path, *names: str) -> None:
    """Exchange the two outputs of the model in this folder, and then give them these names."""
    model = Pretrained(folder, "").model()
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.save_pretrained(folder)
    rename_outputs(folder, *names)


def check(teacher: Teacher, data: Path, labels: str | None, storage: Path) -> float:
    """Check an already fine-tuned teacher as a sweep does, and return its validation accuracy."""
    task = TextClassification(max_length=16, labels=None if labels is None else parse_value(labels))
    paths, splits = StoragePaths(storage), load_splits(Data(source=str(data)), task)
    source = obtain_source(teacher, task, splits, paths, seed=0)
    rows = tokenise(splits, task, source.tokenizer(), paths).rows("validation")
    outputs = task.outputs(compute_logits(source.model(), rows, 64, Worker(), None), rows)
    check_quality(teacher, task, outputs, rows)
    return task.values(outputs, rows)["accuracy"]


def check_outputs(teacher: Teacher, logits_NxC: np.ndarray, labels_N: np.ndarray, names: Sequence[str]) -> None:
    """Check a teacher with these logits for validation rows with these labels."""
    rows: Any = SimpleNamespace(gold=labels_N, example_starts=np.arange(len(labels_N) + 1), labels=tuple(names))
    check_quality(teacher, TextClassification(), Outputs(logits_NxC), rows)


def refusal(teacher: Teacher, data: Path, labels: str | None, storage: Path) -> str:
    """The message with which this teacher is refused."""
    with pytest.raises(TeacherError) as caught:
        check(teacher, data, labels, storage)
    return str(caught.value)


def check_after_remedy(message: str, folder: Path, data: Path, labels: str | None, storage: Path) -> float:
    """Change the settings as the `--set` options in the message say, and check the teacher again."""
    options = dict(part.split("=", 1) for part in message.rstrip(".").split("--set ")[1:])
    options = {name: value.split()[0].rstrip(".,;") for name, value in options.items()}
    teacher_labels = options.get("teacher.labels")
    teacher = Teacher(model=str(folder), labels=None if teacher_labels is None else parse_value(teacher_labels))
    return check(teacher, data, options.get("task.labels", labels), storage)


# Obtaining a teacher --------------------------------------------------------------------------------------------------


def test_a_fine_tuned_teacher_is_cached_by_content(
    source: Pretrained, task: TextClassification, tokens: TokenSet, tmp_path: Path, slots: LocalSlots
) -> None:
    paths, settings = StoragePaths(tmp_path), Teacher(model=TINY, training=TRAINED)
    reports: list[Report] = []
    start = FineTuning(source=source, tokens=tokens, task=task, seed=0)
    teacher = obtain_teacher(settings, start, paths, slots, reports.append)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert [path.name for path in teacher.folder.parent.iterdir()] == [teacher.key]  # the checkpoint is deleted
    assert obtain_teacher(settings, start, paths, NoSlots(), reports.append) == teacher
    assert teacher.model().config.id2label == {0: "negative", 1: "positive"}
    longer = Teacher(model=TINY, training=TRAINED.model_copy(update={"epochs": 3}))
    with pytest.raises(AssertionError):
        obtain_teacher(longer, start, paths, NoSlots(), reports.append)


def test_a_fine_tuning_that_is_cut_off_continues_with_the_same_numbers(
    source: Pretrained, task: TextClassification, tokens: TokenSet, tmp_path: Path, slots: LocalSlots
) -> None:
    settings = Teacher(model=TINY, training=TRAINED)
    start = FineTuning(source=source, tokens=tokens, task=task, seed=0)
    uninterrupted = obtain_teacher(
        settings, start, StoragePaths(tmp_path / "uninterrupted"), slots, lambda report: None
    )

    def interrupt(report: Report) -> None:
        if report["epoch"] == 1:
            raise KeyboardInterrupt

    paths, reports = StoragePaths(tmp_path / "interrupted"), list[Report]()
    with pytest.raises(KeyboardInterrupt):
        obtain_teacher(settings, start, paths, LocalSlots(), interrupt)
    interrupted = obtain_teacher(settings, start, paths, slots, reports.append)
    assert [report["epoch"] for report in reports] == [1, 2]
    files = [(teacher.folder / "model.safetensors").read_bytes() for teacher in (interrupted, uninterrupted)]
    assert files[0] == files[1]


def test_an_already_fine_tuned_teacher_is_accepted(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    assert check(Teacher(model=str(folder)), data_folder, None, tmp_path) > 0.7


def test_a_teacher_from_scratch_must_be_trained(task: TextClassification, splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"a teacher from scratch must be trained; give Teacher\(training=Training"):
        obtain_source(Teacher(model=TINY), task, splits, StoragePaths(tmp_path), seed=0)


def write_backbone(folder: Path, teacher: Pretrained) -> Path:
    """Write a model without a head, as pre-training gives it, with the tokenizer of the teacher."""
    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    teacher.tokenizer().save_pretrained(folder)
    return folder


def test_a_backbone_is_refused_unless_it_is_fine_tuned(
    teacher: Pretrained, task: TextClassification, splits: Splits, data_folder: Path, tmp_path: Path
) -> None:
    folder, paths = write_backbone(tmp_path / "backbone", teacher), StoragePaths(tmp_path)
    message = refusal(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "no trained head for text classification with 2 labels" in message
    assert "training=Training()" in message
    source = obtain_source(Teacher(model=str(folder), training=TRAINED), task, splits, paths, seed=0)
    other = obtain_source(Teacher(model=str(folder), training=TRAINED), task, splits, paths, seed=1)
    assert source.model().config.id2label == {0: "negative", 1: "positive"}
    assert source.key != other.key
    assert not torch.equal(source.model().classifier.weight, other.model().classifier.weight)


# Labels that disagree -------------------------------------------------------------------------------------------------


def test_label_names_in_another_case_are_the_same(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    rename_outputs(folder, "NEGATIVE", "Positive")
    assert check(Teacher(model=str(folder)), data_folder, None, tmp_path) > 0.7


def test_a_teacher_with_another_label_order_that_is_fine_tuned_gets_the_order_of_the_data(
    folder: Path, task: TextClassification, splits: Splits, tmp_path: Path
) -> None:
    swap_outputs(folder, "positive", "negative")
    source = obtain_source(Teacher(model=str(folder), training=TRAINED), task, splits, StoragePaths(tmp_path), seed=0)
    assert source.model().config.id2label == {0: "negative", 1: "positive"}


def test_labels_in_another_order(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    swap_outputs(folder, "positive", "negative")
    message = refusal(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "the teacher's labels are positive, negative; the data's are negative, positive" in message
    assert "Only the order differs" in message
    assert check_after_remedy(message, folder, data_folder, None, tmp_path) > 0.7


def test_labels_in_another_order_without_names(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    """Only the validation accuracy shows the order."""
    swap_outputs(folder, "LABEL_0", "LABEL_1")
    message = refusal(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "near chance" in message
    assert "if its outputs meant, in order, positive,negative" in message
    assert check_after_remedy(message, folder, data_folder, None, tmp_path) > 0.7


def test_other_label_names(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    rename_outputs(folder, "bad", "good")
    message = refusal(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "the teacher's labels are bad, good; the data's are negative, positive" in message
    assert check_after_remedy(message, folder, data_folder, None, tmp_path) > 0.7


def test_other_label_names_in_another_order(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    """The user follows the first message literally. Then the validation accuracy shows that the order is wrong."""
    swap_outputs(folder, "good", "bad")
    refusal(Teacher(model=str(folder)), data_folder, None, tmp_path)
    teacher = Teacher(model=str(folder), labels=("negative", "positive"))
    message = refusal(teacher, data_folder, None, tmp_path)
    assert check_after_remedy(message, folder, data_folder, None, tmp_path) > 0.7


@pytest.mark.parametrize("labels", [None, "negative,positive"])
def test_labels_in_another_order_with_numbers_as_data_labels(folder: Path, tmp_path: Path, labels: str | None) -> None:
    """The data's labels 0 and 1 mean negative and positive. The teacher's first output is positive."""
    data = write_rows(tmp_path / "numbers", (0, 1))
    swap_outputs(folder, "positive", "negative")
    message = refusal(Teacher(model=str(folder)), data, labels, tmp_path)
    if labels is None:  # only the validation accuracy shows what 0 means
        teacher = Teacher(model=str(folder), labels=("0", "1"))
        assert "the data's are 0, 1" in message
        message = refusal(teacher, data, labels, tmp_path)
    assert check_after_remedy(message, folder, data, labels, tmp_path) > 0.7


def test_another_number_of_labels_is_refused(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    model = Pretrained(folder, "").model()
    config = model.config
    config.id2label = {0: "a", 1: "b", 2: "c"}
    type(model)(config).save_pretrained(folder)
    message = refusal(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "the teacher's labels are a, b, c; the data's are negative, positive. Their number differs" in message


# Quality --------------------------------------------------------------------------------------------------------------


def test_a_teacher_near_chance_is_refused() -> None:
    labels_N = np.arange(100) % 2
    logits_NxC = np.eye(2)[np.arange(100) // 2 % 2]
    with pytest.raises(
        TeacherError,
        match=r"near chance \(0\.500 for answers that do not depend on the text\); at least 0\.550 is required",
    ) as caught:
        check_outputs(Teacher(model="x"), logits_NxC, labels_N, ["a", "b"])
    assert "Fine-tune it" in str(caught.value)
    assert "task.labels" not in str(caught.value)
    check_outputs(Teacher(model="x", above_chance=0), np.eye(2)[labels_N], labels_N, ["a", "b"])


def test_a_teacher_that_always_answers_the_most_frequent_label_is_near_chance() -> None:
    labels_N = (np.arange(100) < 10).astype(int)
    with pytest.raises(TeacherError, match=r"accuracy is 0\.900, near chance \(0\.900"):
        check_outputs(Teacher(model="x"), np.tile([1.0, 0.0], (100, 1)), labels_N, ["a", "b"])


def test_the_order_of_three_labels_is_found() -> None:
    """The first output means c, the second a, the third b."""
    labels_N = np.arange(90) % 3
    logits_NxC = np.eye(3)[(labels_N + 1) % 3]
    with pytest.raises(TeacherError, match=r"would be 1\.000 if its outputs meant, in order, c,a,b"):
        check_outputs(Teacher(model="x"), logits_NxC, labels_N, ["a", "b", "c"])


def test_two_exchanged_labels_of_four_are_found_although_the_teacher_is_above_chance() -> None:
    labels_N = np.arange(100) % 4
    logits_NxC = np.eye(4)[np.array([0, 1, 3, 2])[labels_N]]
    with pytest.raises(
        TeacherError, match=r"accuracy is 0\.500, but would be 1\.000 if .* in order, a,b,d,c"
    ) as caught:
        check_outputs(Teacher(model="x"), logits_NxC, labels_N, list("abcd"))
    assert "chance" not in str(caught.value)
    check_outputs(Teacher(model="x", training=Training()), logits_NxC, labels_N, list("abcd"))


@pytest.mark.parametrize("labels", [("A", "B", "C", "D"), ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")])
def test_exchanged_labels_are_found_where_the_setting_has_other_names_than_the_data(labels: tuple[str, ...]) -> None:
    labels_N = np.arange(100) % 4
    logits_NxC = np.eye(4)[np.array([0, 1, 3, 2])[labels_N]]
    with pytest.raises(TeacherError, match=r"in order, a,b,d,c"):
        check_outputs(Teacher(model="x", labels=labels), logits_NxC, labels_N, list("abcd"))


def test_a_good_teacher_is_accepted_although_nearly_all_rows_have_one_label() -> None:
    labels_N = (np.arange(1000) < 10).astype(int)
    check_outputs(Teacher(model="x"), np.eye(2)[labels_N], labels_N, ["a", "b"])
    with pytest.raises(TeacherError, match=r"at least 0\.995 is required"):
        check_outputs(Teacher(model="x"), np.tile([1.0, 0.0], (1000, 1)), labels_N, ["a", "b"])


@pytest.mark.parametrize("labels", [("NEGATIVE", "Positive"), ("LABEL_0", "LABEL_1")])
def test_labels_without_names_or_in_another_case_are_the_labels_of_the_data(
    labels: tuple[str, str], teacher: Pretrained, task: TextClassification, splits: Splits, tmp_path: Path
) -> None:
    settings = Teacher(model=str(teacher.folder), labels=labels)
    source = obtain_source(settings, task, splits, StoragePaths(tmp_path), seed=0)
    assert torch.equal(source.model().classifier.weight, teacher.model().classifier.weight)


def test_the_tokenizer_of_a_teacher_from_scratch_knows_the_words_of_both_texts(
    task: TextClassification, tmp_path: Path
) -> None:
    rows = "".join(f"first {n},second{n % 7},{'good' if n % 2 else 'bad'}\n" for n in range(60))
    (tmp_path / "train.csv").write_text(f"text,other,label\n{rows}")
    pairs = task.model_copy(update={"pair": "other"})
    splits = load_splits(Data(source=str(tmp_path)), pairs)
    settings = Teacher(model=TINY, training=Training())
    tokenizer = obtain_source(settings, pairs, splits, StoragePaths(tmp_path / "storage"), seed=0).tokenizer()
    assert tokenizer.unk_token_id not in tokenizer("first 1", "second3")["input_ids"]


def test_a_teacher_is_not_trained_for_int8() -> None:
    with pytest.raises(SpecError, match=r"training\.quantised: got 'int8', but only students"):
        Teacher(model="folder", training=Training(quantised="int8"))
