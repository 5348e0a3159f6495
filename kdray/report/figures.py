"""Figures: all values that a report shows, such as the trials, the front, the choice and the reasons for it.

Nothing is computed from the data here; the values come from the stages of the sweep or from its files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdray.choice.controls import Control
from kdray.choice.verdict import Verdict
from kdray.evaluation.formatting import noun
from kdray.evaluation.measuring import COST_METRICS, CPU_METRICS
from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.form import Form
from kdray.forms.forms import GRAPH_FORMS
from kdray.forms.metrics import FORM_METRICS, metric_name, named_forms
from kdray.models.lineage import Lineage, TeacherModel
from kdray.tasks.label_figures import LabelFigures
from kdray.tasks.task import Task


@dataclass(frozen=True)
class Figures:
    """All values that a report shows."""

    name: str
    """The name of the sweep."""
    teacher: Mapping[str, float]
    """The teacher's metrics and costs, under the same names as those of a trial."""
    records: Sequence[TrialRecord]
    objectives: Sequence[str]
    task: Task
    front: Sequence[int] = ()
    """The numbers of the trials on the Pareto front."""
    chosen: int | None = None
    """The number of the chosen trial; None where no student is chosen."""
    sentences: Sequence[str] = ()
    """The choice in words."""
    controls: Sequence[Control] = ()
    """The controls of the front, on the validation rows."""
    verdict: Verdict | None = None
    """The result of the confirmation."""
    searched: Sequence[str] = field(default=())
    """The dotted names of the searched settings."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Dotted name of a searched setting -> the share of the differences in quality that it explains."""
    times: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Stage -> its seconds, over all sessions."""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The command, the commit and the versions of the last session."""
    conditions: str = ""
    """How the costs were measured, and on which hardware."""
    by_label: Mapping[str, LabelFigures] = field(default_factory=dict)
    """Label -> the figures of the shipped student on the test rows; empty for a task without labels."""
    lineage: Lineage | None = field(default=None, compare=False)
    """What the students were made from: the models that teach, and the sweeps that made them."""

    @property
    def quality(self) -> str:
        """The first objective that is a quality metric."""
        return next((name for name in self.objectives if name not in COST_METRICS), self.objectives[0])

    @property
    def is_quality_minimized(self) -> bool:
        """Whether a smaller value of `quality` is better."""
        return direction(self.quality) == "minimize"

    @property
    def cost(self) -> str:
        """The first objective that is a cost."""
        return next((name for name in self.objectives if name in COST_METRICS), "latency_ms")

    @property
    def has_unknown_costs(self) -> bool:
        """Whether the teacher was measured, but not its costs: it is a file with answers."""
        return bool(self.teacher) and not any(name in self.teacher for name in COST_METRICS)

    @property
    def several_teachers(self) -> Sequence[TeacherModel]:
        """The models whose mean teaches; empty if there is only one."""
        models = self.lineage.models if self.lineage else ()
        return models if len(models) > 1 else ()

    @property
    def task_metrics(self) -> list[str]:
        """The metrics of the task, which the teacher was measured by; empty before it is measured."""
        return [name for name in self.teacher if name not in COST_METRICS]

    @property
    def terms(self) -> str:
        """What retention and agreement are, in words."""
        student, teacher = "the student's", "the teacher's"
        quality = self.task.quality
        first, second = (teacher, student) if quality.direction == "minimize" else (student, teacher)
        meanings = (
            f"Retention is {first} {noun(quality.name)} divided by {second}. The agreement of student and teacher is "
            f"{self.task.agreement_meaning}."
        )
        return f"{meanings} {self.task.comparability}".rstrip()

    @property
    def columns(self) -> list[str]:
        """The metrics that have a column in the table of trials: the usual ones, and all objectives."""
        on_cpu = ("cpu_latency_ms",) if "cpu_latency_ms" in self.costs else ()
        speedup = () if self.has_unknown_costs else ("speedup",)
        in_forms = [
            name
            for form in self.forms
            for name in (metric_name(form, "latency_ms"), metric_name(form, "speedup"))
            if name in self._cost_names
        ]
        quality = (self.quality, *self._quality_in_forms, "retention")
        usual = (*quality, "latency_ms", *speedup, *on_cpu, *in_forms, "parameters")
        return list(dict.fromkeys((*usual, *self.objectives)))

    @property
    def _quality_in_forms(self) -> list[str]:
        """The quality in the forms that students were trained for, and the agreement with their float32 selves."""
        measured = set[str]().union(*(record.metrics for record in self.records))
        names = [metric_name(form, name) for form in GRAPH_FORMS for name in (self.task.quality.name, "agreement")]
        return [name for name in names if name in measured]

    @property
    def costs(self) -> list[str]:
        """The costs to show. Figures of the CPU are among them only where trials ran on another device.

        Those in other forms than PyTorch are among them only where they were measured.
        """
        # Without a GPU the CPU's figures equal the device's own, and would only repeat them.
        costs = self.records[0].costs if self.has_unknown_costs and self.records else self.teacher
        repeated = {cpu for own, cpu in CPU_METRICS.items() if costs.get(cpu) in (None, costs.get(own))}
        return [
            name
            for name in COST_METRICS
            if name not in repeated and (name not in FORM_METRICS or name in self._cost_names)
        ]

    @property
    def forms(self) -> Sequence[Form]:
        """The forms besides PyTorch that the architectures were measured in."""
        return named_forms(self._cost_names)

    @property
    def speedup(self) -> str:
        """The speed-up in the form that `cost` is of."""
        form = FORM_METRICS[self.cost].form if self.cost in FORM_METRICS else None
        name = "speedup" if form is None else metric_name(form, "speedup")
        return name if name in self._cost_names else "speedup"

    @property
    def measured(self) -> str:
        """How the costs were measured, and on which hardware; empty before they are."""
        if not self.conditions or not self.forms:
            return self.conditions
        return f"{self.conditions}; {' and '.join(form.label for form in self.forms)} with onnxruntime on the CPU"

    @property
    def _cost_names(self) -> set[str]:
        """The names of the costs and speed-ups that a trial has."""
        return set[str]().union(*(record.costs for record in self.records))

    def place(self, record: TrialRecord) -> str:
        """`chosen`, `front`, or the empty string for any other trial."""
        if record.number == self.chosen:
            return "chosen"
        return "front" if record.number in self.front else ""

    def by_quality(self) -> list[TrialRecord]:
        """The trials, the best quality first; trials that failed or have no quality are last."""
        return sorted(self.records, key=lambda record: (self._sort_value(record), record.number))

    def worst_quality(self, records: Sequence[TrialRecord]) -> float:
        """The worst quality of these trials; 0 if there are none."""
        values = [record.metrics[self.quality] for record in records]
        return (max if self.is_quality_minimized else min)(values, default=0.0)

    def _sort_value(self, record: TrialRecord) -> float:
        value = record.metrics.get(self.quality, math.nan)
        # NaN is neither smaller nor larger than any number, so it would leave the order undefined.
        if record.state == "failed" or math.isnan(value):
            return math.inf
        return value if self.is_quality_minimized else -value
