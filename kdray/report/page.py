"""report.html: the report as one page for a browser. It contains all that it shows, and needs no network."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kdray.choice.verdict import Verdict
from kdray.evaluation.formatting import (
    format_count,
    format_duration,
    format_metric,
    format_status,
    heading,
    headings,
    shorten,
)
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.metrics import FORM_SIZES, FORM_SPEEDUPS
from kdray.report import confirmed, controls, labels, plots, teachers, terms
from kdray.report.families import about_families
from kdray.report.figures import Figures
from kdray.report.table import teacher_rows, trial_cells
from kdray.safe_text.escaping import visible
from kdray.tasks.task import Task

PLOTS: tuple[tuple[str, str, Callable[[Figures], go.Figure | None]], ...] = (
    (
        "Quality and cost",
        "Every trial on the validation rows. No trial is better than those on the front in one objective without being "
        "worse in another. Crosses: the controls of the front, on the validation rows. Squares: the students that were "
        "trained again, on the test rows; their bars are 95% intervals. Point at a trial to see its settings.",
        plots.front_plot,
    ),
    ("Retention and speed-up", "The dotted line is the teacher's quality (100%).", plots.speed_plot),
    (
        "Settings",
        "One line for each completed trial. Drag along an axis to show only the trials in that range.",
        plots.parallel_plot,
    ),
    (
        "Importance of the settings",
        "The share of the differences among completed trials that each setting explains (fANOVA). With about a dozen "
        "trials this is only a hint.",
        plots.importance_plot,
    ),
    ("Temperature and alpha", "The completed trials; a brighter point has a better quality.", plots.map_plot),
    (
        "Learning curves",
        "Every evaluation of every trial. Crosses: trials that early stopping ended.",
        plots.curves_plot,
    ),
)
"""Title, caption and plot, in the order of the page."""

STUDENT_TILES = ("retention", "agreement", "speedup", *FORM_SPEEDUPS)
COST_TILES = ("latency_ms", "cpu_latency_ms", *FORM_SPEEDUPS.values(), "parameters", "size_mb", *FORM_SIZES)
"""The figures of the chosen student in the first section of the page, behind the metrics of its task."""


def page(figures: Figures) -> str:
    """The page as HTML."""
    # Autoescape: names, labels and errors come from users and their data, and must not become markup or scripts.
    template = Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible_in_page).from_string(
        resources.files("kdray.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    chosen = next((record for record in figures.records if record.number == figures.chosen), None)
    verdict = figures.verdict
    drawn = [(title, caption, plot(figures)) for title, caption, plot in PLOTS]
    return template.render(
        figures=figures,
        summary=_summary(figures),
        plotly_js=get_plotlyjs(),
        tiles=list(_chosen_tiles(figures, chosen)) if chosen else [],
        tiles_caption=_tiles_caption(figures),
        confirmed=_confirmed_section(verdict, figures.task) if verdict else None,
        labels=_labels_section(figures) if figures.by_label else None,
        controls=_controls_section(figures) if figures.controls else None,
        terms=_terms_section(figures) if terms.has_further_terms(figures) else None,
        earlier=_earlier_section(figures) if teachers.earlier_sweeps(figures) else None,
        plots=[(title, caption, _html(plot)) for title, caption, plot in drawn if plot is not None],
        time_tiles=list(_time_tiles(figures)),
        titles=["trial", *headings(figures.searched).values(), *map(heading, figures.columns), "status"],
        rows=list(_trial_rows(figures)),
        trials_caption=" ".join(
            filter(
                None,
                ["On the validation rows.", about_families(figures), teachers.about_teacher(figures), figures.measured],
            )
        ),
        versions=", ".join(f"{name} {value}" for name, value in figures.origin.items() if name != "command"),
    )


@dataclass(frozen=True)
class TableSection:
    """A section of the page with a table in which the row of the chosen student is marked."""

    title: str
    caption: str
    titles: Sequence[str]
    rows: Sequence[tuple[bool, Sequence[str]]]
    """For each row whether it is the chosen student, and its cells."""
    failures: Sequence[str]


def _confirmed_section(verdict: Verdict, task: Task) -> TableSection:
    return TableSection(
        title="Confirmed on test rows that the search did not use",
        caption=confirmed.about(verdict),
        titles=confirmed.titles(verdict),
        rows=list(confirmed.rows(verdict, task)),
        failures=confirmed.failures(verdict),
    )


def _controls_section(figures: Figures) -> TableSection:
    return TableSection(
        title=controls.TITLE,
        caption=controls.about(figures),
        titles=controls.titles(figures),
        rows=list(controls.rows(figures)),
        failures=controls.failures(figures),
    )


def _labels_section(figures: Figures) -> TableSection:
    return TableSection(
        title=labels.TITLE,
        caption=labels.about(figures),
        titles=labels.titles(figures),
        rows=list(labels.rows(figures)),
        failures=(),
    )


def _terms_section(figures: Figures) -> TableSection:
    return TableSection(
        title=terms.TITLE,
        caption=terms.about(figures),
        titles=terms.titles(figures),
        rows=list(terms.rows(figures)),
        failures=(),
    )


def _earlier_section(figures: Figures) -> TableSection:
    return TableSection(
        title=teachers.EARLIER_TITLE,
        caption=teachers.earlier_about(figures),
        titles=teachers.earlier_titles(figures),
        rows=[(False, cells) for cells in teachers.earlier_rows(figures)],
        failures=(),
    )


def _tiles_caption(figures: Figures) -> str:
    is_confirmed = figures.verdict is not None and figures.verdict.winner is not None
    rows = "On the test rows, averaged over the seeds." if is_confirmed else "On the validation rows."
    return f"{rows} {figures.terms}"


def _html(plot: go.Figure) -> str:
    return str(plotly.io.to_html(plot, include_plotlyjs=False, full_html=False, config={"displayModeBar": False}))


def _visible_in_page(value: object) -> object:
    """The value of an expression of the template, with control characters visible; HTML of this module stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _summary(figures: Figures) -> str:
    states = [record.state for record in figures.records]
    counts = [f"{states.count(state)} {state}" for state in ("stopped", "failed", "running") if state in states]
    return f"Distilled with kdray: {', '.join([format_count(len(states), 'trial'), *counts])}."


