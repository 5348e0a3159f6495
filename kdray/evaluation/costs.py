"""The costs of the teacher and of each student architecture, measured before any training and cached.

Costs depend on the architecture and the hardware, not on the weights. They are therefore exact objectives and
constraints: an architecture that breaks a constraint is never trained. Models are measured one at a time, because other
work on the machine makes latencies longer. Each cache file contains the costs of one model, with the hardware and the
`Latency` settings of the measurement; costs in another form than PyTorch have files of their own. How one model is
measured is in `measuring` and `form_costs`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from kdray.errors import ResourceError, SpecError
from kdray.evaluation.form_costs import REASON, MeasureForms
from kdray.evaluation.measuring import SPEEDUP_METRICS, Latency, describe_conditions, hardware_name, measure_model
from kdray.forms.form import Form
from kdray.forms.metrics import metric_name
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Pool, Report, Worker
from kdray.storage.files import fingerprint, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths
from kdray.storage.records import Number, read_value
from kdray.students.sources import BySource, StudentSource
from kdray.students.student import Student


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

    @property
    def sizes(self) -> dict[str, Any]:
        """What size and speed depend on, besides the source."""
        return self.student.architecture(self.source) if self.student else {}

    @property
    def name(self) -> str:
        """The model in words."""
        if self.student is None:
            return "the teacher"
        return f"a student of {', '.join(f'{name} {size}' for name, size in self.sizes.items())}"

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
    notes: tuple[str, ...] = ()
    """What could not be measured, in sentences."""

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
        if all(name in part for part in parts)
    }


@dataclass(frozen=True)
class _Machine:
    """The machine whose costs a sweep has."""

    hardware: dict[str, str]
    """See `Costs.machine`."""
    is_here: bool
    """Whether the slots are on it, so that costs can be measured now."""

    @property
    def why_not(self) -> str:
        """Why costs that are not in the cache cannot be measured now."""
        return f"not measured on {self.hardware['hardware']}, where this sweep began"


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
    forms: tuple[Form, ...] = ()
    """The forms besides PyTorch that are measured: those that the sweep names a metric of."""

    def measure(
        self,
        students: Iterable[Student],
        sources: BySource[StudentSource],
        on_progress: Callable[[int, int], None],
    ) -> Costs:
        """Measure the teacher and each architecture once, one after the other.

        `on_progress` receives the number of measured architectures and the number of all architectures. Raises
        ResourceError if the sweep began on another machine and an architecture was not measured there, SpecError for an
        architecture that cannot be exported although the sweep names a form.
        """
        (this_machine,) = self.pool.run(ReportHardware(), "hardware")
        hardware = {**(self.measured_on or this_machine)}
        machine = _Machine(hardware, is_here=hardware == this_machine)
        models = [sources.first.model] if self.teachers is None else self.teachers
        measured = [self._teacher_costs(MeasureModel(model, None, self.latency), machine) for model in models]
        by_teacher = tuple(costs for costs, _ in measured)
        teacher = combined_costs(by_teacher)
        # Students with the same shape cost the same, so each shape is measured once.
        shapes = dict.fromkeys(student.shape for student in students)
        by_student: dict[Student, dict[str, float]] = {}
        for done, shape in enumerate(shapes, start=1):
            costs = self._student_costs(MeasureModel(sources.of(shape).model, shape, self.latency), machine)
            # Without the costs of the teacher, as of a file with answers, nobody knows how much faster a student is.
            speedups = {
                name: teacher[latency] / costs[latency]
                for name, latency in SPEEDUP_METRICS.items()
                if latency in teacher and latency in costs
            }
            by_student[shape] = costs | speedups
            on_progress(done, len(shapes))
        return Costs(
            machine=hardware,
            teacher=teacher,
            by_teacher=by_teacher,
            by_student=by_student,
            conditions=describe_conditions(self.latency, hardware["hardware"], cpu=hardware["cpu"]),
            notes=tuple(dict.fromkeys(note for _, note in measured if note)),
        )

    def _teacher_costs(self, job: MeasureModel, machine: _Machine) -> tuple[dict[str, float], str]:
        """The costs of a model that teaches, and a note where it has none in the forms of the sweep, else empty."""
        costs, (in_forms, reason) = self._costs_of(job, machine), self._form_costs_of(job, machine)
        if not reason:
            return costs | in_forms, ""
        speedups = " and ".join(metric_name(form, "speedup") for form in self.forms)
        return costs, (
            f"The teacher has no costs in {_labels(self.forms)} ({reason}), so nobody knows {speedups}, the speed-up "
            "over it."
        )

    def _student_costs(self, job: MeasureModel, machine: _Machine) -> dict[str, float]:
        """The costs of an architecture, in PyTorch and in the forms of the sweep."""
        costs, (in_forms, reason) = self._costs_of(job, machine), self._form_costs_of(job, machine)
        if reason:
            if not machine.is_here:
                raise _cannot_measure(job, machine)
            raise SpecError(
                f"the sweep names a metric of {_labels(self.forms)}, but {job.name} cannot be exported: {reason}. "
                "Leave this architecture out of the space, or name metrics of PyTorch, such as cpu_latency_ms, in "
                "search.objectives, search.constraints and choose."
            )
        return costs | in_forms

    def _costs_of(self, job: MeasureModel, machine: _Machine) -> dict[str, float]:
        """The costs of one model in PyTorch on this machine: from the cache, or measured now."""
        cache = self._cache_of(job, machine)
        if not fetch(cache).exists():
            if not machine.is_here:
                raise _cannot_measure(job, machine)
            *_, costs = self.pool.run(job, f"cost-{cache.stem}")
            write_json(cache, {**self._conditions(job, machine), "costs": costs})
        return read_value(CACHED_COSTS, cache)["costs"]

    def _form_costs_of(self, job: MeasureModel, machine: _Machine) -> tuple[dict[str, float], str]:
        """The costs of one model in the forms of the sweep, and the reason why it has none, else empty.

        Each form has a file of its own in the cache: files there are never changed, because other machines have copies.
        """
        caches = {form: self._cache_of(job, machine, form.name) for form in self.forms}
        missing = [form for form, cache in caches.items() if not fetch(cache).exists()]
        if missing and not machine.is_here:
            return {}, machine.why_not
        if missing:
            names = tuple(form.name for form in missing)
            measuring = MeasureForms(job.source, job.student, self.latency, names)
            *_, report = self.pool.run(measuring, f"cost-{caches[missing[0]].stem}")
            if REASON in report:
                return {}, report[REASON]
            for form in missing:
                conditions = {**self._conditions(job, machine), "form": form.name}
                write_json(caches[form], {**conditions, "costs": report[form.name]})
        return {
            metric_name(form, base): value
            for form, cache in caches.items()
            for base, value in read_value(CACHED_COSTS, cache)["costs"].items()
        }, ""

    def _cache_of(self, job: MeasureModel, machine: _Machine, *form: str) -> Path:
        return self.paths.cost(
            fingerprint(job.source.key, job.sizes, self.latency.model_dump(), machine.hardware, *form)
        )

    def _conditions(self, job: MeasureModel, machine: _Machine) -> dict[str, Any]:
        return {**machine.hardware, "architecture": job.sizes, "latency": self.latency.model_dump()}


def _cannot_measure(job: MeasureModel, machine: _Machine) -> ResourceError:
    return ResourceError(
        f"the costs of {job.name} were {machine.why_not}, and latencies of two machines cannot be compared. Continue "
        "the sweep there, or run it here under another name (--set name=...)."
    )


def _labels(forms: Sequence[Form]) -> str:
    return " and ".join(form.label for form in forms)
