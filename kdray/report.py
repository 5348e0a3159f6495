"""What came out, for a person: the table, results.csv, report.md, and the Pareto front as a picture and as a page.

It is told which trials are on the front and which one is chosen, and works out nothing of that itself.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdray.paths import new_folder
from kdray.record import TrialRecord
from kdray.wording import cut, heading, headings, number, setting, settings, status

_COSTS = ("latency_ms", "latency_p95_ms", "parameters", "size_mb")
_FRONT, _CHOSEN, _TEACHER, _OTHER = "#1f6fb4", "#e4572e", "#222222", "#9aa5b1"
_MARKS = {"chosen": "★", "front": "●", "": ""}
_PLACE_STYLES = {"chosen": "bold green", "front": "cyan"}
_STATUS_STYLES = {"running": "cyan", "completed": "", "stopped": "dim", "failed": "red"}


@dataclass(frozen=True)
class Figures:
    """All that the report shows."""

    name: str
    """The sweep's."""
    teacher: Mapping[str, float]
    """Its metrics and costs, under the names that trials have them."""
    records: Sequence[TrialRecord]
    front: Sequence[int] = ()
    """The numbers of the trials on the Pareto front."""
    chosen: int | None = None
    sentences: Sequence[str] = ()
    """The choice in words."""
    objectives: Sequence[str] = ("accuracy", "latency_ms")
    searched: Sequence[str] = field(default=())
    """The dotted names of the searched settings."""

    @property
    def quality(self) -> str:
        """The first objective that says how good a student is."""
        return next((name for name in self.objectives if name not in _COSTS), "accuracy")

    @property
    def cost(self) -> str:
        """The first objective that says what a student costs."""
        return next((name for name in self.objectives if name in _COSTS), "latency_ms")

    @property
    def columns(self) -> list[str]:
        """The metrics worth a column: the objectives, then what everyone asks for."""
        usual = (self.quality, "retention", "latency_ms", "speedup", "parameters")
        return list(dict.fromkeys((*usual, *self.objectives)))

    def place(self, record: TrialRecord) -> str:
        """`chosen`, `front`, or neither."""
        return "chosen" if record.number == self.chosen else "front" if record.number in self.front else ""

    def ranked(self) -> list[TrialRecord]:
        """The trials, the best quality first, those without a result last."""
        return sorted(self.records, key=lambda record: (-self._worth(record), record.number))

    def _worth(self, record: TrialRecord) -> float:
        value = record.metrics.get(self.quality, float("nan"))
        return value if record.state != "failed" and value == value else float("-inf")


