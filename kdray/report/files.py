"""The report as files for people and programs: report.html, report.md, results.csv and front.png."""

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
from kdray.report.table import cells
from kdray.storage.files import replace_folder


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
        parts += [
            "## The chosen student beside its teacher, on the validation rows",
            _beside_teacher(figures, best),
            _settings_of(best),
        ]
        parts += [f"Measured: {figures.conditions}."] if figures.conditions else []
    if figures.verdict is not None:
        parts += ["## Confirmed", *_confirmation(figures.verdict)]
    on_front = [record for record in figures.ranked() if figures.place(record)]
    objectives = " and ".join(heading(name) for name in figures.objectives)
    parts += [
        f"## The Pareto front of {objectives}",
        "No trial is better than these in one objective without being worse in another. Point at a trial in "
        "[report.html](report.html) to see its settings.",
        "![The Pareto front](front.png)",
        _trials(figures, on_front),
        "## All trials",
        _trials(figures, figures.ranked()),
    ]
    if figures.controls:
        parts += ["## What distillation and the search bring at each size", *_controls(figures)]
    failed = [f"trial {r.number:03d}: {' '.join((r.error or '').split())}" for r in figures.records if r.error]
    parts += ["## What failed", *_listed(failed)] if failed else []
    parts.append("All numbers in full, under the names that MLflow has them: [results.csv](results.csv).")
    return "\n\n".join(parts) + "\n"


def _beside_teacher(figures: Figures, best: TrialRecord) -> str:
    teacher = {"retention": 1.0, "speedup": 1.0, **figures.teacher}
    rows = [
        [heading(name), format_metric(name, teacher.get(name)), format_metric(name, best.metrics.get(name))]
        for name in dict.fromkeys((*figures.columns, "macro_f1", "mcc", "agreement", *figures.costs))
        if name in best.metrics
    ]
    return _markdown_table(["", "teacher", f"trial {best.number:03d}"], rows)


def _confirmation(verdict: Verdict) -> list[str]:
    """Each candidate and its controls, on the test rows."""
    rows = [cells for _, cells in confirmed.rows(verdict)]
    table = _markdown_table(confirmed.titles(verdict), rows)
    return [confirmed.about(verdict), table, *_listed(confirmed.failures(verdict))]


def _controls(figures: Figures) -> list[str]:
    """Each architecture of the front beside its controls, on the validation rows."""
    table = _markdown_table(controls.titles(figures), [cells for _, cells in controls.rows(figures)])
    return [controls.ABOUT, table, *_listed(controls.failures(figures))]


def _listed(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _settings_of(best: TrialRecord) -> str:
    return f"Its settings: {format_settings(best.params)}."


def _trials(figures: Figures, records: Sequence[TrialRecord]) -> str:
    names = headings(figures.searched).values()
    titles = ["trial", *names, *(heading(name) for name in figures.columns), "status"]
    return _markdown_table(
        titles, [[*cells(figures, record), shorten(format_status(record), 60)] for record in records]
    )


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def write_report(figures: Figures, folder: Path) -> None:
    """Write report.html, report.md, results.csv and front.png; the folder is replaced as a whole."""
    with replace_folder(folder) as place:
        (place / "results.csv").write_text(results_csv(figures), encoding="utf-8")
        (place / "report.md").write_text(markdown(figures), encoding="utf-8")
        front_picture(figures).savefig(place / "front.png", dpi=150)
        (place / "report.html").write_text(page(figures), encoding="utf-8")
