"""Costs are measured once for each architecture and machine, and are those of the student that will be trained."""

import json
from pathlib import Path

import pytest

from kdray.data.tokens import TokenSet
from kdray.errors import SpecError
from kdray.evaluation.costs import CostMeasuring, Costs
from kdray.evaluation.measuring import Latency, count_parameters
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import BySource, StudentSource
from kdray.models.transformer import TransformerStudent
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths

LATENCY = Latency(length=16, warmup=1, repeats=5)


class Measuring:
    """What a sweep asks for: the costs of its students, each time from the beginning."""

    def __init__(self, teacher: Pretrained, tokens: TokenSet, paths: StoragePaths, slots: LocalSlots) -> None:
        self.sources = BySource(StudentSource(teacher, tokens), {})
        self.paths, self.slots = paths, slots
        self.progress: list[tuple[int, int]] = []

    def __call__(self, *students: TransformerStudent, latency: Latency = LATENCY) -> Costs:
        measuring = CostMeasuring(latency, self.paths, self.slots)
        return measuring.measure(students, self.sources, lambda *done: self.progress.append(done))


@pytest.fixture
def measure(teacher: Pretrained, tokens: TokenSet, tmp_path: Path, slots: LocalSlots) -> Measuring:
    return Measuring(teacher, tokens, StoragePaths(tmp_path), slots)


def test_costs_are_those_of_the_architecture(measure: Measuring, teacher: Pretrained) -> None:
    one, two, four = (TransformerStudent(depth=depth) for depth in (1, 2, 4))
    costs = measure(one, two, four)
    whole = costs.teacher
    assert whole["parameters"] == costs.of(four)["parameters"] == count_parameters(teacher.model())
    layer = costs.of(two)["parameters"] - costs.of(one)["parameters"]
    assert whole["parameters"] - costs.of(one)["parameters"] == 3 * layer > 0
    assert costs.of(one)["latency_ms"] < whole["latency_ms"] <= whole["latency_p95_ms"]
    assert costs.of(one)["cpu_speedup"] == costs.of(one)["speedup"]
    assert costs.of(one)["speedup"] == whole["latency_ms"] / costs.of(one)["latency_ms"] > 1
    assert whole["size_mb"] == pytest.approx((teacher.folder / "model.safetensors").stat().st_size / 1e6)


def test_architectures_are_measured_once(measure: Measuring) -> None:
    students = [TransformerStudent(depth=depth, layers=layers) for depth in (1, 2) for layers in ("evenly", "last")]
    costs = measure(*students, TransformerStudent(depth=2, dropout=0.3))
    assert measure.progress == [(1, 2), (2, 2)]
    assert costs.of(students[0]) == costs.of(students[1]) != costs.of(students[2]) == costs.of(students[3])
    assert measure(*students) == costs  # to the last digit: from the cache
    assert len(list((measure.paths.cache / "costs").iterdir())) == 3


def test_another_way_of_measuring_or_another_machine_is_measured_anew(
    measure: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = TransformerStudent(depth=2)
    first = measure(student)
    assert measure(student, latency=LATENCY.model_copy(update={"batch_size": 2})) != first
    monkeypatch.setattr("kdray.evaluation.costs.hardware_name", lambda device=None: "another machine")
    assert measure(student) != first
    written = [json.loads(file.read_text()) for file in (measure.paths.cache / "costs").iterdir()]
    assert len(written) == 6
    assert len({about["hardware"] for about in written}) == 2


def test_a_gpu_and_the_cpu_beside_it_are_both_named_and_timed(
    measure: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = iter([{"latency_ms": 4.0, "cpu_latency_ms": 60.0}, {"latency_ms": 2.0, "cpu_latency_ms": 20.0}])
    monkeypatch.setattr("kdray.evaluation.costs.measure_model", lambda model, latency, device: next(clocks))
    monkeypatch.setattr(
        "kdray.evaluation.costs.hardware_name", lambda device=None: "some GPU" if device else "some processor"
    )
    costs = measure(TransformerStudent(depth=1))
    assert costs.of(TransformerStudent(depth=1))["speedup"] == 2.0
    assert costs.of(TransformerStudent(depth=1))["cpu_speedup"] == 3.0
    assert costs.conditions.endswith("some GPU (CPU: some processor)")


def test_a_length_the_model_cannot_read_is_refused(measure: Measuring) -> None:
    with pytest.raises(SpecError, match=r"latency\.length: got 64"):
        measure(latency=Latency())
