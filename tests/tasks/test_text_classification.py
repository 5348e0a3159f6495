"""Text classification: its settings, its metrics, and the labels of a model in its saved configuration."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoConfig, BertConfig, BertForSequenceClassification

from kdray.errors import SpecError
from kdray.models.fresh import word_tokenizer
from kdray.tasks.task import Outputs, Task
from kdray.tasks.text_classification import TextClassification

TASK: Task = TextClassification()


def values_of(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of these logits."""
    names = tuple("abc"[: logits.shape[1]])
    rows = SimpleNamespace(gold=labels, example_starts=np.arange(len(labels) + 1), labels=names)
    return TASK.values(Outputs(logits), rows)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with three labels, in half precision."""
    folder = tmp_path_factory.mktemp("model")
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=3
    )
    BertForSequenceClassification(config).half().save_pretrained(folder)
    word_tokenizer(["good bad"], 30, 16).save_pretrained(folder)
    return folder


def test_metrics_of_two_classes() -> None:
    logits = np.array([[2.0, 1], [0, 1], [0, 3], [1, 0]])
    metrics = values_of(logits, np.array([0, 1, 0, 0]))
    assert tuple(metrics) == TASK.metric_names(("no", "yes")) == TASK.metric_names(None)
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
    assert metrics["mcc"] == pytest.approx((2 * 1 - 1 * 0) / np.sqrt(2 * 3 * 1 * 2))


def test_metrics_of_three_classes() -> None:
    logits, labels = np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 1])
    assert values_of(logits, labels) == {
        "accuracy": 0.75,
        "macro_f1": f1_score(labels, [0, 1, 2, 2], average="macro"),
    }


def test_metrics_are_nan_if_an_output_is_nan() -> None:
    assert np.isnan(list(values_of(np.array([[np.nan, 0.0], [1, 0]]), np.array([0, 1])).values())).all()


def test_a_head_for_another_number_of_labels_is_drawn_at_random(saved: Path) -> None:
    assert TASK.model_labels(saved) == ("LABEL_0", "LABEL_1", "LABEL_2")
    model, random_weights = TASK.model(saved, ("a", "b", "c"))
    assert random_weights == ()
    assert model.dtype == torch.float32
    _, random_weights = TASK.model(saved, ("no", "yes"))
    assert random_weights == ("classifier.bias", "classifier.weight")


def test_labels_are_in_the_saved_config(saved: Path, tmp_path: Path) -> None:
    model, _ = TASK.model(saved, ("negative", "positive"))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.label2id == {"negative": 0, "positive": 1}
    assert TASK.model_labels(tmp_path) == ("negative", "positive")


def test_a_maximum_length_above_that_of_the_model_is_refused(saved: Path) -> None:
    tokenizer = TASK.tokenizer(saved)
    with pytest.raises(SpecError, match=r"task.max_length: got 17; this model takes at most 16 tokens"):
        TextClassification(max_length=17).encode(tokenizer, {"text": ["good"]})
    ids = TextClassification(max_length=16).encode(tokenizer, {"text": ["good " * 40, "bad"]}).inputs["input_ids"]
    assert len(ids[0]) == 16
    assert len(ids[1]) < 16


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SpecError, match="different columns"):
        TextClassification(text="a", pair="a")
    with pytest.raises(SpecError, match="at least two different names"):
        TextClassification(labels="yes,yes")
    assert TextClassification(labels="no,yes").labels == ("no", "yes")


def test_agreement_is_the_share_of_equal_classes() -> None:
    student = Outputs(np.array([[1.0, 0], [0, 1], [3, 2], [0, 1]]))
    teacher = Outputs(np.array([[9.0, 0], [0, 9], [2, 3], [0, 2]]))
    assert TASK.agreement(student, teacher) == 0.75
