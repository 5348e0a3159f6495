"""Students of language models: cut by depth and by width in each family, with embeddings tied or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdray.data.rows import Batch
from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import outline
from kdray.students.axes import structure_of
from kdray.students.importance import measure_importance, reorder
from kdray.students.recordable import Recordable
from kdray.students.recurrent import RecurrentStudent
from kdray.students.transformer import TransformerStudent
from kdray.students.widths import WIDTHS, Width, Widths
from kdray.tasks.masked_lm import MaskedLM
from tests.models.families import IDS, logits
from tests.models.language_models import AUTO, CAUSAL, LANGUAGE_FAMILIES, language_model

NOT_NARROWER = {"mobilebert": "weights do not follow this width", "gpt_neox": "weights do not follow this width"}
"""Families whose heads and hidden size cannot be cut -> why."""
NARROWED = tuple(family for family in LANGUAGE_FAMILIES if family not in NOT_NARROWER)
NARROW: dict[Width, int] = {"heads": 2, "feed_forward": 24, "hidden": 16}

every_family = pytest.mark.parametrize("family", LANGUAGE_FAMILIES)
tied_or_not = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def check_saved(student: PreTrainedModel, source: PreTrainedModel, folder: Path) -> None:
    """A student that plain transformers loads has the same logits, over the vocabulary of its source."""
    student.save_pretrained(folder)
    auto = AUTO[source.config.model_type in CAUSAL]
    loaded, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(logits(loaded.eval()), logits(student))
    assert logits(student).shape == logits(source).shape
    assert is_tied(student) == is_tied(loaded) == is_tied(source)


@every_family
@tied_or_not
def test_a_student_of_full_depth_is_its_source_and_a_shallow_one_is_the_same_when_it_is_loaded(
    family: str, tied: bool, tmp_path: Path
) -> None:
    source = language_model(family, tied)
    assert is_tied(source) == tied
    assert torch.equal(logits(TransformerStudent().build(source, 0)), logits(source))
    for layers in ("evenly", "first", "last", "random"):
        student = TransformerStudent(depth=2, layers=layers).build(source, 0)
        assert student.config.num_hidden_layers == 2
        check_saved(student, source, tmp_path / layers)


@pytest.mark.parametrize("family", NARROWED)
@tied_or_not
def test_a_narrow_student_has_a_narrow_head(family: str, tied: bool, tmp_path: Path) -> None:
    source = language_model(family, tied)
    student = TransformerStudent(depth=2, **NARROW).build(source, 0)
    check_saved(student, source, tmp_path)
    head = student.get_output_embeddings()
    # ALBERT's head reads its embeddings, which are narrower than its layers.
    assert head.weight.shape == (100, 8 if family == "albert" else 16)
    shapes = {name: weight.shape for name, weight in student.state_dict().items()}
    for name, weight in source.state_dict().items():
        assert 32 not in shapes.get(name, ()), f"{name} {weight.shape} is not cut"
    described = TransformerStudent(depth=2, **NARROW).build_outline(outline(source.config, AUTO[family in CAUSAL]))
    assert {name: weight.shape for name, weight in described.state_dict().items()} == shapes


@every_family
def test_feed_forward_units_are_cut(family: str, tmp_path: Path) -> None:
    source = language_model(family)
    check_saved(TransformerStudent(feed_forward=24).build(source, 0), source, tmp_path)


def test_a_gpt2_without_a_feed_forward_width_of_its_own_has_four_times_its_hidden_size(tmp_path: Path) -> None:
    source = language_model("gpt2", n_inner=None)
    assert Widths.of(source.config).feed_forward == 128
    student = TransformerStudent(hidden=16).build(source, 0)
    assert (student.config.n_embd, student.config.n_head, student.config.n_inner) == (16, 2, 128)
    check_saved(student, source, tmp_path)


@pytest.mark.parametrize("family", NOT_NARROWER)
@pytest.mark.parametrize("width", ["heads", "hidden"])
def test_widths_that_cannot_be_cut_are_refused(family: str, width: Width) -> None:
    with pytest.raises(TeacherError, match=NOT_NARROWER[family]):
        TransformerStudent(**{width: NARROW[width]}).build(language_model(family), 0)


def test_heads_that_share_their_keys_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"student\.heads: a llama model .* share their keys and values"):
        TransformerStudent(heads=2).build(language_model("llama", num_key_value_heads=2), 0)


def batch_of(ids: torch.Tensor) -> Batch:
    """A batch whose answers are all tokens that are no padding."""
    mask = (ids != 0).long()
    places = mask.flatten().nonzero().squeeze(1)
    return Batch(
        inputs={"input_ids": ids, "attention_mask": mask},
        gold=ids.flatten()[places],
        ids=np.arange(len(ids)),
        places_A=places,
        top_k=5,
    )


@pytest.mark.parametrize("family", NARROWED)
def test_a_model_with_its_best_units_first_answers_as_before(family: str) -> None:
    model = language_model(family)
    before, structure = logits(model), structure_of(type(model), model.config, WIDTHS)
    importance = measure_importance(model, structure, [batch_of(IDS)])
    assert set(importance) == set(WIDTHS)
    assert all(torch.isfinite(values).all() and (values > 0).any() for values in importance.values())
    reorder(model, structure, importance)
    assert torch.allclose(logits(model), before, atol=1e-4)


def test_importance_is_that_of_all_logits_at_once_and_never_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("bert")
    structure = structure_of(type(model), model.config, WIDTHS)
    whole = measure_importance(model, structure, [batch_of(IDS)])
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda head, args, output: sizes.append(len(output)))
    monkeypatch.setattr("kdray.models.vocabulary_head.LOGITS_AT_ONCE", 300)  # three answers of 100 logits
    parts = measure_importance(model, structure, [batch_of(IDS)])
    assert max(sizes) == 3
    for width in WIDTHS:
        assert torch.allclose(parts[width], whole[width])


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_units_that_nobody_reads_are_cut(family: str) -> None:
    """Half of the units are read by nobody: they have no importance, and a student without them answers the same."""
    model = language_model(family)
    structure = structure_of(type(model), model.config, ("feed_forward",))
    weights = model.state_dict()
    read = [name for name, axes in structure.axes.items() if len(axes) == 2 and axes[1] is not None]
    useless = torch.arange(0, 48, 2)
    for name in read:
        weights[name][:, useless] = 0
    importance = measure_importance(model, structure, [batch_of(IDS)])["feed_forward"]
    assert (importance[:, useless] == 0).all()
    before = logits(model)
    reorder(model, structure, {"feed_forward": importance})
    student = TransformerStudent(feed_forward=24).build(model, 0)
    assert torch.allclose(logits(student), before, atol=1e-4)


@every_family
def test_states_can_be_recorded(family: str) -> None:
    student = TransformerStudent(depth=2).build(language_model(family), 0)
    found = Recordable.of(student)
    assert (found.layers, found.hidden) == (2, True)
    assert found.is_causal == (family in CAUSAL)
    # MobileBERT's heads are as wide as its bottleneck.
    assert found.attention["queries"] == (16 if family == "mobilebert" else 32)
    assert found.heads == 4


def test_other_families_have_no_outputs_over_a_vocabulary() -> None:
    student: Any = RecurrentStudent()
    with pytest.raises(SpecError, match=r"student\.family: got 'recurrent', but only a transformer has the outputs"):
        student.check_task(MaskedLM())
