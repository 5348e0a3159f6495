"""Recurrent, convolutional and static students: built from a source, saved, measured, exported, and refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AlbertConfig,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    XLNetConfig,
)

from kdray.errors import SpecError, TeacherError
from kdray.evaluation.measuring import count_multiply_adds, safetensors_size_mb
from kdray.forms.graphs import write_graph
from kdray.forms.int8 import write_int8
from kdray.forms.onnx_model import OnnxModel
from kdray.losses.distribution import is_new, output_layer
from kdray.models.fresh import FreshTransformer, word_tokenizer
from kdray.models.pretrained import Pretrained, outline, save_model
from kdray.networks.recurrent_model import reversed_places
from kdray.students.convolutional import ConvolutionalStudent
from kdray.students.embedding_tables import narrow_table
from kdray.students.encoders import EncoderStudent
from kdray.students.kinds import student_of
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.students.transformer import TransformerStudent
from kdray.tasks.regression import Regression
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification
from tests.models.families import random_model
from tests.models.tiny_bert import TINY

WIDTH = TINY["hidden_size"]
LENGTHS = (9, 5, 1, 7)
"""The tokens of each text of the batch below."""
CLASSIFIERS: dict[str, EncoderStudent] = {
    "lstm": RecurrentStudent(width=12),
    "lstm_last": RecurrentStudent(width=12, depth=2, pooling="last", embedding_width=5),
    "gru_attention": RecurrentStudent(cell="gru", width=12, depth=2, pooling="attention"),
    "convolutional": ConvolutionalStudent(filters=6),
    "deep_convolutional": ConvolutionalStudent(filters=6, depth=5, kernel=5, widths=(1, 2)),
    "static": StaticStudent(width=12, depth=2),
    "static_mean": StaticStudent(weighted=False, depth=0, embeddings="drawn", embedding_width=20),
}
TAGGERS: dict[str, EncoderStudent] = {
    "lstm": RecurrentStudent(width=12, depth=2),
    "gru": RecurrentStudent(cell="gru", width=12, embedding_width=5),
    "convolutional": ConvolutionalStudent(filters=6, depth=5),
}
CASES = [
    *(pytest.param(student, "text", id=name) for name, student in CLASSIFIERS.items()),
    *(pytest.param(student, "words", id=f"{name}_tagger") for name, student in TAGGERS.items()),
]
every_student = pytest.mark.parametrize(("student", "answers"), CASES)


@pytest.fixture(scope="module")
def sources() -> dict[str, PreTrainedModel]:
    """A classifier and a tagger. The embeddings are so large that different texts have different answers."""
    torch.manual_seed(0)
    config = BertConfig(**TINY, initializer_range=0.5)
    return {"text": BertForSequenceClassification(config).eval(), "words": BertForTokenClassification(config).eval()}


def batch(padding: int = 0, other: int = 0) -> tuple[Tensor, Tensor]:
    """The ids and the mask of four texts; `padding` further places, all of them with the token `other`."""
    ids = torch.randint(1, 50, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask.bool(), ids, other)
    further = torch.full((len(LENGTHS), padding), other)
    return torch.cat([ids, further], dim=1), torch.cat([mask, torch.zeros_like(further)], dim=1)


def answers_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The logits of all answers: of the texts, or of their tokens."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask.bool()] if logits.ndim == 3 else logits


# Building -------------------------------------------------------------------------------------------------------------


@every_student
def test_a_student_has_the_outputs_and_the_words_of_its_source(student, answers, sources):
    source = sources[answers]
    built = student.build(source, seed=1)
    assert built.config.id2label == source.config.id2label
    assert built.config.vocab_size == source.config.vocab_size
    assert answers_of(built, *batch()).shape == (4 if answers == "text" else sum(LENGTHS), 3)
    assert not built.training
    assert all(parameter.requires_grad for parameter in built.parameters())
    assert len(built.get_input_embeddings().weight) == source.config.vocab_size


@every_student
def test_the_seed_decides_the_drawn_weights(student, answers, sources):
    state = torch.get_rng_state()
    first = student.build(sources[answers], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (student.build(sources[answers], seed=seed) for seed in (1, 2))
    assert torch.equal(answers_of(first, *batch()), answers_of(again, *batch()))
    assert not torch.equal(answers_of(first, *batch()), answers_of(other, *batch()))


@every_student
def test_padding_and_other_texts_of_the_batch_change_no_answer(student, answers, sources):
    model = student.build(sources[answers], seed=1)
    expected = answers_of(model, *batch())
    # The tokens of the padding have no influence at all; another number of them changes how kernels round.
    assert torch.equal(answers_of(model, *batch(other=7)), expected)
    torch.testing.assert_close(answers_of(model, *batch(padding=6, other=9)), expected, rtol=1e-5, atol=2e-6)
    ids, mask = batch()
    alone = [answers_of(model, ids[[row], :length], mask[[row], :length]) for row, length in enumerate(LENGTHS)]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-5, atol=2e-6)


@every_student
def test_every_token_of_a_text_matters(student, answers, sources):
    model = student.build(sources[answers], seed=1)
    ids, mask = batch()
    changed = ids.clone()
    changed[0, -1] = ids[0, -1] % 49 + 1
    difference = answers_of(model, changed, mask) - answers_of(model, ids, mask)
    assert difference[0].any() if answers == "text" else difference[8].any()
    assert not difference[-LENGTHS[3] :].any() if answers == "words" else not difference[1:].any()


@every_student
def test_a_text_without_tokens_has_an_answer(student, answers, sources):
    model = student.build(sources[answers], seed=1)
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [0, 0, 0]])
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=ids, attention_mask=mask).logits).all()


@every_student
def test_a_saved_student_is_the_same_when_it_is_loaded(student, answers, sources, tmp_path):
    built = student.build(sources[answers], seed=1)
    save_model(built, word_tokenizer([f"word{number}" for number in range(60)], 50, 16), tmp_path)
    saved = Pretrained(tmp_path, "student")
    loaded = saved.model()
    assert type(loaded) is type(built)
    assert torch.equal(answers_of(loaded, *batch()), answers_of(built, *batch()))
    assert safetensors_size_mb(built) * 1e6 == pytest.approx((tmp_path / "model.safetensors").stat().st_size)
    assert len(saved.tokenizer()) == 50
    outlined = {name: tensor.shape for name, tensor in saved.outline().state_dict().items()}
    assert outlined == {name: tensor.shape for name, tensor in built.state_dict().items()}


def test_a_new_process_loads_a_saved_student(sources, tmp_path):
    """transformers knows the model types as soon as `pretrained` is imported."""
    save_model(CLASSIFIERS["lstm"].build(sources["text"], seed=1), word_tokenizer(["a b c"], 50, 16), tmp_path)
    code = f"""