def table(figures: Figures) -> Table:
    """All trials beside the teacher, the best first; the front and the chosen one are marked."""
    records = figures.ranked()
    titles = ["trial", *headings(figures.searched).values(), *(heading(name) for name in figures.columns)]
    rows = [_teacher_cells(figures), *(_cells(figures, record) for record in records)]
    result = Table(
        title=figures.name, caption=_legend(figures), header_style="bold", title_justify="left",
        caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for title in titles:
        result.add_column(title, justify="right", no_wrap=True)
    result.add_column("status", overflow="ellipsis", no_wrap=True, max_width=40)
    result.add_row(*rows[0], "", end_section=True)
    for record, row in zip(records, rows[1:], strict=True):
        ending = Text(cut(status(record), 200), style=_STATUS_STYLES[record.state])
        result.add_row(*row, ending, style=_PLACE_STYLES.get(figures.place(record)))
    result.width = Console(width=1000).measure(result).maximum  # a narrow terminal cuts the right end, not each number
    return result


def write_report(figures: Figures, folder: Path) -> None:
    """Write results.csv, report.md, front.png and front.html; the folder is replaced as a whole."""
    with new_folder(folder) as place:
        (place / "results.csv").write_text(results_csv(figures))
        (place / "report.md").write_text(markdown(figures))
        front_picture(figures).savefig(place / "front.png", dpi=150)
        front_page(figures).write_html(place / "front.html", include_plotlyjs=True)


def results_csv(figures: Figures) -> str:
    """One line a trial with everything that is known of it, in full precision and under the dotted names."""
    params = list(dict.fromkeys(name for record in figures.records for name in record.params))
    metrics = list(dict.fromkeys(name for record in figures.records for name in record.metrics))
    text = io.StringIO()
    columns = ["trial", "state", "place", *params, *metrics, "seconds", "attempts", "host", "error", "run_id"]
    rows = csv.DictWriter(text, columns, lineterminator="\n")
    rows.writeheader()
    for record in figures.records:
        rows.writerow(
            {
                "trial": record.number,
                "state": record.state,
                "place": figures.place(record),
                **record.params,
                **record.metrics,
                "seconds": round(record.ended - record.started, 3) if record.ended else "",
                "attempts": record.attempts,
                "host": record.host,
                "error": record.error or "",
                "run_id": record.run_id or "",
            }
        )
    return text.getvalue()


def markdown(figures: Figures) -> str:
    """The report in words and tables."""
    parts = [f"# {figures.name}", *figures.sentences]
    best = next((record for record in figures.records if record.number == figures.chosen), None)
    if best is not None:
        parts += ["## The chosen student beside its teacher", _beside_teacher(figures, best), _settings_of(best)]
    on_front = [record for record in figures.ranked() if figures.place(record)]
    objectives = " and ".join(heading(name) for name in figures.objectives)
    parts += [
        f"## The Pareto front of {objectives}",
        "No trial is better than these in one objective without being worse in another. Point at a trial in "
        "[front.html](front.html) to see its settings.",
        "![The Pareto front](front.png)",
        _trials(figures, on_front),
        "## All trials",
        _trials(figures, figures.ranked()),
    ]
    failed = [f"- trial {r.number:03d}: {' '.join((r.error or '').split())}" for r in figures.records if r.error]
    parts += ["## What failed", "\n".join(failed)] if failed else []
    parts.append("All numbers in full, under the names that MLflow has them: [results.csv](results.csv).")
    return "\n\n".join(parts) + "\n"


def front_picture(figures: Figures) -> Picture:
    """Quality over cost: every trial, the front, the teacher, the chosen student."""
    picture = Picture(figsize=(8.5, 5.2), layout="constrained")
    axes = picture.add_subplot()
    for group in _groups(figures):
        x, y = _points(figures, group.records)
        fill, edge = ("none", group.color) if group.hollow else (group.color, "white")
        size = 190 if group.marker == "*" else 46
        axes.scatter(
            x, y, s=size, marker=group.marker, facecolors=fill, edgecolors=edge, label=group.label, zorder=group.order
        )
    axes.plot(*_front_line(figures), color=_FRONT, linewidth=1.2, alpha=0.6, zorder=2)
    for record in _front(figures):
        name = f"{record.number:03d}  {_depth(record)}".rstrip()
        at = (record.metrics[figures.cost], record.metrics[figures.quality])
        axes.annotate(name, at, (-7, 7), textcoords="offset points", fontsize=8, ha="right", color=_FRONT)
    _draw_teacher(figures, axes)
    if _wide(figures):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
    axes.margins(0.1)
    axes.set_xlabel(_axis_title(figures.cost))
    axes.set_ylabel(_axis_title(figures.quality))
    axes.set_title(_title(figures), loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", framealpha=0.9, edgecolor="none")
    return picture


def front_page(figures: Figures) -> go.Figure:
    """The same as a page that tells each trial's settings under the pointer."""
    page = go.Figure()
    x, y = _front_line(figures)
    page.add_scatter(x=x, y=y, mode="lines", line={"color": _FRONT, "width": 1}, hoverinfo="skip", showlegend=False)
    for group in _groups(figures):
        x, y = _points(figures, group.records)
        symbol = {"*": "star", "o": "circle", "D": "diamond"}[group.marker] + ("-open" if group.hollow else "")
        marker = {"color": group.color, "symbol": symbol, "size": 16 if group.marker == "*" else 9}
        texts = [_hover(figures, record) for record in group.records]
        page.add_scatter(x=x, y=y, mode="markers", name=group.label, marker=marker, text=texts, hoverinfo="text")
    if figures.quality in figures.teacher:
        level = figures.teacher[figures.quality]
        page.add_hline(y=level, line={"color": _TEACHER, "width": 1, "dash": "dot"})
        if figures.cost in figures.teacher:
            numbers = [f"{heading(name)} {number(name, figures.teacher.get(name))}" for name in figures.teacher]
            page.add_scatter(
                x=[figures.teacher[figures.cost]], y=[level], mode="markers", name="teacher", hoverinfo="text",
                text=["<br>".join(["<b>teacher</b>", *numbers])],
                marker={"color": _TEACHER, "symbol": "diamond", "size": 12},
            )  # fmt: skip
    page.update_layout(template="plotly_white", title=_title(figures), hoverlabel={"align": "left"})
    page.update_xaxes(title=_axis_title(figures.cost), type="log" if _wide(figures) else "linear")
    page.update_yaxes(title=_axis_title(figures.quality))
    return page


@dataclass(frozen=True)
class _Group:
    """Trials that look alike in the picture."""

    label: str
    color: str
    marker: str
    order: int
    records: Sequence[TrialRecord]
    hollow: bool = False


def _groups(figures: Figures) -> list[_Group]:
    rest = [record for record in _drawable(figures) if not figures.place(record)]
    ended = [record for record in rest if record.state != "stopped"]
    stopped = [record for record in rest if record.state == "stopped"]
    chosen = [record for record in _drawable(figures) if figures.place(record) == "chosen"]
    front = [record for record in _front(figures) if record not in chosen]
    groups = [
        _Group("stopped early", _OTHER, "o", 3, stopped, hollow=True),
        _Group("other trials", _OTHER, "o", 4, ended),
        _Group("Pareto front", _FRONT, "o", 5, front),
        _Group("chosen student", _CHOSEN, "*", 6, chosen),
    ]
    return [group for group in groups if group.records]


def _drawable(figures: Figures) -> list[TrialRecord]:
    needed = (figures.cost, figures.quality)
    return [r for r in figures.records if r.state != "failed" and all(name in r.metrics for name in needed)]


def _front(figures: Figures) -> list[TrialRecord]:
    return [record for record in _drawable(figures) if record.number in figures.front]


def _points(figures: Figures, records: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    return [r.metrics[figures.cost] for r in records], [r.metrics[figures.quality] for r in records]


def _front_line(figures: Figures) -> tuple[list[float], list[float]]:
    return _points(figures, sorted(_front(figures), key=lambda record: record.metrics[figures.cost]))


def _wide(figures: Figures) -> bool:
    """Whether the costs differ so much that only a logarithmic axis keeps them apart."""
    costs = [record.metrics[figures.cost] for record in _drawable(figures)]
    costs += [figures.teacher[figures.cost]] if figures.cost in figures.teacher else []
    return bool(costs) and min(costs) > 0 and max(costs) / min(costs) > 12


def _draw_teacher(figures: Figures, axes: Axes) -> None:
    level = figures.teacher.get(figures.quality)
    if level is None:
        return
    axes.axhline(level, color=_TEACHER, linewidth=0.8, linestyle=":", zorder=1)
    if figures.cost in figures.teacher:
        axes.scatter([figures.teacher[figures.cost]], [level], s=70, c=_TEACHER, marker="D", label="teacher", zorder=5)


def _depth(record: TrialRecord) -> str:
    return f"depth {record.params['student.depth']}" if "student.depth" in record.params else ""


def _title(figures: Figures) -> str:
    return f"{figures.name}: {heading(figures.quality)} over {heading(figures.cost)}"


def _axis_title(metric: str) -> str:
    unit = {"latency_ms": " (ms, median)", "latency_p95_ms": " (ms)", "size_mb": " (MB)"}.get(metric, "")
    return heading(metric) + unit


def _hover(figures: Figures, record: TrialRecord) -> str:
    lines = [f"<b>trial {record.number:03d}</b>  {status(record)}"]
    lines += [f"{short} {setting(record.params[name])}" for name, short in headings(record.params).items()]
    lines += [f"{heading(name)} {number(name, record.metrics.get(name))}" for name in figures.columns]
    return "<br>".join(lines)


def _legend(figures: Figures) -> str:
    objectives = ", ".join(heading(name) for name in figures.objectives)
    parts = [f"{_MARKS['chosen']} chosen"] if figures.chosen is not None else []
    parts += [f"{_MARKS['front']} Pareto front ({objectives})"] if figures.front else []
    return "   ".join(parts)


def _teacher_cells(figures: Figures) -> list[str]:
    teacher = {"retention": 1.0, "speedup": 1.0, **figures.teacher}
    numbers = (number(name, teacher.get(name)) for name in figures.columns)
    return ["teacher", *("" for _ in headings(figures.searched)), *numbers]


def _cells(figures: Figures, record: TrialRecord) -> list[str]:
    return [
        f"{_MARKS[figures.place(record)]} {record.number:03d}".strip(),
        *(setting(record.params.get(name, "-")) for name in headings(figures.searched)),
        *(number(name, record.metrics.get(name)) for name in figures.columns),
    ]


def _beside_teacher(figures: Figures, best: TrialRecord) -> str:
    teacher = {"retention": 1.0, "speedup": 1.0, **figures.teacher}
    rows = [
        [heading(name), number(name, teacher.get(name)), number(name, best.metrics.get(name))]
        for name in dict.fromkeys((*figures.columns, "macro_f1", "mcc", "agreement", "size_mb", "latency_p95_ms"))
        if name in best.metrics
    ]
    return _markdown_table(["", "teacher", f"trial {best.number:03d}"], rows)


def _settings_of(best: TrialRecord) -> str:
    return f"Its settings: {settings(best.params)}."


def _trials(figures: Figures, records: Sequence[TrialRecord]) -> str:
    names = headings(figures.searched).values()
    titles = ["trial", *names, *(heading(name) for name in figures.columns), "status"]
    return _markdown_table(titles, [[*_cells(figures, record), cut(status(record), 60)] for record in records])


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
