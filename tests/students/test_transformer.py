"""Students of all families: plain transformers loads a saved student and computes the same logits."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EsmConfig,
    FunnelConfig,
    GPT2Config,
    GPTNeoConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
    XLMConfig,
)

from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import outline
from kdray.students.transformer import TransformerStudent
from tests.models.families import random_model

LAYERS = 4
WIDE = {"vocab_size": 64, "max_position_embeddings": 32, "id2label": {0: "bad", 1: "fair", 2: "good"}}
TINY = {**WIDE, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
RELATIVE = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c"]}
FAMILIES: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**TINY),
    "roberta": RobertaConfig(**TINY),
    "distilbert": DistilBertConfig(**WIDE, dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=24),
    "electra": ElectraConfig(**TINY, embedding_size=8),
    "mpnet": MPNetConfig(**TINY),
    "deberta-v2": DebertaV2Config(**TINY, **RELATIVE, conv_kernel_size=3, position_biased_input=False),
    "modernbert": ModernBertConfig(**TINY, **SPECIAL, local_attention=4),
    "xlm": XLMConfig(**{**WIDE, "n_words": 64}, emb_dim=16, n_layers=LAYERS, n_heads=2, pad_token_id=0),
    "qwen3": Qwen3Config(**TINY, head_dim=8, num_key_value_heads=1, pad_token_id=0),
    "gpt2": GPT2Config(**WIDE, n_embd=16, n_layer=LAYERS, n_head=2, pad_token_id=0),
    "longformer": LongformerConfig(**TINY, attention_window=[4, 6, 4, 6]),
    "smollm3": SmolLM3Config(**TINY, num_key_value_heads=1, pad_token_id=0, no_rope_layers=[1, 1, 1, 0]),
}


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 33, 7, 8, 2], [1, 40, 41, 42, 2, 0, 0]])
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=(ids != 0).long()).logits


@pytest.fixture(params=FAMILIES)
def source(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(FAMILIES[request.param])


@pytest.mark.parametrize("layers", ["evenly", "first", "last", "random"])
def test_a_saved_student_is_the_same_when_it_is_loaded(source, layers, tmp_path):
    student = TransformerStudent(depth=2, layers=layers, dropout=0.0).build(source, seed=1)
    student.save_pretrained(tmp_path)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(logits(loaded.eval()), logits(student))
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 2
    assert loaded.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert torch.isfinite(logits(student)).all()


def test_a_student_of_full_depth_is_the_source(source):
    assert torch.equal(logits(TransformerStudent().build(source, seed=0)), logits(source))


def test_layers_first_gives_the_source_without_its_last_layers(source):
    student = TransformerStudent(depth=1, layers="first").build(source, seed=0)
    student_weights, source_weights = student.state_dict(), source.state_dict()
    assert len(student_weights) < len(source_weights)
    assert all(torch.equal(tensor, source_weights[name]) for name, tensor in student_weights.items())


def test_training_a_student_does_not_change_its_source(source):
    weights = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    config = source.config.to_dict()
    student = TransformerStudent(depth=2, dropout=0.3).build(source, seed=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in source.state_dict().items())
    assert source.config.to_dict() == config


def test_layers_have_the_order_of_the_source():
    source = random_model(FAMILIES["bert"])
    student = TransformerStudent(depth=2, layers="last").build(source, seed=0)
    weights = [layer.output.dense.weight for layer in student.bert.encoder.layer]
    expected = [layer.output.dense.weight for layer in source.bert.encoder.layer[2:]]
    assert all(torch.equal(weight, other) for weight, other in zip(weights, expected, strict=True))


def test_modernbert_layers_keep_their_kind_of_attention():
    source = random_model(FAMILIES["modernbert"])
    student = TransformerStudent(depth=2, layers="last").build(source, seed=0)
    assert student.config.layer_types == source.config.layer_types[2:] == ["sliding_attention", "full_attention"]
    assert [layer.attention_type for layer in student.model.layers] == student.config.layer_types


def test_random_weights_depend_on_the_seed_only():
    source, settings = random_model(FAMILIES["bert"]), TransformerStudent(depth=2, layers="random")
    state = torch.get_rng_state()
    first = settings.build(source, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = settings.build(source, seed=1), settings.build(source, seed=2)
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert not torch.equal(first.bert.embeddings.word_embeddings.weight, source.bert.embeddings.word_embeddings.weight)


def test_a_half_precision_source_gives_a_float32_student(tmp_path):
    student = TransformerStudent(depth=1).build(random_model(FAMILIES["bert"]).to(torch.bfloat16), seed=0)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    student.save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).dtype == torch.float32


def test_a_frozen_source_gives_a_student_with_gradients():
    student = TransformerStudent(depth=1).build(random_model(FAMILIES["bert"]).requires_grad_(False), seed=0)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("family", ["distilbert", "gpt2"])
def test_dropout_sets_every_probability(family):
    student = TransformerStudent(depth=1, dropout=0.25).build(random_model(FAMILIES[family]), seed=0)
    probabilities = {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)}
    assert probabilities == {0.25}


def test_settings_with_one_entry_for_each_layer_follow_the_layers():
    student = TransformerStudent(depth=2, layers="evenly").build(random_model(FAMILIES["smollm3"]), seed=0)
    assert student.config.no_rope_layers == [1, 0]
    student = TransformerStudent(depth=2, layers="last").build(random_model(FAMILIES["longformer"]), seed=0)
    assert student.config.attention_window == [4, 6]


def test_dropout_is_in_the_configuration():
    student = TransformerStudent(depth=1, dropout=0.25).build(random_model(FAMILIES["distilbert"]), seed=0)
    assert student.config.attention_dropout == student.config.seq_classif_dropout == 0.25


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"depth": 6}, (0, 2, 4, 7, 9, 11)),
        ({"depth": 2}, (0, 11)),
        ({"depth": 1}, (0,)),
        ({"depth": 2, "layers": "first"}, (0, 1)),
        ({"depth": 2, "layers": "last"}, (10, 11)),
        ({}, tuple(range(12))),
    ],
)
def test_chosen_layers(settings, expected):
    assert TransformerStudent(**settings).chosen_layers(12) == expected


@given(st.integers(1, 60), st.data(), st.sampled_from(["evenly", "first", "last", "random"]))
def test_chosen_layers_are_distinct_and_in_order(source_layers, data, layers):
    depth = data.draw(st.integers(1, source_layers))
    chosen = TransformerStudent(depth=depth, layers=layers).chosen_layers(source_layers)
    assert len(set(chosen)) == depth
    assert list(chosen) == sorted(chosen)
    assert 0 <= chosen[0] <= chosen[-1] < source_layers


BERT_BASE = SimpleNamespace(layers=12)
"""A source of which only the number of layers is known."""


def test_the_architecture_depends_on_the_depth_only():
    same = [TransformerStudent(depth=12), TransformerStudent(), TransformerStudent(layers="last", dropout=0.1)]
    assert len({str(student.architecture(BERT_BASE)) for student in same}) == 1
    assert TransformerStudent(depth=2).architecture(BERT_BASE) != TransformerStudent(depth=3).architecture(BERT_BASE)


def test_a_depth_that_the_source_does_not_have_is_refused():
    with pytest.raises(SpecError, match=r"student\.depth: got 5.*allowed are 1 to 4"):
        TransformerStudent(depth=5).build(random_model(FAMILIES["bert"]), seed=0)


@pytest.mark.parametrize(("name", "value"), [("depth", 0), ("dropout", 1.0), ("layers", "middle")])
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(SpecError, match=rf"TransformerStudent\.{name}: got"):
        TransformerStudent(**{name: value})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            BartConfig(**WIDE, d_model=16, encoder_layers=4, decoder_layers=4, encoder_ffn_dim=16, decoder_ffn_dim=16),
            "its layers are not one stack with weights of their own",
        ),
        (FunnelConfig(**WIDE, block_sizes=[1, 1, 1], d_model=16, n_head=2, d_head=8, d_inner=24), "stand in blocks"),
        (EsmConfig(**TINY, pad_token_id=0, mask_token_id=1), r"layers \(0, 3\) of it do not make a model"),
    ],
    ids=["bart", "funnel", "esm"],
)
def test_a_source_that_no_student_can_be_built_from_is_refused(config, reason):
    with pytest.raises(TeacherError, match=f"{config.model_type} model cannot be made shallower.*{reason}"):
        TransformerStudent(depth=2).build(random_model(config), seed=0)


# Layers that are repeated ---------------------------------------------------------------------------------------------


def albert(groups: int) -> PreTrainedModel:
    """An ALBERT of four layers, which are as many groups repeated equally often."""
    return random_model(AlbertConfig(**TINY, embedding_size=8, num_hidden_groups=groups))


def layer_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The module that ALBERT runs as each of its layers, in order."""
    ran: list[torch.nn.Module] = []
    groups = model.albert.encoder.albert_layer_groups
    hooks = [group.register_forward_hook(lambda module, *args: ran.append(module)) for group in groups]
    logits(model)
    for hook in hooks:
        hook.remove()
    return ran


