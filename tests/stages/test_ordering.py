"""Sweeps over the widths of students: their units are ordered by importance once, and their costs fall."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdray.data.tokens import TokenSet
from kdray.errors import SpecError
from kdray.models.pretrained import Pretrained
from kdray.run import Outcome
from kdray.search.settings import Search
from kdray.slots.job import Worker
from kdray.slots.local import LocalSlots
from kdray.stages.ordering import MEASURED_ROWS, OrderUnits
from kdray.storage.paths import SweepPaths
from kdray.students.axes import structure_of
from kdray.students.importance import measure_importance
from kdray.students.transformer import TransformerStudent
from kdray.students.widths import WIDTHS

TWO = Search(trials=2, stopping=None)
SPACE = {"student.feed_forward": [16, 64], "student.heads": [1, 2]}


@pytest.fixture
def order(teacher: Pretrained, tokens: TokenSet, slots: LocalSlots, tmp_path) -> Callable[[str], Pretrained]:
    """A function that orders the units of the shared teacher by importance, into a folder of this name."""

    def run_job(name: str) -> Pretrained:
        ((report),) = slots.run(OrderUnits(teacher, tokens, WIDTHS, tmp_path / name), name)
        assert report == {"rows": min(MEASURED_ROWS, len(tokens.all_rows("train")))}
        return Pretrained(tmp_path / name, name)

    return run_job


def test_the_copy_with_its_best_units_first_is_the_same_in_each_run(order, teacher: Pretrained, tokens: TokenSet):
    first, again, source = (each.model() for each in (order("first"), order("again"), teacher))
    weights = again.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.get_input_embeddings().weight, source.get_input_embeddings().weight)
    batch = tokens.rows("validation").batch(np.arange(32))
    with torch.inference_mode():
        assert torch.allclose(first(**batch.inputs).logits, source(**batch.inputs).logits, atol=1e-4)
    assert first.config.to_diff_dict() | {"_name_or_path": ""} == source.config.to_diff_dict() | {"_name_or_path": ""}


def test_the_first_units_matter_most(order, tokens: TokenSet):
    model = order("ordered").model()
    rows = tokens.all_rows("train")
    structure = structure_of(type(model), model.config, WIDTHS)
    importance = measure_importance(model, structure, [rows.batch(np.arange(len(rows)))])
    for width, values in importance.items():
        half = values.shape[-1] // 2
        assert values[..., :half].sum() > 1.2 * values[..., half:].sum(), width


def test_the_ranks_of_a_slot_measure_the_rows_together(order, teacher: Pretrained, tokens: TokenSet, tmp_path):
    """Two ranks, one after the other: the second one has the result of the first one."""
    shares: list[Any] = []

    class Rank(Worker):
        def all_gather(self, value: Any) -> list[Any]:
            shares.append(value)
            return list(shares)

    for rank in (1, 0):
        worker = Rank(rank=rank, world=2)
        list(OrderUnits(teacher, tokens, WIDTHS, tmp_path / f"of-two-{rank}")(worker))
        assert worker.progress > 0
    assert not (tmp_path / "of-two-1").exists()
    together, alone = Pretrained(tmp_path / "of-two-0", "").model().state_dict(), order("alone").model().state_dict()
    units = "bert.encoder.layer.0.intermediate.dense.bias"
    assert torch.equal(together[units], alone[units])


def measured_costs(paths: SweepPaths) -> dict[tuple[int, int], dict[str, float]]:
    """The feed-forward width and the number of heads -> the costs of the students with them."""
    cached = [json.loads(file.read_text()) for file in paths.cache.glob("costs/*.json")]
    full = {"feed_forward": 64, "heads": 2}
    sizes = [(full | each["architecture"], each["costs"]) for each in cached if each["architecture"]]
    return {(size["feed_forward"], size["heads"]): costs for size, costs in sizes}


def test_a_sweep_over_widths(run_tiny: Callable[..., tuple[Outcome, list[str]]]):
    outcome, notes = run_tiny(space=SPACE, search=TWO, student=TransformerStudent(depth=2))
    costs = measured_costs(outcome.paths)
    assert len(costs) == 4, "each architecture once"
    for name in ("parameters", "multiply_adds", "size_mb"):
        assert costs[16, 1][name] < costs[64, 1][name] < costs[64, 2][name]
        assert costs[16, 1][name] < costs[16, 2][name] < costs[64, 2][name]
    assert [record.state for record in outcome.figures.records] == ["completed"] * 2
    assert sum("keep the units that matter most" in note for note in notes) == 1
    assert any("students: 1 and 16, 2 and 32." in note for note in notes)
    chosen = next(record for record in outcome.figures.records if record.number == outcome.figures.chosen)
    student = AutoModelForSequenceClassification.from_pretrained(outcome.paths.chosen)
    assert student.config.intermediate_size == chosen.params["student.feed_forward"]
    assert student.config.hidden_size == 16 * chosen.params["student.heads"]
    assert student.config.num_hidden_layers == 2
    models = set(outcome.paths.cache.glob("models/*"))
    _, notes = run_tiny(space=SPACE, search=TWO, student=TransformerStudent(depth=2))
    assert not any("measured on" in note for note in notes), "the ordered copy is in the storage"
    assert set(outcome.paths.cache.glob("models/*")) == models


@pytest.mark.slow
def test_a_student_may_have_fewer_pieces_and_narrower_layers(run_tiny: Callable[..., tuple[Outcome, list[str]]]):
    student = TransformerStudent(depth=1, heads=1, vocabulary=15)
    outcome, _ = run_tiny(space={"student.feed_forward": [16]}, student=student)
    config = AutoConfig.from_pretrained(outcome.paths.chosen)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (1, 16, 16)
    assert config.vocab_size == 15


def test_without_widths_nothing_is_measured(run_tiny: Callable[..., tuple[Outcome, list[str]]], monkeypatch):
    monkeypatch.setattr(OrderUnits, "__call__", None)
    student = TransformerStudent(feed_forward=64)  # as many as the teacher has
    outcome, notes = run_tiny(space={"student.depth": [1]}, student=student)
    assert not any("measured on" in note for note in notes)
    assert outcome.figures.records[0].state == "completed"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"student.heads": [1, 3]}, r"student\.heads: got 3, but the model it is built from has 2"),
        ({"student.hidden": [16, 24]}, r"student\.hidden: got 24, .*allowed are the multiples of 16 up to 32"),
        ({"student.feed_forward": [64, 65]}, r"student\.feed_forward: got 65"),
    ],
)
def test_a_width_that_the_teacher_does_not_have_is_refused_before_any_slot_starts(
    run_tiny, space, message, monkeypatch
):
    def fail(*arguments: Any) -> None:
        raise AssertionError("a slot was started")

    monkeypatch.setattr("kdray.run.LocalSlots", fail)
    with pytest.raises(SpecError, match=message):
        run_tiny(space=space)
