"""A teacher is obtained once, and one that should not be taught from is refused with a remedy that works."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.errors import TeacherError
from kdray.evaluation.outputs import compute_logits
from kdray.models.pretrained import Pretrained
from kdray.settings import parse_value
from kdray.slots.job import Job, Report, Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import FineTuning, Teacher, check_quality, obtain_source, obtain_teacher
from kdray.training.settings import Training
from tests.conftest import TINY, write_rows

TRAINED = Training(epochs=2, learning_rate=1e-3, precision="fp32", checkpoint_evaluations=1)


class NoSlots:
    """A pool that must not be used."""

    count = 1
    threads_alone = 1

    def run(self, job: Job, name: str) -> Iterator[Report]:
        raise AssertionError(f"{name} was run")


@pytest.fixture
def folder(teacher: Pretrained, tmp_path: Path) -> Path:
    """A copy of the teacher that a test may change."""
    return Path(shutil.copytree(teacher.folder, tmp_path / "model"))


def relabelled(folder: Path, *names: str) -> Path:
    """The model of this folder with these names for its outputs."""
    model = Pretrained(folder, "").model()
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    return folder


def swapped(folder: Path, *names: str) -> Path:
    """The model of this folder with its two outputs in the other order, under these names."""
    model = Pretrained(folder, "").model()
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.save_pretrained(folder)
    return relabelled(folder, *names)


def checked(teacher: Teacher, data: Path, labels: str | None, storage: Path) -> float:
    """Do all that a sweep does before a teacher that is taken as it is may teach; its validation accuracy."""
    task = TextClassification(max_length=16, labels=None if labels is None else parse_value(labels))
    paths, splits = StoragePaths(storage), load_splits(Data(source=str(data)), task)
    source = obtain_source(teacher, task, splits, paths, seed=0)
    rows = tokenise(splits, task, source.tokenizer(), paths).rows("validation")
    logits = compute_logits(source.model(), rows, 64, Worker(), None)
    check_quality(teacher, logits, rows.labels, splits.labels)
    return float(task.metrics(logits, rows.labels)["accuracy"])


def refused(teacher: Teacher, data: Path, labels: str | None, storage: Path) -> str:
    with pytest.raises(TeacherError) as caught:
        checked(teacher, data, labels, storage)
    return str(caught.value)


def remedied(said: str, folder: Path, data: Path, labels: str | None, storage: Path) -> float:
    """Follow what the sentence says to --set, as many times as it takes, but not for ever."""
    offers = dict(part.split("=", 1) for part in said.rstrip(".").split("--set ")[1:])
    offers = {name: value.split()[0].rstrip(".,;") for name, value in offers.items()}
    named = offers.get("teacher.labels")
    teacher = Teacher(model=str(folder), labels=None if named is None else parse_value(named))
    return checked(teacher, data, offers.get("task.labels", labels), storage)


# Obtaining ------------------------------------------------------------------------------------------------------------


def test_a_fine_tuned_teacher_is_cached_by_content(
    source: Pretrained, task: TextClassification, tokens: TokenSet, tmp_path: Path, slots: LocalSlots
) -> None:
    paths, settings = StoragePaths(tmp_path), Teacher(model=TINY, training=TRAINED)
    reports: list[Report] = []
    made = obtain_teacher(settings, FineTuning(source, tokens, task, 0), paths, slots, reports.append)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert [path.name for path in made.folder.parent.iterdir()] == [made.key]  # no checkpoint is left
    again = obtain_teacher(settings, FineTuning(source, tokens, task, 0), paths, NoSlots(), reports.append)
    assert again == made
    assert made.model().config.id2label == {0: "negative", 1: "positive"}
    longer = Teacher(model=TINY, training=TRAINED.model_copy(update={"epochs": 3}))
    with pytest.raises(AssertionError):
        obtain_teacher(longer, FineTuning(source, tokens, task, 0), paths, NoSlots(), reports.append)


def test_a_fine_tuning_that_is_cut_off_goes_on(
    source: Pretrained, task: TextClassification, tokens: TokenSet, tmp_path: Path, slots: LocalSlots
) -> None:
    settings = Teacher(model=TINY, training=TRAINED)
    whole = obtain_teacher(
        settings, FineTuning(source, tokens, task, 0), StoragePaths(tmp_path / "whole"), slots, lambda r: None
    )

    def interrupt(report: Report) -> None:
        if report["epoch"] == 1:
            raise KeyboardInterrupt

    paths, reports = StoragePaths(tmp_path / "parts"), list[Report]()
    with pytest.raises(KeyboardInterrupt):
        obtain_teacher(settings, FineTuning(source, tokens, task, 0), paths, LocalSlots(), interrupt)
    parts = obtain_teacher(settings, FineTuning(source, tokens, task, 0), paths, slots, reports.append)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert (parts.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_a_ready_teacher_is_taken_as_it_is(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    assert checked(Teacher(model=str(folder)), data_folder, None, tmp_path) > 0.7


def test_a_teacher_from_scratch_must_be_trained(task: TextClassification, splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"a teacher from scratch must be trained; give Teacher\(training=Training"):
        obtain_source(Teacher(model=TINY), task, splits, StoragePaths(tmp_path), seed=0)


def headless(folder: Path, tokenizer: Pretrained) -> Path:
    """A backbone, as it comes from pre-training."""
    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.tokenizer().save_pretrained(folder)
    return folder


def test_a_backbone_is_refused_as_it_is_and_gets_a_head_to_be_trained(
    teacher: Pretrained, task: TextClassification, splits: Splits, data_folder: Path, tmp_path: Path
) -> None:
    folder, paths = headless(tmp_path / "backbone", teacher), StoragePaths(tmp_path)
    said = refused(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "no trained classification head for 2 labels" in said
    assert "training=Training()" in said
    made = obtain_source(Teacher(model=str(folder), training=TRAINED), task, splits, paths, seed=0)
    other = obtain_source(Teacher(model=str(folder), training=TRAINED), task, splits, paths, seed=1)
    assert made.model().config.id2label == {0: "negative", 1: "positive"}
    assert made.key != other.key
    assert not torch.equal(made.model().classifier.weight, other.model().classifier.weight)


# Labels that disagree -------------------------------------------------------------------------------------------------


def test_names_in_another_case_agree(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    relabelled(folder, "NEGATIVE", "Positive")
    assert checked(Teacher(model=str(folder)), data_folder, None, tmp_path) > 0.7


@pytest.mark.parametrize("training", [None, TRAINED])
def test_another_order(folder: Path, data_folder: Path, tmp_path: Path, training: Training | None) -> None:
    swapped(folder, "positive", "negative")
    if training:  # its head is trained on, with the data's order
        task = TextClassification(max_length=16)
        splits = load_splits(Data(source=str(data_folder)), task)
        source = obtain_source(Teacher(model=str(folder), training=training), task, splits, StoragePaths(tmp_path), 0)
        assert source.model().config.id2label == {0: "negative", 1: "positive"}
        return
    said = refused(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "the teacher's labels are positive, negative; the data's are negative, positive" in said
    assert "Only the order differs" in said
    assert remedied(said, folder, data_folder, None, tmp_path) > 0.7


def test_another_order_and_no_names(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    """Only the validation rows can tell."""
    swapped(folder, "LABEL_0", "LABEL_1")
    said = refused(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "near chance" in said
    assert "if its outputs meant, in order, positive,negative" in said
    assert remedied(said, folder, data_folder, None, tmp_path) > 0.7


def test_other_names(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    relabelled(folder, "bad", "good")
    said = refused(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "the teacher's labels are bad, good; the data's are negative, positive" in said
    assert remedied(said, folder, data_folder, None, tmp_path) > 0.7


def test_other_names_in_another_order(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    """The first remedy is taken at its word; then the validation rows tell that the order is another one."""
    swapped(folder, "good", "bad")
    refused(Teacher(model=str(folder)), data_folder, None, tmp_path)
    named = Teacher(model=str(folder), labels=("negative", "positive"))
    said = refused(named, data_folder, None, tmp_path)
    assert remedied(said, folder, data_folder, None, tmp_path) > 0.7


@pytest.mark.parametrize("labels", [None, "negative,positive"])
def test_another_order_over_numbers(folder: Path, tmp_path: Path, labels: str | None) -> None:
    """The data say 0 and 1, which mean negative and positive; the teacher's first output is positive."""
    data = write_rows(tmp_path / "numbers", (0, 1))
    swapped(folder, "positive", "negative")
    said = refused(Teacher(model=str(folder)), data, labels, tmp_path)
    if labels is None:  # nobody can tell what 0 means but the rows
        named = Teacher(model=str(folder), labels=("0", "1"))
        assert "the data's are 0, 1" in said
        said = refused(named, data, labels, tmp_path)
    assert remedied(said, folder, data, labels, tmp_path) > 0.7


