"""A batch of models computes what each model computes alone, with the same dropout, for many architectures."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModelForSequenceClassification, BertConfig, DebertaV2Config, DistilBertConfig

from kdray.networks.convolutional_model import ConvolutionalConfig, ConvolutionalForSequenceClassification
from kdray.networks.recurrent_model import RecurrentConfig, RecurrentForSequenceClassification
from kdray.training.fused_model import StackedModel, problem_of, unused_weights

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {"vocab_size": 50, "embedding_width": 16, "dropout": 0.1}


def make(name: str) -> nn.Module:
    """A small model with dropout and random weights."""
    match name:
        case "bert":
            return AutoModelForSequenceClassification.from_config(BertConfig(**SIZES))
        case "albert":
            return AutoModelForSequenceClassification.from_config(
                AlbertConfig(**SIZES, embedding_size=8, classifier_dropout_prob=0.1)
            )
        case "distilbert":
            config = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
            return AutoModelForSequenceClassification.from_config(config)
        case "deberta":
            return AutoModelForSequenceClassification.from_config(DebertaV2Config(**SIZES))
        case "convolutional":
            return ConvolutionalForSequenceClassification(ConvolutionalConfig(**SMALL, filters=8, num_labels=2))
        case _:
            return RecurrentForSequenceClassification(RecurrentConfig(**SMALL, width=8, num_labels=2))


@dataclass(frozen=True)
class Texts:
    inputs: dict[str, Tensor]

    def answers(self, logits: Tensor) -> Tensor:
        return logits


def texts() -> Texts:
    """Three texts, one of them with padding."""
    ids = torch.randint(1, 50, (3, 6), generator=torch.Generator().manual_seed(0))
    ids[1, 4:] = 0
    return Texts({"input_ids": ids, "attention_mask": (ids > 0).long()})


@pytest.mark.parametrize("name", ["bert", "albert", "distilbert", "deberta", "convolutional"])
def test_outputs_and_gradients_are_those_of_each_model(name: str) -> None:
    models, batch = [make(name).train() for _ in range(2)], texts()
    assert problem_of(models[0], batch) == ""
    unused = unused_weights(models[0], batch)
    named = [{n: weight for n, weight in model.named_parameters() if n not in unused} for model in models]
    weights = {n: torch.stack([each[n].detach() for each in named]).requires_grad_() for n in named[0]}
    gradients = {n: torch.zeros_like(weight) for n, weight in weights.items()}
    stacked = StackedModel(models[0], weights, gradients)
    torch.manual_seed(1)
    outputs_NxAxC = stacked.outputs(batch, None)
    stacked.add_gradients(outputs_NxAxC.square().sum())
    for number, model in enumerate(models):
        torch.manual_seed(1)
        expected_AxC = model(**batch.inputs).logits
        torch.testing.assert_close(outputs_NxAxC[number], expected_AxC)
        expected_AxC.square().sum().backward()
        for n, weight in named[number].items():
            torch.testing.assert_close(gradients[n][number], weight.grad, rtol=1e-4, atol=1e-6)


def test_a_model_that_pytorch_cannot_compute_so_is_left_alone() -> None:
    assert "PyTorch cannot compute it so" in problem_of(make("recurrent"), texts())
