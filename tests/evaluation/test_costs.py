"""Costs are measured once for each architecture and machine, and are the costs of the student that is trained later."""

import json
from pathlib import Path

import pytest

from kdray.data.tokens import TokenSet
from kdray.errors import SpecError
from kdray.evaluation.costs import CostMeasuring, Costs
from kdray.evaluation.measuring import Latency, count_parameters
from kdray.models.pretrained import Pretrained
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.students.sources import BySource, StudentSource
from kdray.students.transformer import TransformerStudent
from tests.evaluation.layer_clock import layer_clock

LATENCY = Latency(length=16, warmup=1, repeats=5)


class SweepCosts:
    """Measures the costs of students as a sweep does. Each call is a new session of the sweep."""

    def __init__(self, teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, slots: LocalSlots) -> None:
        self.sources = BySource(StudentSource(teacher, tokens), {})
        self.paths, self.slots = paths, slots
        self.progress: list[tuple[int, int]] = []

    def __call__(self, *students: TransformerStudent, latency: Latency = LATENCY) -> Costs:
        measuring = CostMeasuring(latency, self.paths, self.slots)
        return measuring.measure(students, self.sources, lambda *done: self.progress.append(done))


@pytest.fixture
def measure(teacher: Pretrained, tokens: TokenSet, tmp_path: Path, slots: LocalSlots) -> SweepCosts:
    return SweepCosts(teacher, tokens, StoragePaths(tmp_path), slots)


def test_costs_depend_on_the_number_of_layers(
    measure: SweepCosts, teacher: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, four = (TransformerStudent(depth=depth) for depth in (1, 2, 4))
    with layer_clock(monkeypatch):
        costs = measure(one, two, four)
    teacher_costs = costs.teacher
    assert teacher_costs["parameters"] == costs.of(four)["parameters"] == count_parameters(teacher.model())
    layer = costs.of(two)["parameters"] - costs.of(one)["parameters"]
    assert teacher_costs["parameters"] - costs.of(one)["parameters"] == 3 * layer > 0
    layer_ms = costs.of(two)["latency_ms"] - costs.of(one)["latency_ms"]
    assert teacher_costs["latency_ms"] - costs.of(one)["latency_ms"] == pytest.approx(3 * layer_ms)
    assert layer_ms > 0
    assert teacher_costs["latency_ms"] == costs.of(four)["latency_ms"] == teacher_costs["latency_p95_ms"]
    assert costs.of(one)["cpu_speedup"] == costs.of(one)["speedup"]
    assert costs.of(one)["speedup"] == teacher_costs["latency_ms"] / costs.of(one)["latency_ms"] > 1
    assert teacher_costs["size_mb"] == pytest.approx((teacher.folder / "model.safetensors").stat().st_size / 1e6)


def test_each_architecture_is_measured_once(measure: SweepCosts) -> None:
    students = [TransformerStudent(depth=depth, layers=layers) for depth in (1, 2) for layers in ("evenly", "last")]
    costs = measure(*students, TransformerStudent(depth=2, dropout=0.3))
    assert measure.progress == [(1, 2), (2, 2)]
    assert costs.of(students[0]) == costs.of(students[1]) != costs.of(students[2]) == costs.of(students[3])
    assert measure(*students) == costs  # equal to the last digit, because they come from the cache
    assert len(list((measure.paths.cache / "costs").iterdir())) == 3


def test_other_latency_settings_and_other_machines_are_measured_again(
    measure: SweepCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = TransformerStudent(depth=2)
    first = measure(student)
    assert measure(student, latency=LATENCY.model_copy(update={"batch_size": 2})) != first
    monkeypatch.setattr("kdray.evaluation.costs.hardware_name", lambda device=None: "another machine")
    assert measure(student) != first
    written = [json.loads(file.read_text()) for file in (measure.paths.cache / "costs").iterdir()]
    assert len(written) == 6
    assert len({content["hardware"] for content in written}) == 2


def test_a_gpu_and_the_cpu_of_its_machine_are_both_named_and_measured(
    measure: SweepCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([{"latency_ms": 4.0, "cpu_latency_ms": 60.0}, {"latency_ms": 2.0, "cpu_latency_ms": 20.0}])
    monkeypatch.setattr("kdray.evaluation.costs.measure_model", lambda model, latency, device: next(measured))
    monkeypatch.setattr(
        "kdray.evaluation.costs.hardware_name", lambda device=None: "some GPU" if device else "some processor"
    )
    costs = measure(TransformerStudent(depth=1))
    assert costs.of(TransformerStudent(depth=1))["speedup"] == 2.0
    assert costs.of(TransformerStudent(depth=1))["cpu_speedup"] == 3.0
    assert costs.conditions.endswith("some GPU (CPU: some processor)")


def test_a_length_that_the_model_cannot_read_is_refused(measure: SweepCosts) -> None:
    with pytest.raises(SpecError, match=r"latency\.length: got 64"):
        measure(latency=Latency())