from pathlib import Path
from kdray.models.pretrained import Pretrained
print(Pretrained(Path({str(tmp_path)!r}), "student").model().config.model_type)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert ended.stdout.strip() == "kdray_recurrent"


@every_student
def test_an_outline_has_the_shapes_of_the_student_and_no_memory(student, answers, sources):
    source = sources[answers]
    empty = outline(source.config, None) if answers == "text" else _tagger_outline(source)
    outlined, built = student.build_outline(empty), student.build(source, seed=0)
    assert {name: tensor.shape for name, tensor in outlined.state_dict().items()} == {
        name: tensor.shape for name, tensor in built.state_dict().items()
    }
    assert {parameter.device.type for parameter in outlined.parameters()} == {"meta"}


def _tagger_outline(source: PreTrainedModel) -> PreTrainedModel:
    with torch.device("meta"):
        return type(source)(source.config)


@every_student
def test_the_head_is_new_and_is_found(student, answers, sources):
    """Also of a student with one output, as the score of an attention has."""
    config = BertConfig(**{**TINY, "num_labels": 1})
    source = type(sources[answers])(config)
    model = student.build(source, seed=0)
    assert output_layer(model, 1) is model.classifier
    assert is_new(model.classifier)


def test_dropout_is_that_of_the_settings(sources):
    for student in CLASSIFIERS.values():
        built = student.model_copy(update={"dropout": 0.25}).build(sources["text"], seed=0)
        assert {module.p for module in built.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
        assert built.config.dropout == 0.25


def test_a_student_of_a_fresh_transformer(tmp_path):
    task = TextClassification(max_length=16)
    texts = ["a good film", "a bad plot", "the cast was good"]
    model, tokenizer = FreshTransformer(layers=1, width=16, heads=2).create(texts, ("bad", "good"), task, seed=0)
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    for student in CLASSIFIERS.values():
        built = student.build(model, seed=0)
        with torch.inference_mode():
            assert built(**ids).logits.shape == (3, 2)  # with token types, which it does not read
        assert built.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize(
    "config",
    [
        AlbertConfig(vocab_size=50, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=8),
        XLNetConfig(vocab_size=50, d_model=8, n_layer=2, n_head=2, d_inner=8),
    ],
    ids=lambda config: config.model_type,
)
def test_the_width_is_that_of_the_embeddings_of_the_source(config):
    source = random_model(config)
    student = RecurrentStudent(width=4).build(source, seed=0)
    assert torch.equal(student.get_input_embeddings().weight, source.get_input_embeddings().weight)
    assert student.config.embedding_width == 8


def test_a_half_precision_source_gives_a_float32_student(sources):
    source = BertForSequenceClassification(BertConfig(**TINY)).to(torch.bfloat16)
    for width in (None, 5):
        student = RecurrentStudent(width=4, embedding_width=width).build(source, seed=0)
        assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert source.dtype == torch.bfloat16


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_source_or_drawn(sources):
    table = sources["text"].get_input_embeddings().weight
    built = StaticStudent().build(sources["text"], seed=0)
    assert torch.equal(built.get_input_embeddings().weight, table)
    with torch.no_grad():
        built.get_input_embeddings().weight.add_(1.0)
    assert not torch.equal(built.get_input_embeddings().weight, table)  # a copy
    drawn = StaticStudent(embeddings="drawn").build(sources["text"], seed=0).get_input_embeddings().weight
    assert drawn.shape == table.shape
    assert not torch.equal(drawn, table)
    layers = [name for name, _ in built.named_parameters() if "embeddings" not in name]
    other = StaticStudent(embeddings="drawn").build(sources["text"], seed=0).state_dict()
    assert all(torch.equal(built.state_dict()[name], other[name]) for name in layers)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(7, 40))
