"""The picture front.png: the plot of the Pareto front, quality over cost. `plots` shares parts of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from kdray.evaluation.formatting import heading
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.metrics import split_form
from kdray.report.families import families, family_of
from kdray.report.figures import Figures
from kdray.safe_text.escaping import one_line

FRONT, CHOSEN, TEACHER, OTHER, CONTROL = "#1f6fb4", "#e4572e", "#222222", "#9aa5b1", "#7a5195"
_PLAIN: dict[str, Any] = {"parse_math": False}
"""For matplotlib's texts: it reads `$...$` as mathematics, and raises an error where that cannot be read."""
CHOSEN_MARKER = "*"
FAMILY_MARKERS = ("o", "s", "^", "P")
"""The markers of families, by their names in alphabetical order; with more families, they repeat."""
LOG_AXIS_RATIO = 12
"""The largest cost over the smallest one, above which the cost axis is logarithmic."""


def write_front(figures: Figures, file: Path) -> None:
    """Write the picture into this file, in the style of matplotlib's defaults.

    matplotlib takes its settings from a file `matplotlibrc` in the working directory, too, which may be a stranger's
    unpacked folder, and the setting `text.usetex` makes it run LaTeX with a text of that file.
    """
    # The backend is no part of the style, and none is loaded for a figure that is made without pyplot.
    style = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(style):
        front_picture(figures).savefig(file, dpi=150)


def front_picture(figures: Figures) -> Picture:
    """The picture of quality over cost: every trial, the front, the teacher, the chosen student."""
    picture = Picture(figsize=(8.5, 5.2), layout="constrained")
    axes = picture.add_subplot()
    for group in trial_groups(figures):
        x, y = coordinates(figures, group.records)
        fill, edge = ("none", group.color) if group.hollow else (group.color, "white")
        size = 190 if group.marker == CHOSEN_MARKER else 46
        axes.scatter(
            x, y, s=size, marker=group.marker, facecolors=fill, edgecolors=edge, label=group.label, zorder=group.order
        )
    axes.plot(*front_line(figures), color=FRONT, linewidth=1.2, alpha=0.6, zorder=2)
    # On the side of the front where no student is: below it if less of the quality is better.
    offset = (-7, -13) if figures.is_quality_minimized else (-7, 7)
    for record in _front_records(figures):
        name = one_line(f"{record.number:03d}  {_depth_label(record)}")
        point = (record.metrics[figures.cost], record.metrics[figures.quality])
        axes.annotate(name, point, offset, textcoords="offset points", fontsize=8, ha="right", color=FRONT, **_PLAIN)
    _draw_teacher(figures, axes)
    if needs_log_axis(figures):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
    axes.margins(0.1)
    axes.set_xlabel(one_line(axis_title(figures.cost)), **_PLAIN)
    axes.set_ylabel(one_line(quality_title(figures)), **_PLAIN)
    title = one_line(f"{figures.name}: {heading(figures.quality)} over {heading(figures.cost)}")
    axes.set_title(title, loc="left", weight="bold", **_PLAIN)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Where no student is: at a high cost with a bad quality.
        corner = "upper right" if figures.is_quality_minimized else "lower right"
        axes.legend(loc=corner, framealpha=0.9, edgecolor="none")
    return picture


@dataclass(frozen=True)
class TrialGroup:
    """Trials that look the same in the plot."""

    label: str
    color: str
    marker: str
    """A marker of matplotlib."""
    order: int
    """A group with a larger number is drawn over the others."""
    records: Sequence[TrialRecord]
    hollow: bool = False


def trial_groups(figures: Figures) -> list[TrialGroup]:
    """The groups of trials in the plot, without empty ones; of several families, each has a marker."""
    records = drawable_trials(figures)
    other = [record for record in records if not figures.place(record)]
    stopped = [record for record in other if record.state == "stopped"]
    ended = [record for record in other if record.state != "stopped"]
    chosen = [record for record in records if figures.place(record) == "chosen"]
    front = [record for record in _front_records(figures) if record not in chosen]
    groups = [
        TrialGroup(label="stopped early", color=OTHER, marker="o", order=3, records=stopped, hollow=True),
        TrialGroup(label="other trials", color=OTHER, marker="o", order=4, records=ended),
        TrialGroup(label="Pareto front", color=FRONT, marker="o", order=5, records=front),
        TrialGroup(label="chosen student", color=CHOSEN, marker=CHOSEN_MARKER, order=6, records=chosen),
    ]
    groups = [part for group in groups for part in _by_family(group, families(records))]
    return [group for group in groups if group.records]


def _by_family(group: TrialGroup, names: Sequence[str]) -> list[TrialGroup]:
    if not names or group.marker == CHOSEN_MARKER:
        return [group]
    return [
        replace(
            group,
            label=f"{group.label}, {name}",
            marker=FAMILY_MARKERS[number % len(FAMILY_MARKERS)],
            records=[record for record in group.records if family_of(record) == name],
        )
        for number, name in enumerate(names)
    ]


def drawable_trials(figures: Figures) -> list[TrialRecord]:
    """The trials that have both a quality and a cost, without failed ones."""
    needed = (figures.cost, figures.quality)
    return [r for r in figures.records if r.state != "failed" and all(name in r.metrics for name in needed)]


def coordinates(figures: Figures, records: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    """The costs and the qualities of these trials."""
    return [r.metrics[figures.cost] for r in records], [r.metrics[figures.quality] for r in records]


def front_line(figures: Figures) -> tuple[list[float], list[float]]:
    """The costs and the qualities of the trials on the front, by cost."""
    return coordinates(figures, sorted(_front_records(figures), key=lambda record: record.metrics[figures.cost]))


def needs_log_axis(figures: Figures) -> bool:
    """Whether the costs differ so much that only a logarithmic axis separates the cheap trials."""
    costs = [record.metrics[figures.cost] for record in drawable_trials(figures)]
    costs += [figures.teacher[figures.cost]] if figures.cost in figures.teacher else []
    return bool(costs) and min(costs) > 0 and max(costs) / min(costs) > LOG_AXIS_RATIO


def axis_title(metric: str) -> str:
    """The heading of a metric with its unit."""
    unit = {
        "latency_ms": " (ms, median)",
        "latency_p95_ms": " (ms)",
        "size_mb": " (MB)",
        "throughput_per_s": " (examples/s)",
    }.get(split_form(metric)[1].removeprefix("cpu_"), "")
    return heading(metric) + unit


def quality_title(figures: Figures) -> str:
    """The heading of the quality for an axis; it says so if less of it is better."""
    return heading(figures.quality) + (" (less is better)" if figures.is_quality_minimized else "")


def _front_records(figures: Figures) -> list[TrialRecord]:
    return [record for record in drawable_trials(figures) if record.number in figures.front]


def _draw_teacher(figures: Figures, axes: Axes) -> None:
    level = figures.teacher.get(figures.quality)
    if level is None:
        return
    axes.axhline(level, color=TEACHER, linewidth=0.8, linestyle=":", zorder=1)
    if figures.cost in figures.teacher:
        axes.scatter([figures.teacher[figures.cost]], [level], s=70, c=TEACHER, marker="D", label="teacher", zorder=5)


def _depth_label(record: TrialRecord) -> str:
    depth = f"depth {record.params['student.depth']}" if "student.depth" in record.params else ""
    return f"{family_of(record)} {depth}".strip()
