"""Training with int8 in mind: the forward pass is that of the int8 file, and the student stays an ordinary student."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from kdray.errors import SpecError
from kdray.forms.graphs import write_graph
from kdray.forms.int8 import Int8Form
from kdray.forms.synthetic import synthetic_inputs
from kdray.losses.distillation import Distillation
from kdray.losses.objective import Objective
from kdray.losses.softmax import SOFTMAX
from kdray.networks.convolutional_model import ConvolutionalConfig, ConvolutionalForTokenClassification
from kdray.networks.recurrent_model import RecurrentConfig, RecurrentForSequenceClassification
from kdray.networks.static_model import StaticConfig, StaticForSequenceClassification
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.training.fit import TrainingPlan, fit
from kdray.training.quantising import Quantising, quantised_activation, quantised_weight
from kdray.training.settings import Training, check_quantised
from kdray.training.signal import LiveSignal
from kdray.training.trial import EvaluateStudent, Recipe, Trial, TrialInputs
from tests.models.tiny_bert import tiny_bert
from tests.training.two_workers import run_two_workers

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"vocab_size": 60, "embedding_width": 16, "num_labels": 3}
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
QUANTISED = {"training.quantised": "int8", "training.quantised_from": 0.5}


def albert() -> PreTrainedModel:
    """Two layers with the same weights, some too large for the exporter to fold, so that they stay in float32."""
    sizes = {"hidden_size": 96, "embedding_size": 16, "intermediate_size": 48, "num_attention_heads": 2}
    config = AlbertConfig(**sizes, vocab_size=60, num_hidden_layers=2, num_labels=3, initializer_range=0.3)
    return AlbertForSequenceClassification(config)


def gpt2() -> PreTrainedModel:
    """Its linear layers have transposed weights."""
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=60,
            n_embd=16,
            n_layer=2,
            n_head=2,
            num_labels=3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            initializer_range=0.5,
        )
    )


def recurrent(cell: str = "lstm") -> PreTrainedModel:
    return RecurrentForSequenceClassification(RecurrentConfig(cell=cell, **SIZES, width=12, num_layers=2))


def tagger() -> PreTrainedModel:
    """Its first product reads rows of the table, which are rounded once; its convolutions stay in float32."""
    return ConvolutionalForTokenClassification(ConvolutionalConfig(**SIZES, filters=12, num_blocks=2))


def static() -> PreTrainedModel:
    return StaticForSequenceClassification(StaticConfig(**SIZES, width=12))


def drawn(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model in evaluation mode, with biases, which are 0 in a new model."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def padded_inputs(model: PreTrainedModel, rows: int, length: int, padding: int) -> dict[str, Tensor]:
    """Examples of which the first one ends with so much padding."""
    inputs = synthetic_inputs(model, rows, length, CPU)
    if padding:
        inputs["input_ids"][0, -padding:] = inputs["attention_mask"][0, -padding:] = 0
    return inputs


@pytest.mark.parametrize("make", [tiny_bert, gpt2, albert, recurrent, tagger, static])
def test_the_forward_pass_is_that_of_the_int8_file(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = drawn(make)
    write_graph(model, ["input_ids", "attention_mask"], tmp_path / "model.onnx")
    form, quantising = Int8Form(), Quantising(model)
    file = form.open(form.write(tmp_path / "model.onnx"), 1)
    for inputs in (padded_inputs(model, 1, 5, 0), padded_inputs(model, 3, 9, 0), padded_inputs(model, 3, 9, 2)):
        is_token = inputs["attention_mask"].bool()
        with torch.inference_mode():
            expected, plain = file(**inputs).logits, model(**inputs).logits
            with quantising.forward():
                logits = model(**inputs).logits
        if logits.ndim == 3:
            expected, plain, logits = (each[is_token] for each in (expected, plain, logits))
        # Usually they are equal. One rounding to the other side, after float32 sums of another order, is allowed.
        assert (logits - expected).norm() < 0.1 * (plain - expected).norm()
        assert (plain - expected).norm() > 1e-3 * expected.norm()


def test_a_gru_computes_in_float32_as_in_the_file() -> None:
    model = drawn(lambda: recurrent("gru"))
    embeddings, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    with torch.inference_mode(), Quantising(model).forward():
        quantised = model.encoder(embeddings, mask)
    with torch.inference_mode():
        assert torch.equal(quantised, model.encoder(embeddings, mask))


def test_weights_have_seven_bits_and_one_scale_for_each_output() -> None:
    weight = torch.tensor([[1.0, -0.5, 0.004], [0.0, 0.0, 0.0], [-6.4, 0.05, 0.15]])
    whole, scale = quantised_weight(weight)
    assert whole.tolist() == [[64, -32, 0], [0, 0, 0], [-64, 0, 2]]  # a half goes to the even number
    assert scale[:, 0].tolist() == pytest.approx([1 / 64, 1, 0.1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 255.0, 10.4], [0, 255, 10]), ([-1.0, 1.55, 0.0], [-100, 155, 0]), ([-5.1], [-255]), ([0.0, 0.0], [0, 0])],
)
def test_activations_have_eight_bits_and_one_scale_with_an_exact_zero(values: list[float], expected: list[int]) -> None:
    whole, scale = quantised_activation(torch.tensor(values))
    assert whole.tolist() == expected
    assert (whole * scale).tolist() == pytest.approx(values, abs=float(scale) / 2)


def test_the_gradient_passes_the_rounding_and_reads_the_rounded_factors() -> None:
    """For y = x W with rounded x and W: dx = dy W, dW = x dy."""
    model = drawn(static)
    classifier, inputs = model.classifier, torch.randn(4, 12, requires_grad=True)
    upstream = torch.randn(4, 3)
    with Quantising(model).forward():
        outputs = classifier(inputs)
    (outputs * upstream).sum().backward()
    (rounded, scale), (weight, weight_scale) = quantised_activation(inputs), quantised_weight(classifier.weight)
    torch.testing.assert_close(outputs, rounded * scale @ (weight * weight_scale).T + classifier.bias)
    torch.testing.assert_close(inputs.grad, upstream @ (weight * weight_scale))
    torch.testing.assert_close(classifier.weight.grad, upstream.T @ (rounded * scale))
    assert classifier.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("make", [tiny_bert, gpt2, recurrent, tagger, static])
def test_all_gradients_are_close_to_those_of_float32(make: Callable[[], PreTrainedModel]) -> None:
    model = drawn(make)
    inputs, gradients = padded_inputs(model, 3, 9, 2), []
    for quantising in (None, Quantising(model)):
        model.zero_grad()
        if quantising is None:
            logits = model(**inputs).logits
        else:
            with quantising.forward():
                logits = model(**inputs).logits
        logits.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    plain, quantised = gradients
    assert plain.keys() == quantised.keys()
    flat = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in gradients]
    assert torch.cosine_similarity(*flat, dim=0) > 0.9
    assert not torch.equal(*flat)


def test_under_autocast_the_whole_numbers_stay_exact() -> None:
    model = drawn(tiny_bert)
    inputs = padded_inputs(model, 3, 9, 2)
    with torch.inference_mode(), Quantising(model).forward():
        exact = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_other_models_compute_in_float32_within_the_block() -> None:
    """Such as the teacher in the slot, and the projections of a loss."""
    student, teacher = drawn(tiny_bert), drawn(tiny_bert)
    inputs = padded_inputs(student, 2, 6, 1)
    with torch.inference_mode():
        expected = teacher(**inputs).logits
        with Quantising(student).forward():
            assert torch.equal(teacher(**inputs).logits, expected)
            assert not torch.equal(student(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("setting", "value"), [("quantised", "int4"), ("quantised_from", 1.0), ("quantised_from", -0.1)]
)
def test_bad_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"Training\.{setting}: got"):
        Training(**{setting: value})


@pytest.mark.parametrize(
    ("training", "searched", "is_refused"),
    [
        ({}, {}, False),
        ({"quantised": "int8", "quantised_from": 0.2}, {}, False),
        ({"quantised_from": 0.2}, {}, True),
        ({}, {"quantised_from": (0.1, 0.9)}, True),
        ({"quantised_from": 0.2}, {"quantised": ("no", "int8")}, False),
        ({"quantised": "int8"}, {"quantised": ("no",), "quantised_from": (0.1, 0.9)}, True),
    ],
)
def test_a_share_without_int8_is_refused(
    training: dict[str, Any], searched: dict[str, tuple[Any, ...]], is_refused: bool
) -> None:
    if not is_refused:
        check_quantised(Training(**training), searched)
        return
    with pytest.raises(SpecError, match=r"training\.quantised_from: it has no effect, .* set training\.quantised=int8"):
        check_quantised(Training(**training), searched)


def test_the_records_of_other_sweeps_do_not_have_the_settings() -> None:
    assert not {"quantised", "quantised_from"} & Training().model_dump().keys()
    assert Training(quantised="int8").model_dump()["quantised"] == "int8"
    steps = [Training(quantised="int8", quantised_from=0.5).is_quantised_at(step / 4) for step in range(5)]
    assert steps == [False, False, True, True, True]
    assert not Training().is_quantised_at(1.0)


def without_times(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


def run(recipe: Recipe, inputs: TrialInputs, folder: Path) -> tuple[list[Report], Path]:
    """The reports of a trial, and the folder of its student."""
    target = folder / "student"
    with LocalSlots() as slots:
        return without_times(list(slots.run(Trial(recipe, inputs, 0, target), "trial-0"))), target


def names_in(student: Path) -> list[str]:
    with safe_open(student / "model.safetensors", "pt") as file:
        return sorted(file.keys())


def test_a_student_computes_in_int8_from_a_share_of_the_training_on(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path
) -> None:
    """An epoch has 10 steps; the second epoch is in int8. The files are those of an ordinary student."""
    plain, student = run(recipe, trial_inputs, tmp_path / "plain")
    quantised, other = run(recipe.with_dotted(QUANTISED), trial_inputs, tmp_path / "quantised")
    assert quantised[0] == plain[0]
    assert quantised[1]["train_loss"] != plain[1]["train_loss"]
    assert quantised[1].keys() - plain[1].keys() == {"int8_accuracy", "int8_agreement"}
    assert 0.5 < quantised[1]["int8_agreement"] <= 1
    assert names_in(other) == names_in(student)
    assert json.loads((other / "config.json").read_text()) == json.loads((student / "config.json").read_text())
    assert {path.name for path in other.iterdir()} == {path.name for path in student.iterdir()}


def test_the_figures_of_int8_are_those_of_the_loaded_student(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path
) -> None:
    reports, folder = run(recipe.with_dotted({**QUANTISED, "training.quantised_from": 0}), trial_inputs, tmp_path)
    assert all("int8_accuracy" in report for report in reports)
    student = trial_inputs.source.model().from_pretrained(folder)
    rows = trial_inputs.rows("validation", Worker())
    right = 0
    with torch.inference_mode(), Quantising(student).forward():
        for start in range(0, len(rows), 32):
            batch = rows.batch(range(start, min(start + 32, len(rows))))
            right += int((student(**batch.inputs).logits.argmax(1) == torch.as_tensor(batch.gold)).sum())
    # The rows of a batch are other ones here, and they change the scales a little.
    assert right / len(rows) == pytest.approx(reports[-1]["int8_accuracy"], abs=0.03)
    with LocalSlots() as slots:
        (loaded,) = slots.run(EvaluateStudent(trial_inputs, trial_inputs.source, "validation"), "evaluate")
    assert "int8_accuracy" not in loaded


def test_inner_terms_compare_a_student_in_int8_with_its_teacher_in_float32(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path
) -> None:
    """A student with the weights of its teacher, and a learning rate near 0: without int8 the term is almost 0."""
    inputs = replace(trial_inputs, signal=LiveSignal(trial_inputs.source, "fp32"))
    still = {"training.learning_rate": 1e-30, "training.weight_decay": 0.0, "training.epochs": 1}
    student = {"student.depth": inputs.source.layers, "student.dropout": 0.0, "distillation.hidden_mse": 1.0}
    terms = []
    for form in ("no", "int8"):
        settings = {**still, **student, "training.quantised": form, "training.quantised_from": 0}
        (report,), _ = run(recipe.with_dotted(settings), inputs, tmp_path / form)
        terms.append(report["share_hidden_mse"] * report["train_loss"])
    assert terms[0] < 1e-4
    assert terms[1] > 5 * terms[0]


@pytest.mark.parametrize("cut_after", [1, 3])
def test_a_training_that_is_cut_off_continues_in_its_form(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path, cut_after: int
) -> None:
    changes = {**QUANTISED, "student.dropout": 0.1, "training.evaluations_per_epoch": 2}
    changed = recipe.with_dotted({**changes, "training.checkpoint_evaluations": 1})
    expected, uninterrupted = run(changed, trial_inputs, tmp_path / "uninterrupted")
    trial = Trial(changed, trial_inputs, 0, tmp_path / "interrupted" / "student")
    cut_off = trial(Worker())
    for _ in range(cut_after):
        next(cut_off)
    cut_off.close()
    assert without_times(list(trial(Worker()))) == expected
    files = [(folder / "model.safetensors").read_bytes() for folder in (uninterrupted, trial.target)]
    assert files[0] == files[1]


def _fit(inputs: TrialInputs, worker: Worker) -> tuple[list[Report], PreTrainedModel]:
    """Train a student without dropout in int8, in batches whose parts differ in size between two ranks."""
    recipe = Recipe().with_dotted({"student.depth": 2, "student.dropout": 0.0})
    model = recipe.student.build(inputs.source.model(), 0)
    plan = TrainingPlan(
        rows=inputs.rows("train", worker),
        training=Training(
            epochs=1, batch_size=33, learning_rate=1e-3, precision="fp32", quantised="int8", quantised_from=0
        ),
        objective=Objective(Distillation(), SOFTMAX),
        evaluate=lambda model, last: {},
        seed=0,
        quantising=Quantising(model),
    )
    return list(fit(model, plan, worker)), model


def _train_rank(worker: Worker, folder: Path, inputs: TrialInputs) -> None:
    """The main function of one process of a slot: train a student, and write its reports and weights to a file."""
    reports, model = _fit(inputs, worker)
    torch.save({"loss": reports[-1]["train_loss"], "weights": model.state_dict()}, folder / f"{worker.rank}.pt")


@pytest.mark.slow
def test_two_workers_train_one_student_in_int8(trial_inputs: TrialInputs, tmp_path: Path) -> None:
    """Each rank has the scales of its own rows, so the student is not exactly that of one worker."""
    (alone,), _ = _fit(trial_inputs, Worker())
    run_two_workers(_train_rank, tmp_path, trial_inputs)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["loss"] == pytest.approx(alone["train_loss"], rel=0.1)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


def test_a_teacher_is_not_trained_in_int8(trial_inputs: TrialInputs) -> None:
    rows = trial_inputs.rows("train", Worker())
    with pytest.raises(SpecError, match=r"training\.quantised: got 'int8', but only students .* teacher\.training"):
        TrainingPlan(rows, Training(quantised="int8"), Objective(Distillation(), SOFTMAX), lambda m, last: {}, 0)