def test_narrow_embeddings_are_the_principal_components(width, seed, rows):
    table = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    narrow = narrow_table(table, width)
    assert narrow.shape == (rows, width)
    if width == 6:
        assert torch.equal(narrow, table)
        return
    left, values, _ = torch.linalg.svd(table.double() - table.double().mean(dim=0), full_matrices=False)
    expected = left[:, :width] * values[:width]
    signs = torch.sign((narrow * expected).sum(dim=0))
    torch.testing.assert_close(narrow.double(), expected * signs, rtol=1e-4, atol=1e-5)
    # A permutation of the rows permutes the result: no sign depends on the order of the words.
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(narrow_table(table[order], width), narrow[order], rtol=1e-4, atol=1e-5)


def test_embeddings_wider_than_those_of_the_source_must_be_drawn(sources):
    with pytest.raises(SpecError, match=r"student.embedding_width: got 17.*width of 16; allowed are 1 to 16.*'drawn'"):
        RecurrentStudent(embedding_width=17).build_outline(sources["text"])
    wide = RecurrentStudent(embedding_width=17, embeddings="drawn").build(sources["text"], seed=0)
    assert wide.get_input_embeddings().weight.shape == (50, 17)


def test_a_source_without_a_table_of_embeddings_is_refused(sources):
    source = BertForSequenceClassification(BertConfig(**TINY))
    source.get_input_embeddings = lambda: None
    with pytest.raises(TeacherError, match="bert model has no table with one embedding for each token"):
        StaticStudent().build(source, seed=0)


# What a layer computes ------------------------------------------------------------------------------------------------


def test_a_text_is_read_backwards_from_its_own_end(sources):
    """The states are those of torch's bidirectional layer for a text without padding."""
    model = RecurrentStudent(width=12).build(sources["words"], seed=0)
    layer = model.encoder.layers[0]
    both = torch.nn.LSTM(WIDTH, 12, batch_first=True, bidirectional=True)
    weights = dict(layer.forwards.state_dict())
    weights |= {f"{name}_reverse": tensor for name, tensor in layer.backwards.state_dict().items()}
    both.load_state_dict(weights)
    ids, mask = batch()
    with torch.inference_mode():
        embedded = model.embeddings(ids)
        states = model.encoder(embedded, mask.bool())
        for row, length in enumerate(LENGTHS):
            expected, _ = both(embedded[[row], :length])
            torch.testing.assert_close(states[[row], :length], expected, rtol=1e-5, atol=1e-6)


