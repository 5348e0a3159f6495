"""The files of the report: report.html, report.md, results.csv and front.png."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdray.choice.verdict import Verdict
from kdray.evaluation.formatting import format_metric, format_settings, format_status, heading, headings, shorten
from kdray.evaluation.trial_record import TrialRecord
from kdray.report import confirmed, controls
from kdray.report.figures import Figures
from kdray.report.front import front_picture
from kdray.report.page import page
from kdray.report.table import trial_cells
from kdray.storage.files import replace_folder


def write_report(figures: Figures, folder: Path) -> None:
    """Write report.html, report.md, results.csv and front.png into a new folder that replaces the old one."""
    with replace_folder(folder) as new_folder:
        (new_folder / "results.csv").write_text(results_csv(figures), encoding="utf-8")
        (new_folder / "report.md").write_text(markdown(figures), encoding="utf-8")
        front_picture(figures).savefig(new_folder / "front.png", dpi=150)
        (new_folder / "report.html").write_text(page(figures), encoding="utf-8")


def results_csv(figures: Figures) -> str:
    """The text of results.csv: one line for each trial, in full precision and under the dotted names."""
    params = list(dict.fromkeys(name for record in figures.records for name in record.params))
    metrics = list(dict.fromkeys(name for record in figures.records for name in record.metrics))
    text = io.StringIO()
    columns = ["trial", "state", "place", *params, *metrics, "seconds", "attempts", "host", "error", "run_id"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in figures.records:
        writer.writerow(
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
    """The text of report.md."""
    parts = [f"# {figures.name}", *figures.sentences]
    chosen = next((record for record in figures.records if record.number == figures.chosen), None)
    if chosen is not None:
        parts += [
            "## The chosen student and its teacher, on the validation rows",
            _teacher_table(figures, chosen),
            f"Settings of trial {chosen.number:03d}: {format_settings(chosen.params)}.",
        ]
        parts += [f"Measured: {figures.conditions}."] if figures.conditions else []
    if figures.verdict is not None:
        parts += ["## Confirmed", *_confirmation(figures.verdict)]
    on_front = [record for record in figures.by_quality() if figures.place(record)]
    objectives = " and ".join(heading(name) for name in figures.objectives)
    parts += [
        f"## The Pareto front of {objectives}",
        "No trial is better than these in one objective without being worse in another. To see the settings of a "
        "trial, point at it in [report.html](report.html).",
        "![The Pareto front](front.png)",
        _trial_table(figures, on_front),
        "## All trials",
        _trial_table(figures, figures.by_quality()),
    ]
    if figures.controls:
        parts += [f"## {controls.TITLE}", *_controls(figures)]
    failures = [f"trial {r.number:03d}: {' '.join((r.error or '').split())}" for r in figures.records if r.error]
    parts += ["## Failed trials", *_bullets(failures)] if failures else []
    parts.append("All figures in full precision, under their names in MLflow: [results.csv](results.csv).")
    return "\n\n".join(parts) + "\n"


def _teacher_table(figures: Figures, chosen: TrialRecord) -> str:
    teacher = {"retention": 1.0, "speedup": 1.0, **figures.teacher}
    rows = [
        [heading(name), format_metric(name, teacher.get(name)), format_metric(name, chosen.metrics.get(name))]
        for name in dict.fromkeys((*figures.columns, "macro_f1", "mcc", "agreement", *figures.costs))
        if name in chosen.metrics
    ]
    return _markdown_table(["", "teacher", f"trial {chosen.number:03d}"], rows)


def _confirmation(verdict: Verdict) -> list[str]:
    rows = [cells for _, cells in confirmed.rows(verdict)]
    table = _markdown_table(confirmed.titles(verdict), rows)
    return [confirmed.about(verdict), table, *_bullets(confirmed.failures(verdict))]


def _controls(figures: Figures) -> list[str]:
    table = _markdown_table(controls.titles(figures), [cells for _, cells in controls.rows(figures)])
    return [controls.ABOUT, table, *_bullets(controls.failures(figures))]


def _bullets(lines: Sequence[str]) -> list[str]:
    """One list of these lines, or nothing if there are no lines."""
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _trial_table(figures: Figures, records: Sequence[TrialRecord]) -> str:
    names = headings(figures.searched).values()
    titles = ["trial", *names, *(heading(name) for name in figures.columns), "status"]
    rows = [[*trial_cells(figures, record), shorten(format_status(record), 60)] for record in records]
    return _markdown_table(titles, rows)


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    # A vertical bar in a cell, as in an error, would begin a new column.
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
