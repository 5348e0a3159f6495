"""What each architecture costs: measured once per architecture and hardware, before any training.

They depend on the architecture alone, so they are exact objectives and constraints: an architecture that breaks a
constraint is never trained. They are measured one at a time, on an otherwise idle machine, and kept in the storage's
cache with the hardware they were measured on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from kdray.errors import ResourceError
from kdray.evaluation.measuring import SPEEDUP_METRICS, Latency, describe_conditions, hardware_name, measure_model
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import BySource, StudentSource
from kdray.models.transformer import TransformerStudent
from kdray.slots.job import Pool, Report, Worker
from kdray.storage.files import fingerprint, read_json, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths


@dataclass(frozen=True)
class MeasureModel:
    """The job that measures one architecture; with no student, the source itself."""

    source: Pretrained
    student: TransformerStudent | None
    latency: Latency

    def __call__(self, worker: Worker) -> Iterator[Report]:
        model = worker.cached(("source", self.source.key), self.source.model)
        if self.student:
            model = self.student.build(model, seed=0)
        yield measure_model(model, self.latency, worker.device)


@dataclass(frozen=True)
class ReportHardware:
    """The job that says what the slots run on: their device, and the CPU beside it."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"hardware": hardware_name(worker.device), "cpu": hardware_name()}


@dataclass(frozen=True)
class Costs:
    """The costs of the teacher, and of every architecture that may be tried."""

    machine: dict[str, str]
    """What they were measured on: `hardware`, the slots' device, and `cpu`, the processor beside it."""
    teacher: dict[str, float]
    by_student: dict[TransformerStudent, dict[str, float]]
    conditions: str
    """How they were measured and on what, in words: to stand beside every figure."""

    def of(self, student: TransformerStudent) -> dict[str, float]:
        """What `measuring.costs` measures, and the speed-up over the teacher, on the slots' device and on the CPU."""
        return self.by_student[student.shape]


class CostConditions(BaseModel):
    """How the costs of a sweep were measured: conditions.json."""

    model_config = ConfigDict(frozen=True)

    costs: str
    """As `Costs.conditions`."""
    machine: dict[str, str]
    """As `Costs.machine`."""


@dataclass(frozen=True)
class CostMeasuring:
    """How costs are measured and where they are cached."""

    latency: Latency
    paths: StoragePaths
    pool: Pool
    """Nothing else may run on it while costs are measured."""
    measured_on: Mapping[str, str] | None = None
    """The machine of a begun sweep, as in `Costs.machine`. Costs of two machines cannot be compared, so a sweep that is
    continued elsewhere keeps the costs of that machine. None: no trial has begun."""

    def measure(
        self,
        students: Iterable[TransformerStudent],
        sources: BySource[StudentSource],
        on_progress: Callable[[int, int], None],
    ) -> Costs:
        """Measure the teacher and each architecture once, one after the other.

        Raises ResourceError when the sweep began on another machine and an architecture was not measured there.
        """
        (here,) = self.pool.run(ReportHardware(), "hardware")
        machine = {**(self.measured_on or here)}
        teacher = self._costs_of(MeasureModel(sources.teacher.model, None, self.latency), machine, machine == here)
        shapes = dict.fromkeys(student.shape for student in students)
        conditions = describe_conditions(self.latency, machine["hardware"], cpu=machine["cpu"])
        by_student: dict[TransformerStudent, dict[str, float]] = {}
        for done, shape in enumerate(shapes, start=1):
            job = MeasureModel(sources.of(shape).model, shape, self.latency)
            own = self._costs_of(job, machine, machine == here)
            by_student[shape] = own | {name: teacher[of] / own[of] for name, of in SPEEDUP_METRICS.items()}
            on_progress(done, len(shapes))
        return Costs(machine, teacher, by_student, conditions)

    def _costs_of(self, job: MeasureModel, machine: dict[str, str], is_here: bool) -> dict[str, float]:
        """The costs of one model, from the cache where it was measured before."""
        shape = job.student.architecture(job.source.layers) if job.student else {}
        cache = self.paths.cost(fingerprint(job.source.key, shape, self.latency.model_dump(), machine))
        if not fetch(cache).exists():
            if not is_here:
                sizes = ", ".join(f"{name} {size}" for name, size in shape.items())
                what = f"a student of {sizes}" if shape else "the teacher"
                raise ResourceError(
                    f"the costs of {what} were not measured on {machine['hardware']}, where this sweep began, and "
                    "latencies of two machines cannot be compared. Continue the sweep there, or run it here under "
                    "another name (--set name=...)."
                )
            *_, costs = self.pool.run(job, f"cost-{cache.stem}")
            about = {**machine, "architecture": shape, "latency": self.latency.model_dump()}
            write_json(cache, {**about, "costs": costs})
        cached: dict[str, float] = read_json(cache)["costs"]
        return cached