def test_reversed_places_twice_is_the_order_of_the_text():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    places = reversed_places(mask)
    assert places.tolist() == [[2, 1, 0, 3, 4], [4, 3, 2, 1, 0]]
    assert places.gather(1, places).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_last_states_are_those_of_torch(sources):
    model = RecurrentStudent(width=12, pooling="last").build(sources["text"], seed=0)
    layer = model.encoder.layers[0]
    ids, mask = batch()
    with torch.inference_mode():
        embedded = model.embeddings(ids)
        pooled = model.encoder(embedded, mask.bool())
        for row, length in enumerate(LENGTHS):
            text = embedded[[row], :length]
            _, (ahead, _) = layer.forwards(text)
            _, (back, _) = layer.backwards(text.flip(1))
            torch.testing.assert_close(pooled[row], torch.cat([ahead[0, 0], back[0, 0]]), rtol=1e-5, atol=1e-6)


def test_an_lstm_remembers_at_first(sources):
    cell = RecurrentStudent(width=12).build(sources["text"], seed=0).encoder.layers[0].forwards
    assert cell.bias_ih_l0.view(4, 12)[1].tolist() == [1.0] * 12
    assert cell.bias_ih_l0.sum() + cell.bias_hh_l0.sum() == 12
    for gate in cell.weight_hh_l0.view(4, 12, 12):
        torch.testing.assert_close(gate @ gate.T, torch.eye(12), rtol=0, atol=1e-5)


def test_a_static_student_does_not_know_the_order_of_words_and_starts_with_the_mean(sources):
    model = StaticStudent(depth=0).build(sources["text"], seed=0)
    ids, mask = batch()
    reverse = ids.gather(1, reversed_places(mask.bool()))
    torch.testing.assert_close(answers_of(model, reverse, mask), answers_of(model, ids, mask))
    with torch.inference_mode():
        mean = model.embeddings(ids[1, : LENGTHS[1]]).mean(dim=0)
        torch.testing.assert_close(model.classifier(mean), answers_of(model, ids, mask)[1])
    assert len(model.encoder.scores.weight) == 50
    with torch.no_grad():
        model.encoder.scores.weight[ids[1, 0]] = 50.0  # one token has all the weight
    with torch.inference_mode():
        expected = model.classifier(model.embeddings(ids[1, 0]))
        torch.testing.assert_close(answers_of(model, ids, mask)[1], expected)


def test_dilated_blocks_reach_as_far_as_they_say(sources):
    """Four blocks with filters of 3 tokens read 1 + 2 + 4 + 8 tokens on each side."""
    model = ConvolutionalStudent(filters=32).build(sources["words"], seed=0)
    ids = torch.randint(1, 50, (1, 39), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 19] = ids[0, 19] % 49 + 1
    mask = torch.ones_like(ids)
    places = (answers_of(model, changed, mask) != answers_of(model, ids, mask)).any(dim=1).nonzero()[:, 0]
    assert (places[0], places[-1]) == (19 - 15, 19 + 15)


# Costs and forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
def test_the_multiply_adds_of_recurrent_layers_are_counted(cell, gates, sources):
    model = RecurrentStudent(cell=cell, width=12, depth=2).build(sources["words"], seed=0)
    directions = [2 * gates * 12 * (inputs + 12) for inputs in (WIDTH, 24)]
    assert count_multiply_adds(model, length=8) == 8 * (sum(directions) + 24 * 3)


def test_the_multiply_adds_of_filters_and_means_are_counted(sources):
    filters = ConvolutionalStudent(filters=6, widths=(2, 3)).build(sources["text"], seed=0)
    assert count_multiply_adds(filters, length=8) == 8 * 6 * WIDTH * (2 + 3) + 12 * 3
    mean = StaticStudent(width=12, depth=2).build(sources["text"], seed=0)
    assert count_multiply_adds(mean, length=8) == WIDTH * 12 + 12 * 12 + 12 * 3


ONNX = [
    pytest.param(CLASSIFIERS["gru_attention"], "text", id="gru"),
    pytest.param(TAGGERS["lstm"], "words", id="lstm_tagger"),
    pytest.param(CLASSIFIERS["deep_convolutional"], "text", id="convolutional"),
    pytest.param(TAGGERS["convolutional"], "words", id="convolutional_tagger"),
    pytest.param(CLASSIFIERS["static"], "text", id="static"),
]


