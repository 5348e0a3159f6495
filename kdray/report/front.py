"""The front: quality over cost, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from kdray.evaluation.formatting import heading
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.figures import Figures

FRONT, CHOSEN, TEACHER, OTHER, CONTROL = "#1f6fb4", "#e4572e", "#222222", "#9aa5b1", "#7a5195"


def front_picture(figures: Figures) -> Picture:
    """Quality over cost: every trial, the front, the teacher, the chosen student."""
    picture = Picture(figsize=(8.5, 5.2), layout="constrained")
    axes = picture.add_subplot()
    for group in groups(figures):
        x, y = points(figures, group.records)
        fill, edge = ("none", group.color) if group.hollow else (group.color, "white")
        size = 190 if group.marker == "*" else 46
        axes.scatter(
            x, y, s=size, marker=group.marker, facecolors=fill, edgecolors=edge, label=group.label, zorder=group.order
        )
    axes.plot(*front_line(figures), color=FRONT, linewidth=1.2, alpha=0.6, zorder=2)
    for record in _front(figures):
        name = f"{record.number:03d}  {_depth(record)}".rstrip()
        at = (record.metrics[figures.cost], record.metrics[figures.quality])
        axes.annotate(name, at, (-7, 7), textcoords="offset points", fontsize=8, ha="right", color=FRONT)
    _draw_teacher(figures, axes)
    if wide(figures):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
    axes.margins(0.1)
    axes.set_xlabel(axis_title(figures.cost))
    axes.set_ylabel(axis_title(figures.quality))
    axes.set_title(title(figures), loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", framealpha=0.9, edgecolor="none")
    return picture


@dataclass(frozen=True)
class Group:
    """Trials that look alike in the picture."""

    label: str
    color: str
    marker: str
    order: int
    records: Sequence[TrialRecord]
    hollow: bool = False


def groups(figures: Figures) -> list[Group]:
    rest = [record for record in drawable(figures) if not figures.place(record)]
    ended = [record for record in rest if record.state != "stopped"]
    stopped = [record for record in rest if record.state == "stopped"]
    chosen = [record for record in drawable(figures) if figures.place(record) == "chosen"]
    front = [record for record in _front(figures) if record not in chosen]
    groups = [
        Group("stopped early", OTHER, "o", 3, stopped, hollow=True),
        Group("other trials", OTHER, "o", 4, ended),
        Group("Pareto front", FRONT, "o", 5, front),
        Group("chosen student", CHOSEN, "*", 6, chosen),
    ]
    return [group for group in groups if group.records]


def drawable(figures: Figures) -> list[TrialRecord]:
    needed = (figures.cost, figures.quality)
    return [r for r in figures.records if r.state != "failed" and all(name in r.metrics for name in needed)]


def _front(figures: Figures) -> list[TrialRecord]:
    return [record for record in drawable(figures) if record.number in figures.front]


def points(figures: Figures, records: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    return [r.metrics[figures.cost] for r in records], [r.metrics[figures.quality] for r in records]


def front_line(figures: Figures) -> tuple[list[float], list[float]]:
    return points(figures, sorted(_front(figures), key=lambda record: record.metrics[figures.cost]))


def wide(figures: Figures) -> bool:
    """Whether the costs differ so much that only a logarithmic axis keeps them apart."""
    costs = [record.metrics[figures.cost] for record in drawable(figures)]
    costs += [figures.teacher[figures.cost]] if figures.cost in figures.teacher else []
    return bool(costs) and min(costs) > 0 and max(costs) / min(costs) > 12


def _draw_teacher(figures: Figures, axes: Axes) -> None:
    level = figures.teacher.get(figures.quality)
    if level is None:
        return
    axes.axhline(level, color=TEACHER, linewidth=0.8, linestyle=":", zorder=1)
    if figures.cost in figures.teacher:
        axes.scatter([figures.teacher[figures.cost]], [level], s=70, c=TEACHER, marker="D", label="teacher", zorder=5)


def _depth(record: TrialRecord) -> str:
    return f"depth {record.params['student.depth']}" if "student.depth" in record.params else ""


def title(figures: Figures) -> str:
    return f"{figures.name}: {heading(figures.quality)} over {heading(figures.cost)}"


def axis_title(metric: str) -> str:
    unit = {
        "latency_ms": " (ms, median)",
        "latency_p95_ms": " (ms)",
        "size_mb": " (MB)",
        "throughput_per_s": " (examples/s)",
    }.get(metric.removeprefix("cpu_"), "")
    return heading(metric) + unit
