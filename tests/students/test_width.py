"""Narrower students: smaller tensors that plain transformers loads, cut by how much the units matter."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    PreTrainedModel,
)

from kdray.data.rows import Batch
from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import Pretrained, outline
from kdray.students.axes import Axis, Structure, is_invariant, structure_of, take_units
from kdray.students.importance import measure_importance, order_units, reorder
from kdray.students.transformer import TransformerStudent, cut_widths, describe_tied_widths
from kdray.students.widths import WIDTHS, Widths
from tests.models.families import IDS, logits, random_model, tiny_config
from tests.students.wide import CUT, config_of, hidden_in_a_wide_model, structure

HALF = TransformerStudent(heads=2, feed_forward=24)


class Texts:
    """Texts as a batch whose answers are all logits."""

    top_k = None

    def __init__(self, ids: torch.Tensor = IDS) -> None:
        self.inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        self.ids = np.arange(len(ids))

    def to(self, device: torch.device) -> "Texts":
        return self

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


BATCHES: list[Batch] = [Texts()]  # type: ignore[list-item]


def shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# What is cut ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CUT)
def test_a_narrow_student_is_the_same_when_it_is_loaded(family, tmp_path):
    source = random_model(config_of(family, heads=4, feed_forward=48, hidden=32))
    settings = TransformerStudent(depth=2, layers="last", heads=2, feed_forward=20)
    student = settings.build(source, seed=0)
    student.save_pretrained(tmp_path)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(logits(loaded.eval()), logits(student))
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    widths = Widths.of(loaded.config)
    assert (widths.heads, widths.head_size, widths.feed_forward, widths.hidden) == (2, 8, 20, 16)
    assert loaded.config.num_hidden_layers == 2
    assert shapes(settings.build_outline(outline(source.config))) == shapes(student)
    assert shapes(student) == shapes(type(source)(student.config)), "no mask, no weight of the old size"


@pytest.mark.parametrize("family", CUT)
def test_units_that_nobody_reads_are_cut_without_loss(family):
    narrow, wide = hidden_in_a_wide_model(family)
    assert torch.allclose(logits(wide), logits(narrow), atol=1e-5)
    student = HALF.build(wide, seed=0)
    assert torch.equal(logits(student), logits(narrow))
    assert all(torch.equal(tensor, narrow.state_dict()[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("layers", ["first", "last", "evenly"])
def test_layers_are_chosen_first_and_then_cut(layers):
    narrow, wide = hidden_in_a_wide_model("bert")
    settings = {"depth": 2, "layers": layers}
    student = TransformerStudent(**settings, hidden=16, feed_forward=24).build(wide, seed=0)
    assert torch.equal(logits(student), logits(TransformerStudent(**settings).build(narrow, seed=0)))


def test_the_source_keeps_its_weights():
    source = random_model(config_of("bert", heads=4, hidden=32))
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    student = TransformerStudent(heads=1, feed_forward=8).build(source, seed=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert source.config.hidden_size == 32


def test_a_narrow_student_may_have_drawn_weights():
    source = random_model(config_of("bert"))
    student = TransformerStudent(depth=1, layers="random", feed_forward=8).build(source, seed=3)
    assert student.bert.encoder.layer[0].intermediate.dense.weight.shape == (8, 16)
    assert torch.isfinite(logits(student)).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"heads": 1}, (1, 24, 16)),
        ({"hidden": 12}, (2, 24, 12)),
        ({"heads": 1, "hidden": 10, "feed_forward": 6}, (1, 6, 10)),
    ],
)
def test_heads_and_hidden_size_are_apart_where_a_configuration_has_the_size_of_a_head(settings, expected, tmp_path):
    config = tiny_config("qwen3")
    config.num_key_value_heads = config.num_attention_heads
    student = TransformerStudent(**settings).build(random_model(config), seed=0)
    widths = Widths.of(student.config)
    assert (widths.heads, widths.feed_forward, widths.hidden) == expected
    assert widths.head_size == 8
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded.eval()), logits(student))


@pytest.mark.parametrize("family", ["mobilebert", "deberta", "qwen3", "ernie"])
def test_the_feed_forward_width_of_further_families_is_cut(family):
    source = random_model(tiny_config(family))
    student = TransformerStudent(feed_forward=8).build(source, seed=0)
    assert sum(tensor.numel() for tensor in student.parameters()) < sum(map(torch.numel, source.parameters()))
    assert torch.isfinite(logits(student)).all()


def test_a_model_with_one_output_is_cut():
    config = config_of("bert")
    config.num_labels = 1
    assert TransformerStudent(heads=1).build(random_model(config), seed=0).config.hidden_size == 8


def test_a_model_that_answers_for_each_word_is_cut():
    model = AutoModelForTokenClassification.from_config(config_of("distilbert", heads=4, hidden=32)).eval()
    before, found = logits(model), structure(model)
    reorder(model, found, measure_importance(model, found, BATCHES))
    assert torch.allclose(logits(model)[IDS != 0], before[IDS != 0], atol=1e-5)
    student = TransformerStudent(depth=1, hidden=8, feed_forward=5).build(model, seed=0)
    assert logits(student).shape == (*IDS.shape, 3)
    assert student.classifier.weight.shape == (3, 8)


def test_embeddings_as_wide_as_the_hidden_size_follow_it():
    config = config_of("electra", heads=4, hidden=32)
    config.embedding_size = 32
    student = TransformerStudent(hidden=16).build(random_model(config), seed=0)
    assert student.config.embedding_size == student.config.hidden_size == 16
    assert student.get_input_embeddings().weight.shape == (64, 16)


# Axes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CUT)
def test_an_axis_that_is_missing_or_counts_something_else_is_noticed(family):
    model = random_model(config_of(family, heads=4, hidden=32)).double()
    found = structure(model)
    assert is_invariant(model, found)
    # The same number is added to all scores of a query, so the bias of the keys changes no answer.
    names = [name for name in found.axes if not name.endswith(("key.bias", "k_lin.bias", "k.bias"))]
    keys = next(name for name in names if "k" in name.rsplit(".", 2)[-2] or "c_attn.weight" in name)
    for name in (names[1], names[len(names) // 2], keys):
        missing = Structure({other: axes for other, axes in found.axes.items() if other != name}, found.stacks)
        assert not is_invariant(model, missing), name


def test_heads_that_are_taken_for_hidden_units_are_noticed():
    model = random_model(config_of("bert", heads=4, hidden=32)).double()
    found, name = structure(model), "bert.encoder.layer.3.attention.self.key.weight"
    assert found.axes[name] == (Axis("heads", 1), Axis("hidden", 1))
    wrong = Structure({**found.axes, name: (Axis("hidden", 1), Axis("hidden", 1))}, found.stacks)
    assert not is_invariant(model, wrong)


def test_weights_of_several_parts_are_cut_in_each_part():
    axes = structure(random_model(config_of("modernbert"))).axes
    assert axes["model.layers.1.attn.Wqkv.weight"] == (Axis("heads", 3), Axis("hidden", 1))
    assert axes["model.layers.1.mlp.Wi.weight"] == (Axis("feed_forward", 2), Axis("hidden", 1))
    taken = Axis("heads", 3).take(torch.arange(12), 0, torch.tensor([1]), 2)
    assert taken.tolist() == [2, 3, 6, 7, 10, 11]


# Importance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CUT)
def test_a_model_with_its_best_units_first_answers_as_before(family):
    model = random_model(config_of(family))
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = structure(model)
    importance = measure_importance(model, found, BATCHES)
    reorder(model, found, importance)
    assert torch.allclose(logits(model), before, atol=1e-5)
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    after = measure_importance(model, found, BATCHES)
    for width in WIDTHS:
        values = after[width].sum(0) if width == "heads" and found.heads_are_shared else after[width]
        assert (values.diff(dim=-1) <= 1e-4 * values.max()).all(), "in descending order"


@pytest.mark.parametrize("family", CUT)
def test_the_units_that_matter_stay_wherever_they_are(family):
    """Half of the heads and of the feed-forward units are read by nobody; all are in a random order."""
    narrow, wide = hidden_in_a_wide_model(family)
    found, random = structure(wide), torch.Generator().manual_seed(5)
    orders = {
        "heads": torch.randperm(4, generator=random).expand(found.layers, 4),
        "feed_forward": torch.stack([torch.randperm(48, generator=random) for _ in range(found.layers)]),
    }
    wide.load_state_dict(take_units(wide.state_dict(), found, orders, Widths.of(wide.config)))
    importance = measure_importance(wide, found, BATCHES)
    for width in ("heads", "feed_forward"):
        assert importance[width].shape == orders[width].shape
        is_dead = orders[width] >= orders[width].shape[1] // 2
        assert (importance[width][is_dead] == 0).all()
        assert (importance[width][~is_dead] > 0).any(dim=-1).all()
    best = order_units(importance, found)["feed_forward"][:, :24]
    read = importance["feed_forward"].gather(1, best).sum()
    assert torch.isclose(read, importance["feed_forward"].sum())
    reorder(wide, found, {"feed_forward": importance["feed_forward"]})
    student = TransformerStudent(feed_forward=24).build(wide, seed=0)
    assert torch.allclose(logits(student), logits(narrow), atol=1e-5)


def test_hidden_units_that_matter_stay():
    """Hidden units that carry nothing at any place have no importance, and those that the head reads most have most."""
    model = random_model(config_of("bert", heads=4, hidden=32))
    dead = torch.arange(32) % 2 == 0
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight[dead], module.bias[dead] = 0.0, 0.0
    importance = measure_importance(model, structure(model), BATCHES)["hidden"]
    assert (importance[dead] == 0).all()
    assert (importance[~dead] > 0).all()
    units = order_units({"hidden": importance}, structure(model))["hidden"]
    assert sorted(units[:16].tolist()) == list(range(1, 32, 2))


def test_importance_is_the_same_in_each_measurement_and_of_each_row():
    model = random_model(config_of("bert"))
    found = structure(model)
    first, again = (measure_importance(model, found, BATCHES) for _ in range(2))
    assert all(torch.equal(first[width], again[width]) for width in WIDTHS)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_padding_has_no_importance():
    model = random_model(config_of("bert"))
    batches = (Texts(IDS[1:]), Texts(IDS[1:, :5]))
    with_padding, without = (measure_importance(model, structure(model), [batch]) for batch in batches)  # type: ignore[list-item]
    assert all(torch.allclose(with_padding[width], without[width], atol=1e-4) for width in WIDTHS)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path) -> Pretrained:
    random_model(config_of("bert", heads=4, feed_forward=48, hidden=32)).save_pretrained(tmp_path / "bert")
    return Pretrained(tmp_path / "bert", "key")


def test_the_architecture_has_the_widths_that_are_cut(bert):
    assert TransformerStudent(depth=2).architecture(bert) == {"depth": 2}
    assert TransformerStudent(feed_forward=48, heads=4, hidden=32).architecture(bert) == {"depth": 4}
    narrow = {"depth": 4, "heads": 2, "feed_forward": 48, "hidden": 16}
    assert TransformerStudent(heads=2).architecture(bert) == TransformerStudent(hidden=16).architecture(bert) == narrow
    assert TransformerStudent(heads=2).shape != TransformerStudent().shape


def test_settings_without_widths_are_recorded_as_before():
    assert not {*WIDTHS} & TransformerStudent().model_dump().keys()
    assert TransformerStudent(heads=2).model_dump()["heads"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, r"student\.heads: got 5.*has 4; allowed are 1 to 4"),
        ({"feed_forward": 49}, r"student\.feed_forward: got 49.*has 48; allowed are 1 to 48"),
        ({"hidden": 33}, r"student\.hidden: got 33.*allowed are 1 to 32"),
        ({"hidden": 20}, r"student\.hidden: got 20, but in a bert model .*\(8\); allowed are the multiples of 8"),
        (
            {"heads": 2, "hidden": 24},
            r"student\.heads: got 2 with student\.hidden 24.*2 heads have a hidden size of 16",
        ),
    ],
)
def test_widths_that_the_source_does_not_have_are_refused(settings, message, bert):
    with pytest.raises(SpecError, match=message):
        TransformerStudent(**settings).check(bert)


@pytest.mark.parametrize("name", WIDTHS)
def test_a_width_of_nothing_is_refused(name):
    with pytest.raises(SpecError, match=rf"TransformerStudent\.{name}: got 0"):
        TransformerStudent(**{name: 0})


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("mobilebert", {"heads": 1}, "its weights do not follow this width"),
        ("mobilebert", {"hidden": 8}, "its weights do not follow this width"),
        ("deberta", {"hidden": 8}, "its weights do not follow this width"),
        ("squeezebert", {"feed_forward": 8}, "its weights do not follow this width"),
        ("qwen3", {"heads": 1}, "several of its heads share their keys and values"),
        ("xlm", {"hidden": 8}, "its configuration does not say how wide it is"),
    ],
)
def test_families_that_cannot_be_cut_are_refused_with_those_that_can(family, settings, reason):
    source = random_model(tiny_config(family))
    (setting,) = settings
    with pytest.raises(
        TeacherError,
        match=rf"student(\.{setting})?: a {family} model cannot be made narrower, because {reason}.*BERT, RoB",
    ):
        TransformerStudent(**settings).build(source, seed=0)


def test_a_size_at_which_the_family_has_another_weight_is_refused():
    """ELECTRA projects its embeddings only where they are not as wide as the hidden size."""
    config = config_of("electra", heads=4, hidden=32)
    assert config.embedding_size == 8
    with pytest.raises(
        SpecError, match=r"student\.hidden: got 8; a electra model of this size has no .*embeddings_pro"
    ):
        TransformerStudent(hidden=8).build(random_model(config), seed=0)


def test_only_cut_weights_need_importance():
    config = config_of("bert", heads=4, feed_forward=48, hidden=32)
    students = [TransformerStudent(), TransformerStudent(feed_forward=48), TransformerStudent(heads=1, layers="random")]
    assert cut_widths(students, config) == ()
    assert cut_widths([*students, TransformerStudent(feed_forward=4)], config) == ("feed_forward",)
    assert cut_widths([TransformerStudent(hidden=16)], config) == ("heads", "hidden")


def test_a_note_says_which_width_follows_from_the_other():
    config = config_of("bert", heads=4, hidden=32)
    students = [TransformerStudent(heads=1), TransformerStudent(hidden=16), TransformerStudent(feed_forward=4)]
    (note,) = describe_tied_widths(students, config)
    assert "Heads and hidden size of the students: 1 and 8, 2 and 16." in note
    assert not describe_tied_widths(students[2:], config)


def test_a_source_that_is_no_encoder_is_refused():
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = BartConfig(vocab_size=64, max_position_embeddings=32, **sizes)
    with pytest.raises(TeacherError, match="cannot be made narrower"):
        structure_of(AutoModelForSequenceClassification, config, ["hidden"])
