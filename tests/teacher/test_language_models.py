"""Which models may teach a language model, and the message for one that is near chance."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kdray.errors import TeacherError
from kdray.losses.top_k import TopK
from kdray.models.pretrained import outline
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.heads import HEADS
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.task import Outputs, Task
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.labels import check_head, check_labels
from kdray.teacher.teacher import Teacher, check_quality
from tests.models.language_models import language_config

CLASSIFIER = AutoModelForSequenceClassification
TASKS: dict[str, Task] = {"masked": MaskedLM(block=16), "causal": CausalLM(block=16), "labels": TextClassification()}


def config_folder(family: str, head: Any, folder: Path) -> Path:
    """A folder with the configuration that a saved model of this family with this head has."""
    config = language_config(family)
    config.architectures = [type(outline(config, head)).__name__]
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "head", "task", "message"),
    [
        ("bert", CLASSIFIER, "masked", r"a model for text classification \(BertForSequenceClassification with 2 out"),
        ("gpt2", CLASSIFIER, "causal", r"a model for text classification \(GPT2ForSequenceClassification with 2 out"),
        ("bert", HEADS["ForMaskedLM"], "labels", r"for masked lm \(BertForMaskedLM with the outputs of a vocabulary\)"),
        ("gpt2", HEADS["ForCausalLM"], "labels", r"for causal lm \(GPT2LMHeadModel with the outputs of a vocabulary\)"),
        ("bert", HEADS["ForMaskedLM"], "causal", r"for masked lm .*--set task\.kind=masked_lm"),
        ("gpt2", HEADS["ForCausalLM"], "masked", r"for causal lm .*--set task\.kind=causal_lm"),
    ],
)
def test_a_teacher_with_another_head_is_refused(
    family: str, head: Any, task: str, message: str, tmp_path: Path
) -> None:
    config = language_config(family)
    assert config.vocab_size == 100
    with pytest.raises(TeacherError, match=message):
        check_head(TASKS[task], config_folder(family, head, tmp_path), ())


@pytest.mark.parametrize(
    ("family", "head", "task"),
    [("bert", "ForMaskedLM", "masked"), ("gpt2", "ForCausalLM", "causal"), ("llama", "ForCausalLM", "causal")],
)
def test_a_teacher_with_the_head_of_the_task_is_accepted(family: str, head: str, task: str, tmp_path: Path) -> None:
    folder = config_folder(family, HEADS[head], tmp_path)
    check_head(TASKS[task], folder, ())
    check_labels((), None, TASKS[task], folder)


def outputs_of(logits_AxV: torch.Tensor, gold_A: torch.Tensor) -> tuple[Outputs, Any]:
    """What is kept of these logits, and rows whose tokens are those."""
    gold = gold_A.numpy()
    rows = SimpleNamespace(gold=gold, example_starts=np.arange(len(gold) + 1), labels=())
    return Outputs(TopK.of_logits(logits_AxV, gold_A, 5).rows().numpy()), rows


@pytest.mark.parametrize(("scale", "place"), [(0.0, "worse than chance"), (0.05, "near chance")])
def test_a_teacher_whose_perplexity_is_near_chance_is_refused(scale: float, place: str) -> None:
    gold_A = torch.arange(400) % 8
    vocabulary = 50 if not scale else 8
    logits_AxV = scale * torch.nn.functional.one_hot(gold_A, vocabulary).float()
    outputs, rows = outputs_of(logits_AxV, gold_A)
    with pytest.raises(TeacherError) as caught:
        check_quality(Teacher(model="x"), TASKS["masked"], outputs, rows)
    message = str(caught.value)
    assert f"validation perplexity is {'7.659' if scale else '50.000'}, {place} (8.000 for answers" in message
    assert "that do not depend on the text); at most 7.600 is required" in message
    assert "Fine-tune it (longer), or give a teacher of this task." in message


def test_a_teacher_that_knows_the_text_is_accepted() -> None:
    gold_A = torch.arange(400) % 8
    outputs, rows = outputs_of(3.0 * torch.nn.functional.one_hot(gold_A, 8).float(), gold_A)
    check_quality(Teacher(model="x"), TASKS["masked"], outputs, rows)