@pytest.mark.parametrize("layers", ["evenly", "first", "last"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_student_of_albert_repeats_its_layer_less_often(depth, layers, tmp_path):
    source = albert(groups=1)
    student = TransformerStudent(depth=depth, layers=layers).build(source, seed=0)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in student.state_dict().items())
    assert len(layer_modules(student)) == depth
    assert torch.equal(logits(student), logits(source)) == (depth == 4)
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()), logits(student))


@pytest.mark.parametrize(
    ("depth", "layers", "groups"),
    [(2, "first", [0]), (2, "last", [1]), (2, "evenly", [0, 1]), (1, "last", [1]), (4, "evenly", [0, 1])],
)
def test_a_student_of_albert_has_the_groups_of_its_layers(depth, layers, groups):
    source = albert(groups=2)
    student = TransformerStudent(depth=depth, layers=layers).build(source, seed=0)
    expected = [source.albert.encoder.albert_layer_groups[group].state_dict() for group in groups]
    found = [group.state_dict() for group in student.albert.encoder.albert_layer_groups]
    assert len(found) == len(expected)
    for weights, other in zip(found, expected, strict=True):
        assert all(torch.equal(weights[name], other[name]) for name in other)
    assert len(layer_modules(student)) == depth


def test_layers_whose_groups_cannot_be_repeated_equally_often_are_refused():
    """Layers 1, 2 and 3 of 0 0 1 1: the groups 0 1 1, which transformers would take for 0 0 1."""
    with pytest.raises(TeacherError, match=r"layers \(1, 2, 3\) of this albert model with 2 groups .* another depth"):
        TransformerStudent(depth=3, layers="last").build(albert(groups=2), seed=0)


def test_the_patterns_of_gpt_neo_follow_the_layers():
    config = GPTNeoConfig(
        **WIDE, hidden_size=16, num_layers=4, num_heads=2, attention_types=[[["global", "local"], 2]], pad_token_id=0
    )
    student = TransformerStudent(depth=2, layers="evenly").build(random_model(config), seed=0)
    assert student.config.attention_layers == ["global", "local"]
    assert TransformerStudent(depth=1, layers="last").build(random_model(config), 0).config.attention_layers == [
        "local"
    ]


def test_an_outline_has_the_shapes_of_the_student_and_no_memory(source):
    settings = TransformerStudent(depth=2)
    outlined, student = settings.build_outline(outline(source.config)), settings.build(source, seed=0)
    assert {name: tensor.shape for name, tensor in outlined.state_dict().items()} == {
        name: tensor.shape for name, tensor in student.state_dict().items()
    }
    assert {parameter.device.type for parameter in outlined.parameters()} == {"meta"}
