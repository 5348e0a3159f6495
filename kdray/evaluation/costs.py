"""What each architecture costs: measured once per architecture and hardware, before any training.

They depend on the architecture alone, so they are exact objectives and constraints: an architecture that breaks a
constraint is never trained. They are measured one at a time, on an otherwise idle machine, and kept in the storage's
cache with the hardware they were measured on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from kdray.errors import ResourceError
from kdray.evaluation.measuring import SPEEDUPS, Latency, conditions, costs, hardware
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import StudentSource
from kdray.models.transformer import TransformerStudent
from kdray.slots.job import Pool, Report, Worker
from kdray.storage.files import fingerprint, read_json, write_json
from kdray.storage.mirror import fetched
from kdray.storage.paths import StoragePaths


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
    """The job that says what the slots run on: their device, and the CPU beside it."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"hardware": hardware(worker.device), "cpu": hardware()}


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


def measure_costs(
    students: Iterable[TransformerStudent],
    sources: Mapping[str | None, StudentSource],
    latency: Latency,
    paths: StoragePaths,
    pool: Pool,
    on_progress: Callable[[int, int], None],
    begun_on: Mapping[str, str] | None = None,
) -> Costs:
    """Measure the teacher and each architecture once, one after the other; nothing else may run on the pool.

    A sweep that goes on elsewhere keeps the costs of the machine that it has `begun_on`, for what two clocks say cannot
    be compared. Raises ResourceError when one of them was not measured there.
    """
    (here,) = pool.run(AskHardware(), "hardware")
    machine = {**(begun_on or here)}
    measured = _Measured(latency, machine, machine == here, paths, pool)
    teacher = measured(MeasureCosts(sources[None].model, None, latency))
    shapes = dict.fromkeys(student.shape for student in students)
    costs = Costs(machine, teacher, {}, conditions(latency, machine["hardware"], cpu=machine["cpu"]))
    for done, shape in enumerate(shapes, start=1):
        job = MeasureCosts(sources[shape.checkpoint].model, shape, latency)
        own = measured(job)
        costs.by_student[shape] = own | {name: teacher[of] / own[of] for name, of in SPEEDUPS.items()}
        on_progress(done, len(shapes))
    return costs


@dataclass(frozen=True)
class _Measured:
    """The costs of an architecture on that machine, where they may have been measured before."""

    latency: Latency
    machine: dict[str, str]
    is_here: bool
    paths: StoragePaths
    pool: Pool

    def __call__(self, job: MeasureCosts) -> dict[str, float]:
        shape = job.student.architecture(job.source.layers) if job.student else {}
        cache = self.paths.cost(fingerprint(job.source.key, shape, self.latency.model_dump(), self.machine))
        if not fetched(cache).exists():
            if not self.is_here:
                sizes = ", ".join(f"{name} {size}" for name, size in shape.items())
                what = f"a student of {sizes}" if shape else "the teacher"
                raise ResourceError(
                    f"the costs of {what} were not measured on {self.machine['hardware']}, where this sweep began, and "
                    "what two machines' clocks say cannot be compared. Go on there, or run it here under another name "
                    "(--set name=...)."
                )
            *_, found = self.pool.run(job, f"cost-{cache.stem}")
            about = {**self.machine, "architecture": shape, "latency": self.latency.model_dump()}
            write_json(cache, {**about, "costs": found})
        known: dict[str, float] = read_json(cache)["costs"]
        return known
