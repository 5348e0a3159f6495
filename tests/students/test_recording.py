"""Recorded states are those of the layers, and a recorded model computes what it computed before."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from kdray.losses.states import Attention, Needs, States
from kdray.models.pretrained import outline
from kdray.students.convolutional import ConvolutionalStudent
from kdray.students.layers import transformer_layers
from kdray.students.recordable import Recordable
from kdray.students.recording import _RECORDERS, Recorder
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.students.student import Student
from kdray.students.transformer import TransformerStudent
from tests.models.families import IDS, LAYERS, random_model, tiny_config

MASK = (IDS != 0).long()
ALL = frozenset(range(LAYERS + 1))
WITH_ATTENTION = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "gpt2",
    "llama",
    "mobilebert",
    "modernbert",
    "qwen2",
    "roberta",
    "xlm-roberta",
)
CAUSAL = ("gpt2", "gpt_neo", "llama", "qwen2", "gemma2")
NORM_BEHIND = ("falcon", "gemma2", "gpt2", "gpt_neo", "llama", "modernbert", "qwen2")
"""Families with a norm behind the last layer, which transformers counts as a part of the last hidden states."""
WITHOUT_ATTENTION = (
    "big_bird",
    "convbert",
    "deberta",
    "deberta-v2",
    "falcon",
    "gemma2",
    "gpt_neo",
    "longformer",
    "mpnet",
)


def model_of(family: str, **settings: Any) -> PreTrainedModel:
    config = tiny_config(family)
    for name, value in settings.items():
        setattr(config, name, value)
    return random_model(config)


def run(model: Any, ids: Tensor = IDS, **settings: Any) -> Any:
    return model(input_ids=ids, attention_mask=(ids != 0).long(), **settings)


def record(model: PreTrainedModel, needs: Needs, ids: Tensor = IDS) -> tuple[Tensor, States]:
    with Recorder(model, transformer_layers(model), needs) as recorder:
        logits = run(model, ids).logits
        return logits, recorder.take()


def maps_of(attention: Attention) -> Tensor:
    """The shares of attention that this attention gives, with 0 where it is not allowed."""
    scores = attention.scaling * attention.queries_BxAxLxD @ attention.keys_BxAxLxD.mT
    if attention.allowed is not None:
        scores = scores.masked_fill(~attention.allowed, -torch.inf)
    return scores.softmax(dim=-1)


@pytest.mark.parametrize("family", sorted({*WITH_ATTENTION, *WITHOUT_ATTENTION}))
def test_hidden_states_are_those_of_transformers(family: str) -> None:
    model = model_of(family)
    expected = run(model, output_hidden_states=True).hidden_states
    _, states = record(model, Needs(hidden=ALL))
    assert set(states.hidden) == ALL
    for layer, hidden in states.hidden.items():
        if layer == LAYERS and family in NORM_BEHIND:
            assert not torch.equal(hidden, expected[layer])
        else:
            assert torch.equal(hidden, expected[layer])


@pytest.mark.parametrize("family", WITH_ATTENTION)
@pytest.mark.parametrize("ids", [IDS, IDS[:1]], ids=["padded", "full"])
def test_attention_is_that_of_the_model(family: str, ids: Tensor) -> None:
    """The recorded attention gives the maps that transformers' own eager function returns."""
    model = model_of(family)
    model.set_attn_implementation("eager")
    expected = run(model, ids, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    before = run(model, ids).logits
    logits, states = record(model, Needs(attention=ALL), ids)
    assert torch.equal(logits, before)
    assert set(states.attention) == ALL - {0}
    heads, size = expected[0].shape[1], states.attention[1].queries_BxAxLxD.shape[-1]
    is_token = ids != 0
    for layer, attention in states.attention.items():
        for each in (attention.queries_BxAxLxD, attention.keys_BxAxLxD, attention.values_BxAxLxD):
            assert each.shape == (len(ids), heads, ids.shape[1], size)
        own = maps_of(attention).transpose(1, 2)[is_token]
        assert torch.allclose(own, expected[layer - 1].transpose(1, 2)[is_token], atol=1e-5)


def test_values_are_what_attention_is_applied_to() -> None:
    model = model_of("bert")
    module = model.bert.encoder.layer[1].attention.self
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    _, states = record(model, Needs(attention=frozenset((2,))))
    hook.remove()
    attention = states.attention[2]
    own = (maps_of(attention) @ attention.values_BxAxLxD).transpose(1, 2).flatten(2)
    assert torch.allclose(own, outputs[0], atol=1e-5)


def test_local_attention_is_recorded_with_its_mask() -> None:
    model = model_of("modernbert", local_attention=2, layer_types=["full_attention"] + ["sliding_attention"] * 3)
    _, states = record(model, Needs(attention=ALL), IDS[:1])
    reach = states.attention[2].allowed
    assert reach is not None
    places = torch.arange(IDS.shape[1])
    assert torch.equal(reach[0, 0], (places[:, None] - places[None, :]).abs() <= 1)
    assert states.attention[1].allowed is None


@pytest.mark.parametrize("family", [*WITHOUT_ATTENTION, "doge", "minimax"])
def test_families_whose_attention_cannot_be_recorded(family: str) -> None:
    """Doge learns biases of its masks, some layers of MiniMax have linear attention."""
    model = model_of(family)
    before = run(model).logits
    recordable = Recordable.of(model)
    assert (recordable.hidden, recordable.attention, recordable.heads) == (True, {}, 0)
    logits, _ = record(model, Needs(hidden=ALL))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_families_whose_attention_can_be_recorded(family: str) -> None:
    model = model_of(family)
    recordable = Recordable.of(model)
    _, states = record(model, Needs(attention=ALL))
    queries = states.attention[1].queries_BxAxLxD
    assert (recordable.layers, recordable.hidden, recordable.heads) == (LAYERS, True, queries.shape[1])
    assert recordable.attention == dict.fromkeys(("queries", "keys", "values"), queries.shape[1] * queries.shape[3])


@pytest.mark.parametrize("family", ["bert", "convbert", "deberta-v2", "longformer", *CAUSAL])
def test_causal_models_are_known(family: str) -> None:
    assert Recordable.of(model_of(family)).is_causal == (family in CAUSAL)


@pytest.mark.parametrize("family", ["funnel", "xlm", "squeezebert", "xlnet"])
def test_layers_without_a_state_of_each_token(family: str) -> None:
    """Funnel shortens texts, the parts of XLM's layers stand in several lists, the others have another layout."""
    recordable = Recordable.of(model_of(family))
    assert not recordable.hidden
    assert not recordable.attention


def test_a_repeated_module_is_several_layers() -> None:
    model = model_of("albert")
    layers = transformer_layers(model)
    assert len(layers) == LAYERS
    assert len(set(layers)) == 1
    _, states = record(model, Needs(hidden=frozenset((1, 3)), attention=frozenset((2,))))
    assert set(states.hidden) == {1, 3}
    assert set(states.attention) == {2}
    assert not torch.equal(states.hidden[1], states.hidden[3])


def test_groups_of_repeated_modules_are_in_the_order_of_their_calls() -> None:
    model = model_of("albert", num_hidden_groups=2)
    first, second = model.albert.encoder.albert_layer_groups
    assert transformer_layers(model) == (first, first, second, second)


def test_the_eager_function_is_recorded_too() -> None:
    model = model_of("bert")
    model.set_attn_implementation("eager")
    before = run(model).logits
    logits, states = record(model, Needs(attention=ALL))
    assert torch.equal(logits, before)
    assert model.config._attn_implementation == "eager"
    allowed = states.attention[1].allowed
    assert allowed is not None
    assert torch.equal(allowed.expand(2, 1, 7, 7)[1, 0, 0], MASK[1].bool())


def test_causal_attention_without_a_mask() -> None:
    model = model_of("llama")
    _, states = record(model, Needs(attention=ALL), IDS[:1])
    allowed = states.attention[LAYERS].allowed
    assert allowed is not None
    assert torch.equal(allowed.expand(1, 1, 7, 7)[0, 0], torch.ones(7, 7, dtype=torch.bool).tril())


def test_shared_keys_are_repeated_for_each_head() -> None:
    model = model_of("llama")  # two heads share their keys
    _, states = record(model, Needs(attention=ALL))
    keys = states.attention[1].keys_BxAxLxD
    assert torch.equal(keys[:, 0], keys[:, 1])
    assert not torch.equal(*states.attention[1].queries_BxAxLxD.unbind(1))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_training_with_dropout_is_not_changed(family: str) -> None:
    model = model_of(family).train()

    def losses(needs: Needs | None) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        torch.manual_seed(7)
        logits = run(model).logits if needs is None else record(model, needs)[0]
        logits.square().sum().backward()
        return logits, {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    logits, gradients = losses(None)
    recorded, same = losses(Needs(ALL, ALL))
    assert torch.equal(logits, recorded)
    assert all(torch.equal(value, same[name]) for name, value in gradients.items())


def test_a_loss_of_states_has_gradients() -> None:
    model = model_of("bert").train()
    _, states = record(model, Needs(frozenset((2,)), frozenset((2,))))
    attention = states.attention[2]
    (states.hidden[2].square().mean() + (attention.queries_BxAxLxD @ attention.keys_BxAxLxD.mT).mean()).backward()
    layers = model.bert.encoder.layer
    assert layers[1].attention.self.query.weight.grad is not None
    assert layers[0].output.dense.weight.grad is not None
    assert layers[2].output.dense.weight.grad is None


def test_autocast_is_not_changed() -> None:
    model = model_of("bert")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = run(model).logits
        logits, states = record(model, Needs(ALL, ALL))
    assert torch.equal(logits, before)
    assert states.attention[1].queries_BxAxLxD.dtype == torch.bfloat16


def test_two_models_of_a_family_do_not_mix() -> None:
    student, teacher = model_of("bert"), model_of("bert", hidden_size=32, num_attention_heads=4)
    needs = Needs(ALL, ALL)
    alone = [record(model, needs)[1] for model in (student, teacher)]
    with (
        Recorder(student, transformer_layers(student), needs) as of_student,
        Recorder(teacher, transformer_layers(teacher), needs) as of_teacher,
    ):
        run(student)
        run(teacher)
        both = [of_student.take(), of_teacher.take()]
    for own, expected in zip(both, alone, strict=True):
        assert all(torch.equal(own.hidden[layer], expected.hidden[layer]) for layer in ALL)
        for layer in ALL - {0}:
            assert torch.equal(own.attention[layer].keys_BxAxLxD, expected.attention[layer].keys_BxAxLxD)


def test_models_that_share_a_configuration() -> None:
    config = tiny_config("bert")
    models = [random_model(config, seed) for seed in (0, 1)]
    with ExitStack() as stack:
        recorders = [
            stack.enter_context(Recorder(model, transformer_layers(model), Needs(attention=ALL))) for model in models
        ]
        for model in models:
            run(model)
        assert all(set(recorder.take().attention) == ALL - {0} for recorder in recorders)
    assert config._attn_implementation == "sdpa"


def test_several_recorders_of_a_model() -> None:
    model = model_of("bert")
    layers = transformer_layers(model)
    with Recorder(model, layers, Needs(attention=frozenset((1,)))) as first:
        with Recorder(model, layers, Needs(frozenset((2,)), frozenset((3,)))) as second:
            run(model)
            assert set(second.take().attention) == {3}
        assert set(first.take().attention) == {1}
        run(model)
        assert set(first.take().attention) == {1}
        assert second.take() == States()


def test_nothing_is_kept() -> None:
    model = model_of("bert")
    layers = transformer_layers(model)
    with Recorder(model, layers, Needs(ALL, ALL)) as recorder:
        run(model)
        run(model, IDS[:1, :3])
        states = recorder.take()
        assert all(hidden.shape[:2] == (1, 3) for hidden in states.hidden.values())
        assert recorder.take() == States()
        run(model)
    assert recorder.take() == States()
    assert not any(_RECORDERS.get(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = model_of("bert")
    model.save_pretrained(tmp_path / "before")
    recorder = Recorder(model, transformer_layers(model), Needs(ALL, ALL))

    def fail() -> None:
        with recorder:
            model.save_pretrained(tmp_path / "open")
            raise KeyError("an error in the training")

    with pytest.raises(KeyError):
        fail()
    model.save_pretrained(tmp_path / "after")
    assert model.config._attn_implementation == "sdpa"
    configs = [(tmp_path / name / "config.json").read_text() for name in ("before", "open", "after")]
    assert len(set(configs)) == 1
    assert "kdray" not in configs[0]


def test_a_step_that_fails_does_not_disturb_the_next_one() -> None:
    model = model_of("bert")
    with Recorder(model, transformer_layers(model), Needs(ALL, ALL)) as recorder:
        hook = model.bert.encoder.layer[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model)
        hook.remove()
        expected = run(model, output_hidden_states=True).hidden_states
        states = recorder.take()
    assert all(torch.equal(states.hidden[layer], expected[layer]) for layer in ALL)


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_model_in_distributed_data_parallel() -> None:
    model = model_of("bert").train()
    with Recorder(model, transformer_layers(model), Needs(ALL, ALL)) as recorder:
        wrapped = DistributedDataParallel(model)
        logits = run(wrapped).logits
        states = recorder.take()
        assert set(states.hidden) == ALL
        assert set(states.attention) == ALL - {0}
        (logits.sum() + states.hidden[LAYERS].sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


Build = Callable[[Student], PreTrainedModel]


@pytest.fixture
def build() -> Build:
    source = model_of("bert")
    return lambda student: student.build(source, seed=0)


@pytest.mark.parametrize(
    ("student", "layers", "widths"),
    [
        (TransformerStudent(depth=2), 2, (16, 16, 16)),
        (TransformerStudent(depth=2, hidden=8), 2, (8, 8, 8)),
        (RecurrentStudent(depth=2, width=6), 2, (16, 12, 12)),
        (RecurrentStudent(depth=1, width=6, cell="gru", pooling="attention"), 1, (16, 12)),
        (ConvolutionalStudent(depth=3, filters=10), 3, (10, 10, 10, 10)),
        (ConvolutionalStudent(), 0, (16,)),
        (StaticStudent(embedding_width=4), 0, (4,)),
    ],
    ids=lambda value: value.family if isinstance(value, Student) else None,
)
def test_the_layers_of_each_family(build: Build, student: Student, layers: int, widths: tuple[int, ...]) -> None:
    model = build(student)
    modules = student.inner_layers(model)
    assert len(modules) == layers
    with Recorder(model, modules, Needs(hidden=frozenset(range(layers + 1)))) as recorder:
        run(model)
        states = recorder.take()
    assert [states.hidden[layer].shape for layer in range(layers + 1)] == [(2, 7, width) for width in widths]
    shallow = student.build_outline(outline(tiny_config("bert")))
    assert len(student.inner_layers(shallow)) == layers


@pytest.mark.parametrize("student", [RecurrentStudent(depth=2, width=6), ConvolutionalStudent(depth=2, filters=8)])
def test_states_of_a_token_do_not_depend_on_padding(build: Build, student: Student) -> None:
    model = build(student)
    layers = student.inner_layers(model)
    with Recorder(model, layers, Needs(hidden=frozenset((1, 2)))) as recorder:
        run(model)
        padded = recorder.take()
        run(model, IDS[1:, :5])
        short = recorder.take()
    for layer in (1, 2):
        assert torch.allclose(padded.hidden[layer][1:, :5], short.hidden[layer], atol=1e-6)


def test_the_embeddings_of_a_student_without_layers(build: Build) -> None:
    model = build(StaticStudent())
    with Recorder(model, (), Needs(hidden=frozenset((0,)))) as recorder:
        run(model)
        states = recorder.take()
    assert torch.equal(states.hidden[0], model.get_input_embeddings()(IDS))
