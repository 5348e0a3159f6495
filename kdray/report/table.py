"""The table of all trials: on a terminal, and its cells for the other forms."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdray.evaluation.formatting import format_metric, format_setting, format_status, heading, headings, shorten
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.figures import Figures

MARKS = {"chosen": "★", "front": "●", "": ""}
_PLACE_STYLES = {"chosen": "bold green", "front": "cyan"}
_STATUS_STYLES = {"running": "cyan", "completed": "", "stopped": "dim", "failed": "red"}


def table(figures: Figures) -> Table:
    """All trials beside the teacher, the best first; the front and the chosen one are marked."""
    records = figures.ranked()
    titles = ["trial", *headings(figures.searched).values(), *(heading(name) for name in figures.columns)]
    rows = [teacher_cells(figures), *(cells(figures, record) for record in records)]
    result = Table(
        title=Text(figures.name),
        caption=Text(_legend(figures)),
        header_style="bold",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for title in titles:
        result.add_column(Text(title), justify="right", no_wrap=True)
    result.add_column("status", overflow="ellipsis", no_wrap=True, max_width=40)
    result.add_row(*map(Text, rows[0]), "", end_section=True)
    for record, row in zip(records, rows[1:], strict=True):
        ending = Text(shorten(format_status(record), 200), style=_STATUS_STYLES[record.state])
        result.add_row(*map(Text, row), ending, style=_PLACE_STYLES.get(figures.place(record)))
    result.width = Console(width=1000).measure(result).maximum  # a narrow terminal cuts the right end, not each number
    return result


def cells(figures: Figures, record: TrialRecord) -> list[str]:
    return [
        f"{MARKS[figures.place(record)]} {record.number:03d}".strip(),
        *(format_setting(record.params.get(name, "-")) for name in headings(figures.searched)),
        *(format_metric(name, record.metrics.get(name)) for name in figures.columns),
    ]


def teacher_cells(figures: Figures) -> list[str]:
    teacher = {"retention": 1.0, "speedup": 1.0, **figures.teacher}
    numbers = (format_metric(name, teacher.get(name)) for name in figures.columns)
    return ["teacher", *("" for _ in headings(figures.searched)), *numbers]


def _legend(figures: Figures) -> str:
    objectives = ", ".join(heading(name) for name in figures.objectives)
    parts = [f"{MARKS['chosen']} chosen"] if figures.chosen is not None else []
    parts += [f"{MARKS['front']} Pareto front ({objectives})"] if figures.front else []
    return "   ".join(parts) + (f"\nmeasured: {figures.conditions}" if figures.conditions else "")
