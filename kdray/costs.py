"""What each architecture costs: size and latency, measured once per architecture and hardware, before any training.

They depend on the architecture alone, so they are exact objectives and constraints: an architecture that breaks a
constraint is never trained. They are measured one at a time, on an otherwise idle machine, and kept in the storage's
cache with the hardware they were measured on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kdray.evaluation import Latency, costs, hardware
from kdray.paths import StoragePaths, fingerprint, read_json, write_json
from kdray.pretrained import Pretrained
from kdray.students.transformer import TransformerStudent
from kdray.worker import Pool, Report, Worker


@dataclass(frozen=True)
class MeasureCosts:
    """The job that measures one architecture; with no student, the source itself."""

    source: Pretrained
    student: TransformerStudent | None
    latency: Latency

    def __call__(self, worker: Worker) -> Iterator[Report]:
        model = worker.kept(("source", self.source.key), self.source.model)
        if self.student:
            model = self.student.build(model, seed=0)
        yield costs(model, self.latency, worker.device)


@dataclass(frozen=True)
class AskHardware:
    """The job that says what the slots run on."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"hardware": hardware(worker.device)}


def measured_costs(
    source: Pretrained,
    student: TransformerStudent | None,
    latency: Latency,
    on_hardware: str,
    paths: StoragePaths,
    pool: Pool,
) -> dict[str, float]:
    """The costs of one architecture: latency_ms, latency_p95_ms, parameters, size_mb."""
    shape = student.architecture(source.layers) if student else {}
    cache = paths.cost(fingerprint(source.key, shape, latency.model_dump(), on_hardware))
    if not cache.exists():
        *_, measured = pool.run(MeasureCosts(source, student, latency), f"cost-{cache.stem}")
        write_json(
            cache, {"hardware": on_hardware, "architecture": shape, "latency": latency.model_dump(), "costs": measured}
        )
    measured_before: dict[str, float] = read_json(cache)["costs"]
    return measured_before


def with_speedup(costs: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
    """The costs and how many times faster than the teacher that is."""
    return {**costs, "speedup": teacher["latency_ms"] / costs["latency_ms"]}
