"""The computed size is the file's size, multiply-adds follow the formula, and measuring does not change the model."""

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from kdray.errors import SpecError
from kdray.evaluation.measuring import (
    CPU_METRICS,
    PYTORCH_METRICS,
    Latency,
    count_multiply_adds,
    count_parameters,
    describe_conditions,
    hardware_name,
    measure_form,
    measure_latency,
    measure_model,
    measure_throughput,
    safetensors_size_mb,
    time_calls,
)
from tests.evaluation.layer_clock import layer_clock
from tests.models.tiny_bert import TINY, tiny_bert

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
CPU = torch.device("cpu")
QUICK = Latency(length=8, warmup=1, repeats=4, throughput_batch_size=3)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_bert()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_computed_size_is_the_size_of_the_saved_file(model, family, dtype, tmp_path):
    if family == "modernbert":
        model = ModernBertForSequenceClassification(ModernBertConfig(**TINY, **SPECIAL))
    model.to(dtype).save_pretrained(tmp_path)
    assert safetensors_size_mb(model) * 1e6 == pytest.approx((tmp_path / "model.safetensors").stat().st_size, abs=1e-6)


def test_a_shared_parameter_counts_once():
    layer = torch.nn.Linear(3, 4)
    assert count_parameters(torch.nn.Sequential(layer, torch.nn.Linear(4, 3, bias=False), layer)) == 16 + 12


def test_a_model_has_all_cost_metrics(model, monkeypatch):
    with layer_clock(monkeypatch):
        costs = measure_model(model, QUICK, CPU)
    assert tuple(costs) == PYTORCH_METRICS
    assert all(costs[cpu] == costs[name] for name, cpu in CPU_METRICS.items())
    linear_layers = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert costs["latency_ms"] == costs["latency_p95_ms"] == pytest.approx(1.01 * linear_layers)
    assert costs["throughput_per_s"] == pytest.approx(3 * 1000 / (1.03 * linear_layers))
    assert costs["multiply_adds"] == count_multiply_adds(model, 8)
    assert costs["parameters"] == count_parameters(model)


def test_multiply_adds_of_relative_attention_are_counted():
    """DeBERTa gives its layers a parameter as an input, which the counter of torch hooks into if it has a gradient."""
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
    model = DebertaV2ForSequenceClassification(DebertaV2Config(**TINY, **relative)).eval()
    model.deberta.embeddings.requires_grad_(False)
    with_gradients = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    absolute = DebertaV2ForSequenceClassification(DebertaV2Config(**TINY)).eval()
    assert count_multiply_adds(model, 8) > count_multiply_adds(absolute, 8) > 0
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == with_gradients


def test_beside_a_gpu_the_cpu_is_measured_too(model, monkeypatch):
    measured = {"cuda": dict.fromkeys(CPU_METRICS, 1.0), "cpu": dict.fromkeys(CPU_METRICS, 30.0)}
    monkeypatch.setattr(
        "kdray.evaluation.measuring._ModelTimer",
        lambda model, latency, device: SimpleNamespace(model=model, measure=lambda: measured[device.type]),
    )
    costs = measure_model(model, QUICK, torch.device("cuda"))
    assert [costs[name] for pair in CPU_METRICS.items() for name in pair] == [1.0, 30.0] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_and_its_cpu_have_different_costs(model):
    costs = measure_model(model, QUICK, torch.device("cuda"))
    assert tuple(costs) == PYTORCH_METRICS
    assert all(costs[name] != costs[cpu] for name, cpu in CPU_METRICS.items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [1, 8, 13])
def test_multiply_adds_follow_the_formula(attention, length):
    config = BertConfig(**TINY, attn_implementation=attention)
    model = BertForSequenceClassification(config).train()
    width, inner, classes = 16, 24, 3
    layer = length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width
    assert count_multiply_adds(model, length) == 2 * layer + width**2 + width * classes
    assert model.training


def test_the_conditions_of_a_measurement_are_described():
    assert describe_conditions(Latency(), "some processor") == (
        "latency of 1 example a pass, throughput of 32; 64 tokens each, 1 thread, float32, some processor"
    )
    assert describe_conditions(Latency(), "some processor", cpu="some processor") == describe_conditions(
        Latency(), "some processor"
    )
    assert describe_conditions(Latency(), "some GPU", cpu="some processor").endswith(
        "float32, some GPU (CPU: some processor)"
    )
    assert "of 2 examples a pass" in describe_conditions(Latency(batch_size=2), "x")


def test_times_are_in_milliseconds_and_throughput_in_examples_per_second():
    # A busy machine makes a sleep longer, never shorter.
    result = time_calls(lambda: time.sleep(0.002), Latency(warmup=1, repeats=5))
    assert 2 <= result.p50 <= result.p95
    assert 0 < measure_throughput(lambda: time.sleep(0.01), 4) <= 400


def test_latency_grows_with_the_number_of_layers(monkeypatch):
    models = [BertForSequenceClassification(BertConfig(**TINY | {"num_hidden_layers": n})) for n in (1, 2, 12)]
    with layer_clock(monkeypatch):
        one, two, twelve = (measure_latency(model, QUICK, CPU).p50 for model in models)
    assert twelve - one == pytest.approx(11 * (two - one))
    assert two > one


def test_measuring_does_not_change_the_model_or_the_threads(model):
    model.train().to(torch.bfloat16)
    threads = torch.get_num_threads()
    seen: list[tuple[int, torch.Size, bool]] = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((torch.get_num_threads(), inputs[0].shape, module.training))

    model.bert.encoder.layer[0].register_forward_pre_hook(watch)
    measure_latency(model, Latency(batch_size=2, length=8, threads=2, warmup=1, repeats=3), CPU)
    assert seen == [(2, (2, 8, 16), False)] * 4
    assert torch.get_num_threads() == threads
    assert model.training
    assert model.dtype == torch.bfloat16


def test_gpt2_is_measured_up_to_its_last_position():
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12))
    with pytest.raises(SpecError, match=r"latency\.length: got 13, but this gpt2 model reads at most 12 tokens"):
        measure_latency(model, Latency(length=13, warmup=0, repeats=1), CPU)


def test_roberta_is_measured_up_to_its_last_position():
    model = RobertaForSequenceClassification(RobertaConfig(**TINY))
    assert measure_latency(model, Latency(length=38, warmup=0, repeats=1), CPU).p50 > 0
    with pytest.raises(SpecError, match=r"latency\.length: got 39, but this roberta model reads at most 38 tokens"):
        measure_latency(model, Latency(length=39), CPU)


def test_hardware_has_a_name():
    assert hardware_name() == hardware_name(CPU) != ""


@pytest.mark.parametrize("name", ["pytorch", "form"])
def test_a_language_model_gives_few_logits_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A pass over 32 examples has several parts, and is a pass over 32 examples."""
    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config).eval()
    latency = Latency(length=16, warmup=1, repeats=2, throughput_batch_size=32)
    examples: list[int] = []
    model.register_forward_pre_hook(
        lambda module, arguments, inputs: examples.append(len(inputs["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr("kdray.evaluation.measuring.LOGITS_AT_ONCE", 10 * 16 * 50)
    monkeypatch.setattr("kdray.evaluation.measuring.THROUGHPUT_CALLS", 1)
    if name == "form":
        measure_form(model, model, latency)
    else:
        measure_model(model, latency, torch.device("cpu"))
    assert examples[:3] == [1, 1, 1]  # the passes of the latency
    assert examples[3:11] == [10, 10, 10, 2] * 2
