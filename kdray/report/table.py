"""The table of all trials on a terminal, and its cells for report.md and the page."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdray.evaluation.formatting import format_metric, format_setting, format_status, heading, headings, shorten
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.families import about_families
from kdray.report.figures import Figures
from kdray.report.teachers import about_teacher, teacher_names, teacher_value
from kdray.safe_text.escaping import one_line, visible

MARKS = {"chosen": "★", "front": "●", "": ""}
_PLACE_STYLES = {"chosen": "bold green", "front": "cyan"}
_STATUS_STYLES = {"running": "cyan", "completed": "", "stopped": "dim", "failed": "red"}


def table(figures: Figures) -> Table:
    """The teacher and all trials, the best quality first; the front and the chosen trial are marked."""
    records = figures.by_quality()
    titles = ["trial", *headings(figures.searched).values(), *(heading(name) for name in figures.columns)]
    result = Table(
        title=_text(figures.name),
        caption=Text(visible(_legend(figures))),
        header_style="bold",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for title in titles:
        result.add_column(_text(title), justify="right", no_wrap=True)
    result.add_column("status", overflow="ellipsis", no_wrap=True, max_width=40)
    teachers = teacher_rows(figures)
    for number, cells in enumerate(teachers, start=1):
        result.add_row(*map(_text, cells), "", end_section=number == len(teachers))
    for record in records:
        status = Text(one_line(shorten(format_status(record), 200)), style=_STATUS_STYLES[record.state])
        result.add_row(
            *map(_text, trial_cells(figures, record)), status, style=_PLACE_STYLES.get(figures.place(record))
        )
    # Without a fixed width, rich shortens every cell on a narrow terminal. With it, the terminal cuts the right end.
    result.width = Console(width=1000).measure(result).maximum
    return result


def _text(cell: str) -> Text:
    # Text, not str: rich would read brackets in the name of a sweep or in a value as markup.
    return Text(one_line(cell))


def trial_cells(figures: Figures, record: TrialRecord) -> list[str]:
    """The cells of a trial, without its status."""
    return [
        f"{MARKS[figures.place(record)]} {record.number:03d}".strip(),
        *(format_setting(record.params.get(name, "-")) for name in headings(figures.searched)),
        *(format_metric(name, record.metrics.get(name)) for name in figures.columns),
    ]


def teacher_rows(figures: Figures) -> list[list[str]]:
    """The cells of the teacher, which has no searched settings, and of each of several models that teach together."""
    blanks = ["" for _ in headings(figures.searched)]
    return [
        [shorten(name, 60), *blanks, *(teacher_value(figures, metric, own) for metric in figures.columns)]
        for name, own in teacher_names(figures)
    ]


def _legend(figures: Figures) -> str:
    objectives = ", ".join(heading(name) for name in figures.objectives)
    parts = [f"{MARKS['chosen']} chosen"] if figures.chosen is not None else []
    parts += [f"{MARKS['front']} Pareto front ({objectives})"] if figures.front else []
    lines = ["   ".join(parts)]
    lines += [f"measured: {figures.measured}"] if figures.measured else []
    return "\n".join([*lines, *filter(None, [about_families(figures), about_teacher(figures)])])