def _chosen_tiles(figures: Figures, chosen: TrialRecord) -> Iterable[tuple[str, str]]:
    """Value and label for each figure of the chosen student, of the test rows if it is confirmed."""
    metrics, teacher = chosen.metrics, dict(figures.teacher)
    if figures.verdict is not None and (winner := figures.verdict.winner) is not None:
        metrics = {**metrics, **winner.metrics}
        # The teacher's other metrics are of the validation rows and not comparable with figures of the test rows.
        teacher = {name: teacher[name] for name in figures.costs if name in teacher}
        teacher[figures.verdict.metric] = figures.verdict.teacher.estimate
    costs = [name for name in COST_TILES if name in figures.costs]
    for name in dict.fromkeys((figures.quality, *figures.task_metrics, *STUDENT_TILES, *costs)):
        if name in metrics:
            teacher_value = f" (teacher {format_metric(name, teacher[name])})" if name in teacher else ""
            yield format_metric(name, metrics[name]), heading(name) + teacher_value


def _time_tiles(figures: Figures) -> Iterable[tuple[str, str]]:
    """Value and label for the time of the trials, the epochs that early stopping saved, and the time of each stage."""
    trials_s = sum(record.ended - record.started for record in figures.records if record.ended)
    yield format_duration(trials_s), "slot time of all trials"
    epochs = sum(_last_epoch(record) for record in figures.records)
    stopped = [record for record in figures.records if record.state == "stopped" and record.history]
    if stopped:
        # Without early stopping, each of these trials would have run as long as the longest completed one.
        longest = max((_last_epoch(record) for record in figures.records if record.state == "completed"), default=0.0)
        saved = sum(max(0.0, longest - _last_epoch(record)) for record in stopped)
        share = saved / (epochs + saved) if epochs + saved else 0.0
        yield f"{share:.0%}", f"of the epochs saved by early stopping (trials: {len(stopped)})"
    for stage, seconds in figures.times.items():
        yield format_duration(seconds), stage.lower()


def _last_epoch(record: TrialRecord) -> float:
    return record.history[-1].get("epoch", 0.0) if record.history else 0.0


def _trial_rows(figures: Figures) -> Iterable[tuple[str, list[str]]]:
    """The CSS classes and the cells of the teacher and of each trial."""
    for teacher in teacher_rows(figures):
        yield "", [*teacher, ""]
    for record in figures.by_quality():
        cells = [*trial_cells(figures, record), shorten(format_status(record), 200)]
        yield f"{figures.place(record)} {record.state}", cells