def exported(model: PreTrainedModel, folder: Path) -> OnnxModel:
    write_graph(model, ["input_ids", "token_type_ids", "attention_mask"], folder / "model.onnx")
    return OnnxModel(folder / "model.onnx", threads=1)


def assert_same_answers(graph: OnnxModel, model: PreTrainedModel) -> None:
    for ids, mask in (batch(), batch(padding=20), (batch()[0][:1, :3], batch()[1][:1, :3])):
        torch.testing.assert_close(answers_of(graph, ids, mask), answers_of(model, ids, mask), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("student", "answers"), ONNX)
def test_the_onnx_graph_gives_the_same_answers_for_other_batches_and_lengths(
    student, answers, sources, tmp_path, capfd
):
    model = student.build(sources[answers], seed=1)
    assert_same_answers(exported(model, tmp_path), model)
    assert "Expected shape" not in capfd.readouterr().err  # onnxruntime's warning about a length that is a constant


@pytest.mark.filterwarnings("ignore")
def test_the_weights_of_an_lstm_are_quantised(sources, tmp_path):
    """The weights are so large that torch's exporter leaves nodes in their place that put the gates in order."""
    model = RecurrentStudent(width=64, depth=2, pooling="last").build(sources["text"], seed=1)
    assert_same_answers(exported(model, tmp_path), model)
    write_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operators.count("DynamicQuantizeLSTM") == 2
    assert "LSTM" not in operators
    quantised = answers_of(OnnxModel(tmp_path / "int8.onnx", threads=1), *batch())
    torch.testing.assert_close(quantised, answers_of(model, *batch()), rtol=0, atol=0.05)


# Architectures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(sources, tmp_path) -> Callable[[str], Pretrained]:
    """A function that saves the classifier or the tagger, and gives its folder."""

    def save(answers: str) -> Pretrained:
        tokenizer = word_tokenizer([f"word{number}" for number in range(60)], 50, 16)
        save_model(sources[answers], tokenizer, tmp_path / answers)
        return Pretrained(tmp_path / answers, f"{tmp_path}{answers}")

    return save


SAME = [
    (RecurrentStudent(), RecurrentStudent(pooling="max", embedding_width=16, dropout=0.5, embeddings="drawn")),
    (ConvolutionalStudent(), ConvolutionalStudent(depth=0, kernel=5, widths=(3, 4, 5), dropout=0.5)),
    (StaticStudent(depth=0), StaticStudent(depth=0, width=7, embeddings="drawn")),
]
DIFFERENT = [
    RecurrentStudent(),
    RecurrentStudent(cell="gru"),
    RecurrentStudent(depth=2),
    RecurrentStudent(width=8),
    RecurrentStudent(pooling="last"),
    RecurrentStudent(embedding_width=8),
    ConvolutionalStudent(),
    ConvolutionalStudent(depth=1),
    ConvolutionalStudent(depth=1, kernel=5),
    ConvolutionalStudent(filters=8),
    ConvolutionalStudent(widths=(3,)),
    StaticStudent(),
    StaticStudent(depth=0),
    StaticStudent(width=8),
    StaticStudent(weighted=False),
]


@pytest.mark.parametrize(("student", "other"), SAME, ids=lambda student: student.family)
def test_settings_without_effect_make_no_other_architecture(student, other, saved):
    source = saved("text")
    assert student.architecture(source) == other.architecture(source)


def test_each_size_makes_another_architecture(saved):
    source = saved("text")
    assert len({str(student.architecture(source)) for student in DIFFERENT}) == len(DIFFERENT)
    assert len({student.shape for student in DIFFERENT}) == len(DIFFERENT)


def test_the_shape_has_no_setting_that_changes_no_cost():
    student = RecurrentStudent(embeddings="drawn", dropout=0.5, source=1, width=8)
    assert student.shape == RecurrentStudent(width=8)


def test_the_architecture_of_a_tagger_has_no_pooling_and_no_filters_of_a_text(saved):
    source = saved("words")
    assert "pooling" not in RecurrentStudent().architecture(source)
    assert ConvolutionalStudent().architecture(source) == {
        "family": "convolutional",
        "embedding_width": WIDTH,
        "num_blocks": 4,
        "filters": 128,
        "kernel": 3,
    }