def test_another_number_of_labels(folder: Path, data_folder: Path, tmp_path: Path) -> None:
    model = Pretrained(folder, "").model()
    config = model.config
    config.id2label = {0: "a", 1: "b", 2: "c"}
    type(model)(config).save_pretrained(folder)
    said = refused(Teacher(model=str(folder)), data_folder, None, tmp_path)
    assert "the teacher's labels are a, b, c; the data's are negative, positive. Their number differs" in said


# Quality --------------------------------------------------------------------------------------------------------------


def test_a_teacher_near_chance_is_refused() -> None:
    labels_N = np.arange(100) % 2
    guesses_NxC = np.eye(2)[np.arange(100) // 2 % 2]
    with pytest.raises(
        TeacherError, match=r"near chance \(0\.500 of the rows have one label\); at least 0\.550 is"
    ) as e:
        check_quality(Teacher(model="x"), guesses_NxC, labels_N, ["a", "b"])
    assert "Fine-tune it" in str(e.value)
    assert "task.labels" not in str(e.value)
    check_quality(Teacher(model="x", above_chance=0), np.eye(2)[labels_N], labels_N, ["a", "b"])


def test_always_the_most_frequent_label_is_chance() -> None:
    labels_N = (np.arange(100) < 10).astype(int)
    with pytest.raises(TeacherError, match=r"accuracy is 0\.900, near chance \(0\.900"):
        check_quality(Teacher(model="x"), np.tile([1.0, 0.0], (100, 1)), labels_N, ["a", "b"])


def test_the_mapping_of_three_labels_is_found() -> None:
    """The first output means c, the second a, the third b."""
    labels_N = np.arange(90) % 3
    logits_NxC = np.eye(3)[(labels_N + 1) % 3]
    with pytest.raises(TeacherError, match=r"would be 1\.000 if its outputs meant, in order, c,a,b"):
        check_quality(Teacher(model="x"), logits_NxC, labels_N, ["a", "b", "c"])


def test_two_exchanged_labels_of_many_are_found_though_the_teacher_is_above_chance() -> None:
    labels_N = np.arange(100) % 4
    logits_NxC = np.eye(4)[np.array([0, 1, 3, 2])[labels_N]]
    with pytest.raises(
        TeacherError, match=r"accuracy is 0\.500, but would be 1\.000 if .* in order, a,b,d,c"
    ) as caught:
        check_quality(Teacher(model="x"), logits_NxC, labels_N, list("abcd"))
    assert "chance" not in str(caught.value)
    check_quality(Teacher(model="x", training=Training()), logits_NxC, labels_N, list("abcd"))


def test_where_nearly_all_rows_have_one_label_a_good_teacher_is_taken() -> None:
    labels_N = (np.arange(1000) < 10).astype(int)
    check_quality(Teacher(model="x"), np.eye(2)[labels_N], labels_N, ["a", "b"])
    with pytest.raises(TeacherError, match=r"at least 0\.995 is asked for"):
        check_quality(Teacher(model="x"), np.tile([1.0, 0.0], (1000, 1)), labels_N, ["a", "b"])


@pytest.mark.parametrize("labels", [("NEGATIVE", "Positive"), ("LABEL_0", "LABEL_1")])
def test_labels_in_another_case_or_unnamed_are_those_of_the_data(
    labels: tuple[str, str], teacher: Pretrained, task: TextClassification, splits: Splits, tmp_path: Path
) -> None:
    settings = Teacher(model=str(teacher.folder), labels=labels)
    taken = obtain_source(settings, task, splits, StoragePaths(tmp_path), seed=0)
    assert torch.equal(taken.model().classifier.weight, teacher.model().classifier.weight)


def test_a_teacher_from_scratch_knows_the_words_of_both_texts(task: TextClassification, tmp_path: Path) -> None:
    rows = "".join(f"first {n},second{n % 7},{'good' if n % 2 else 'bad'}\n" for n in range(60))
    (tmp_path / "train.csv").write_text(f"text,other,label\n{rows}")
    pairs = task.model_copy(update={"pair": "other"})
    splits = load_splits(Data(source=str(tmp_path)), pairs)
    settings = Teacher(model=TINY, training=Training())
    tokenizer = obtain_source(settings, pairs, splits, StoragePaths(tmp_path / "storage"), seed=0).tokenizer()
    assert tokenizer.unk_token_id not in tokenizer("first 1", "second3")["input_ids"]
