"""The costs of the teacher and of each student architecture, measured before any training and cached.

Costs depend on the architecture and the hardware, not on the weights. They are therefore exact objectives and
constraints: an architecture that breaks a constraint is never trained. Models are measured one at a time, because other
work on the machine makes latencies longer. Each cache file contains the costs of one model, with the hardware and the
`Latency` settings of the measurement. How one model is measured is in `measuring`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from kdray.errors import ResourceError
from kdray.evaluation.measuring import SPEEDUP_METRICS, Latency, describe_conditions, hardware_name, measure_model
from kdray.models.pretrained import Pretrained
from kdray.models.student import Student
from kdray.models.student_sources import BySource, StudentSource
from kdray.slots.job import Pool, Report, Worker
from kdray.storage.files import fingerprint, read_json, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths
from kdray.storage.records import Number, check_value


class _CachedCosts(TypedDict):
    """What is read of the file with the costs of one model."""

    costs: dict[str, Number]


CACHED_COSTS = TypeAdapter(_CachedCosts)


@dataclass(frozen=True)
class MeasureModel:
    """The job that measures one model: a student of this architecture, or the source itself if `student` is None."""

    source: Pretrained
    student: Student | None
    latency: Latency

    def __call__(self, worker: Worker) -> Iterator[Report]:
        model = worker.cached(("source", self.source.key), self.source.model)
        if self.student:
            # Costs do not depend on the weights, so any seed gives the same costs.
            model = self.student.build(model, seed=0)
        yield measure_model(model, self.latency, worker.device)


@dataclass(frozen=True)
class ReportHardware:
    """The job that reports the hardware of a slot: its device, and the CPU of the same machine."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"hardware": hardware_name(worker.device), "cpu": hardware_name()}


@dataclass(frozen=True)
class Costs:
    """The costs of the teacher, and of every architecture that the sweep can try."""

    machine: dict[str, str]
    """The hardware of the measurement: `hardware`, the device of the slots, and `cpu`, the CPU of the same machine."""
    teacher: dict[str, float]
    """The costs of the teacher, of several models together; empty if the teacher is a file."""
    by_teacher: tuple[dict[str, float], ...]
    """The costs of each model that teaches."""
    by_student: dict[Student, dict[str, float]]
    """The costs by `Student.shape`."""
    conditions: str
    """How and on which hardware the costs were measured, as text that is printed beside every figure."""

    def of(self, student: Student) -> dict[str, float]:
        """The costs of a student, by the names in `measuring.ARCHITECTURE_METRICS`: costs and speed-ups."""
        return self.by_student[student.shape]


class CostConditions(BaseModel):
    """The content of conditions.json: how the costs of a sweep were measured."""

    model_config = ConfigDict(frozen=True)

    costs: str
    """See `Costs.conditions`."""
    machine: dict[str, str]
    """See `Costs.machine`."""


def combined_costs(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The costs of models that must all answer, one after the other; empty without models."""
    if len(parts) < 2:
        return dict(parts[0]) if parts else {}
    # Throughput is a number of texts in a time: the times add up, and so do all other costs.
    return {
        name: 1 / sum(1 / part[name] for part in parts) if "throughput" in name else sum(part[name] for part in parts)
        for name in parts[0]
    }


@dataclass(frozen=True)
class CostMeasuring:
    """Measures costs on a pool of slots and caches them in the storage."""

    latency: Latency
    paths: StoragePaths
    pool: Pool
    """No other job may run on this pool during the measurement."""
    teachers: Sequence[Pretrained] | None = None
    """The models that teach, none if the teacher is a file. None: the only teacher is the one in the sources."""
    measured_on: Mapping[str, str] | None = None
    """The machine on which a sweep with trials was measured, see `Costs.machine`. Costs of two machines cannot be
    compared, so a sweep that is continued elsewhere uses the costs of its first machine. None: the sweep has no trials
    yet."""

    def measure(
        self,
        students: Iterable[Student],
        sources: BySource[StudentSource],
        on_progress: Callable[[int, int], None],
    ) -> Costs:
        """Measure the teacher and each architecture once, one after the other.

        `on_progress` receives the number of measured architectures and the number of all architectures. Raises
        ResourceError if the sweep began on another machine and an architecture was not measured there.
        """
        (this_machine,) = self.pool.run(ReportHardware(), "hardware")
        machine = {**(self.measured_on or this_machine)}
        can_measure = machine == this_machine
        teachers = [sources.first.model] if self.teachers is None else self.teachers
        by_teacher = tuple(
            self._costs_of(MeasureModel(model, None, self.latency), machine, can_measure) for model in teachers
        )
        teacher = combined_costs(by_teacher)
        # Students with the same shape cost the same, so each shape is measured once.
        shapes = dict.fromkeys(student.shape for student in students)
        by_student: dict[Student, dict[str, float]] = {}
        for done, shape in enumerate(shapes, start=1):
            job = MeasureModel(sources.of(shape).model, shape, self.latency)
            costs = self._costs_of(job, machine, can_measure)
            # Without the costs of the teacher, as of a file with answers, nobody knows how much faster a student is.
            speedups = {
                name: teacher[latency] / costs[latency]
                for name, latency in SPEEDUP_METRICS.items()
                if latency in teacher
            }
            by_student[shape] = costs | speedups
            on_progress(done, len(shapes))
        return Costs(
            machine=machine,
            teacher=teacher,
            by_teacher=by_teacher,
            by_student=by_student,
            conditions=describe_conditions(self.latency, machine["hardware"], cpu=machine["cpu"]),
        )

    def _costs_of(self, job: MeasureModel, machine: dict[str, str], can_measure: bool) -> dict[str, float]:
        """The costs of one model on `machine`: from the cache, or measured now if this is that machine."""
        shape = job.student.architecture(job.source) if job.student else {}
        cache = self.paths.cost(fingerprint(job.source.key, shape, self.latency.model_dump(), machine))
        if not fetch(cache).exists():
            if not can_measure:
                sizes = ", ".join(f"{name} {size}" for name, size in shape.items())
                model = f"a student of {sizes}" if shape else "the teacher"
                raise ResourceError(
                    f"the costs of {model} were not measured on {machine['hardware']}, where this sweep began, and "
                    "latencies of two machines cannot be compared. Continue the sweep there, or run it here under "
                    "another name (--set name=...)."
                )
            *_, costs = self.pool.run(job, f"cost-{cache.stem}")
            conditions = {**machine, "architecture": shape, "latency": self.latency.model_dump()}
            write_json(cache, {**conditions, "costs": costs})
        return check_value(CACHED_COSTS, read_json(cache), cache)["costs"]