# A student as a source ------------------------------------------------------------------------------------------------


def test_a_small_student_teaches_small_students_but_is_not_cut(saved, sources, tmp_path):
    first = RecurrentStudent(width=12, embedding_width=8).build(sources["text"], seed=0)
    save_model(first, saved("text").tokenizer(), tmp_path / "first")
    source = Pretrained(tmp_path / "first", f"{tmp_path}first")
    for student in (RecurrentStudent(width=4), ConvolutionalStudent(filters=4), StaticStudent(width=4)):
        student.check(source)
        built = student.build(source.model(), seed=0)
        assert torch.equal(built.get_input_embeddings().weight, first.get_input_embeddings().weight)
        assert built.config.id2label == first.config.id2label
    for depth in (None, 1):
        with pytest.raises(
            TeacherError, match=r"kdray_recurrent model has no layers of a Transformer.*student\.family="
        ):
            TransformerStudent(depth=depth).check(source)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"family": "recurrent", "cell": "rnn"}, "RecurrentStudent.cell: got 'rnn'"),
        ({"family": "recurrent", "depth": 0}, "RecurrentStudent.depth: got 0"),
        ({"family": "recurrent", "layers": "first"}, "RecurrentStudent.layers: no such setting"),
        ({"family": "recurrent", "pooling": "mean"}, "RecurrentStudent.pooling: got 'mean'"),
        ({"family": "convolutional", "widths": []}, "ConvolutionalStudent.widths"),
        ({"family": "convolutional", "widths": [0]}, "ConvolutionalStudent.widths"),
        ({"family": "convolutional", "kernel": 4}, "ConvolutionalStudent.kernel: got 4; give an odd number"),
        ({"family": "static", "embedding_width": 0}, "StaticStudent.embedding_width: got 0"),
        ({"family": "recurent"}, "student.family: got 'recurent'; did you mean 'recurrent'?"),
    ],
)
def test_wrong_settings_are_refused(values, part):
    with pytest.raises(SpecError) as caught:
        student_of(values)
    assert part in str(caught.value)


def test_the_widths_of_filters_can_be_given_as_text():
    assert ConvolutionalStudent(widths="2,3").widths == student_of({"family": "convolutional", "widths": [2, 3]}).widths
    with pytest.raises(SpecError, match=r"widths.*got 'x'"):
        ConvolutionalStudent(widths="2,x")


TAGGING, REGRESSION = TokenClassification(), Regression()


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        (StaticStudent(), r"a static student cannot tag words.*Take 'recurrent', 'convolutional' or 'transformer'"),
        (RecurrentStudent(pooling="max"), r"student.pooling: got 'max'.*Leave student.pooling out"),
        (ConvolutionalStudent(widths=(3,)), r"student.widths: got \[3\].*Leave student.widths out"),
        (ConvolutionalStudent(depth=0), r"student.depth: got 0.*give 1 or more"),
    ],
)
def test_settings_that_a_task_does_not_have_are_refused(student, reason):
    student.check_task(REGRESSION)
    with pytest.raises(SpecError, match=reason):
        student.check_task(TAGGING)


@pytest.mark.parametrize("student", TAGGERS.values(), ids=TAGGERS)
def test_taggers_are_accepted(student):
    student.check_task(TAGGING)


def test_a_static_student_of_a_tagger_is_refused(sources):
    with pytest.raises(SpecError, match="a static student cannot tag words"):
        StaticStudent().build(sources["words"], seed=0)


def test_a_configuration_that_is_not_right_is_refused(sources, saved, tmp_path: Path):
    folder = tmp_path / "student"
    save_model(RecurrentStudent(width=12).build(sources["text"], seed=0), saved("text").tokenizer(), folder)
    config = (folder / "config.json").read_text()
    for right, wrong, reason in (
        ('"model_type": "kdray_recurrent"', '"model_type": "kdray_other"', "does not know"),
        ('"num_layers": 1', '"num_layers": 501', "at most 500 is allowed"),
        ('"width": 12', '"width": 40000', "describes a model of"),
    ):
        assert right in config
        (folder / "config.json").write_text(config.replace(right, wrong))
        with pytest.raises(TeacherError, match=reason):
            Pretrained(folder, "student").model()
