"""The files of the report: report.html, report.md, results.csv and front.png."""

import io
from collections.abc import Sequence
from pathlib import Path

from kdray.choice.verdict import Verdict
from kdray.evaluation.formatting import format_metric, format_settings, format_status, heading, headings, shorten
from kdray.evaluation.trial_record import TrialRecord
from kdray.report import confirmed, controls, labels, teachers, terms
from kdray.report.families import about_families
from kdray.report.figures import Figures
from kdray.report.front import write_front
from kdray.report.page import page
from kdray.report.table import trial_cells
from kdray.safe_text.escaping import markdown_table, markdown_text
from kdray.safe_text.secrets import mask_secrets
from kdray.safe_text.spreadsheet import write_csv
from kdray.storage.files import replace_folder
from kdray.tasks.task import Task


def write_report(figures: Figures, folder: Path) -> None:
    """Write report.html, report.md, results.csv and front.png into a new folder that replaces the old one."""
    with replace_folder(folder) as new_folder:
        (new_folder / "results.csv").write_text(results_csv(figures), encoding="utf-8")
        (new_folder / "report.md").write_text(markdown(figures), encoding="utf-8")
        write_front(figures, new_folder / "front.png")
        (new_folder / "report.html").write_text(page(figures), encoding="utf-8")


def results_csv(figures: Figures) -> str:
    """The text of results.csv: one line for each trial, in full precision and under the dotted names."""
    params = list(dict.fromkeys(name for record in figures.records for name in record.params))
    metrics = list(dict.fromkeys(name for record in figures.records for name in record.metrics))
    columns = ["trial", "state", "place", *params, *metrics, "seconds", "attempts", "host", "error", "run_id"]
    rows = [
        {
            "trial": record.number,
            "state": record.state,
            "place": figures.place(record),
            **record.params,
            **record.metrics,
            "seconds": round(record.ended - record.started, 3) if record.ended else "",
            "attempts": record.attempts,
            "host": record.host,
            "error": mask_secrets(record.error or ""),
            "run_id": record.run_id or "",
        }
        for record in figures.records
    ]
    text = io.StringIO()
    write_csv(text, [columns, *([row.get(name, "") for name in columns] for row in rows)])
    return text.getvalue()


def markdown(figures: Figures) -> str:
    """The text of report.md."""
    parts = [f"# {markdown_text(figures.name)}", *map(markdown_text, figures.sentences)]
    chosen = next((record for record in figures.records if record.number == figures.chosen), None)
    if chosen is not None:
        parts += [
            "## The chosen student and its teacher, on the validation rows",
            _teacher_table(figures, chosen),
            markdown_text(f"Settings of trial {chosen.number:03d}: {format_settings(chosen.params)}."),
        ]
        parts.append(figures.terms)
        parts += [markdown_text(f"Measured: {figures.measured}.")] if figures.measured else []
        parts += [about_rows] if (about_rows := markdown_text(teachers.about_rows(figures))) else []
    if figures.verdict is not None:
        parts += ["## Confirmed", *_confirmation(figures.verdict, figures.task)]
    if figures.by_label:
        label_rows = [cells for _, cells in labels.rows(figures)]
        table = markdown_table(labels.titles(figures), label_rows)
        parts += [f"## {labels.TITLE}", markdown_text(labels.about(figures)), table]
    on_front = [record for record in figures.by_quality() if figures.place(record)]
    objectives = markdown_text(" and ".join(heading(name) for name in figures.objectives))
    parts += [
        f"## The Pareto front of {objectives}",
        "No trial is better than these in one objective without being worse in another. To see the settings of a "
        "trial, point at it in [report.html](report.html).",
        "![The Pareto front](front.png)",
        *([markdown_text(about)] if (about := about_families(figures)) else []),
        _trial_table(figures, on_front),
        "## All trials",
        _trial_table(figures, figures.by_quality()),
    ]
    if figures.several_teachers:
        parts += ["## The teachers, on the validation rows", markdown_text(teachers.about_models(figures))]
        parts.append(_teachers_table(figures))
    if teachers.earlier_sweeps(figures):
        table = markdown_table(teachers.earlier_titles(figures), teachers.earlier_rows(figures))
        parts += [f"## {teachers.EARLIER_TITLE}", markdown_text(teachers.earlier_about(figures)), table]
    if figures.controls:
        parts += [f"## {controls.TITLE}", *_controls(figures)]
    if terms.has_further_terms(figures):
        table = markdown_table(terms.titles(figures), [cells for _, cells in terms.rows(figures)])
        parts += [f"## {terms.TITLE}", markdown_text(terms.about(figures)), table]
    failures = [f"trial {r.number:03d}: {r.error}" for r in figures.records if r.error]
    parts += ["## Failed trials", *_bullets(failures)] if failures else []
    parts.append("All figures in full precision, under their names in MLflow: [results.csv](results.csv).")
    return "\n\n".join(parts) + "\n"


def _teacher_table(figures: Figures, chosen: TrialRecord) -> str:
    qualities = (figures.quality, *figures.task_metrics, "retention", "agreement")
    rows = [
        [heading(name), teachers.teacher_value(figures, name), format_metric(name, chosen.metrics.get(name))]
        for name in dict.fromkeys((*qualities, *figures.columns, *figures.costs))
        if name in chosen.metrics
    ]
    return markdown_table(["", "teacher", f"trial {chosen.number:03d}"], rows)


def _teachers_table(figures: Figures) -> str:
    names = list(dict.fromkeys((figures.quality, *figures.task_metrics, *figures.costs)))
    rows = [
        [name, *(teachers.teacher_value(figures, metric, own) for metric in names)]
        for name, own in teachers.teacher_names(figures)
    ]
    return markdown_table(["", *map(heading, names)], rows)


def _confirmation(verdict: Verdict, task: Task) -> list[str]:
    rows = [cells for _, cells in confirmed.rows(verdict, task)]
    table = markdown_table(confirmed.titles(verdict), rows)
    return [confirmed.about(verdict), table, *_bullets(confirmed.failures(verdict))]


def _controls(figures: Figures) -> list[str]:
    table = markdown_table(controls.titles(figures), [cells for _, cells in controls.rows(figures)])
    return [controls.about(figures), table, *_bullets(controls.failures(figures))]


def _bullets(lines: Sequence[str]) -> list[str]:
    """One list of these lines, or nothing if there are no lines."""
    return ["\n".join(f"- {markdown_text(line)}" for line in lines)] if lines else []


def _trial_table(figures: Figures, records: Sequence[TrialRecord]) -> str:
    names = headings(figures.searched).values()
    titles = ["trial", *names, *(heading(name) for name in figures.columns), "status"]
    rows = [[*trial_cells(figures, record), shorten(format_status(record), 60)] for record in records]
    return markdown_table(titles, rows)
