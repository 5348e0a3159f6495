"""The report as one page for a browser: it holds all it shows, and needs no network to be looked at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from kdray.choice.verdict import Verdict
from kdray.evaluation.formatting import format_duration, format_metric, format_status, heading, headings, shorten
from kdray.evaluation.trial_record import TrialRecord
from kdray.report import confirmed, controls, plots
from kdray.report.figures import Figures
from kdray.report.table import cells, teacher_cells

PLOTS: tuple[tuple[str, str, Callable[[Figures], go.Figure | None]], ...] = (
    (
        "Quality and cost",
        "Every trial on the validation rows; no trial on the front is beaten in both. Crosses are the "
        "front's controls, on these rows; squares are what was trained again, on the test rows, with 95% intervals. Point "
        "at a trial for its settings.",
        plots.front_plot,
    ),
    ("What is kept, and how much faster", "The teacher is at 100%.", plots.speed_plot),
    ("Settings", "One line a completed trial. Drag along an axis to keep a part of them.", plots.parallel_plot),
    (
        "Which setting matters",
        "How much of the differences among completed trials each setting explains (fANOVA). With "
        "a dozen trials that is a hint, no more.",
        plots.importance_plot,
    ),
    ("Temperature and alpha", "Of completed trials; brighter is better.", plots.map_plot),
    ("Learning curves", "Each evaluation of each trial; crosses were stopped early.", plots.curves_plot),
)
"""Title, caption and picture, in the order of the page."""

CARD = ("accuracy", "macro_f1", "mcc", "retention", "agreement", "speedup")
SIZES = ("latency_ms", "cpu_latency_ms", "parameters", "size_mb")
"""What the chosen student is told by at a glance."""


def page(figures: Figures) -> str:
    """The whole page."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        resources.files("kdray.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    chosen = next((record for record in figures.records if record.number == figures.chosen), None)
    verdict = figures.verdict
    winner = verdict.winner if verdict else None
    drawn = [(title, caption, plot(figures)) for title, caption, plot in PLOTS]
    return template.render(
        figures=figures,
        about=_about(figures),
        plotly_js=get_plotlyjs(),
        tiles=list(_tiles(figures, chosen)) if chosen else [],
        tiles_about="On the test rows, averaged over its seeds." if winner else "On the validation rows.",
        confirmed=_confirmed(verdict) if verdict else None,
        controls=_controls(figures) if figures.controls else None,
        plots=[(title, caption, _div(plot)) for title, caption, plot in drawn if plot is not None],
        economy=list(_economy(figures)),
        titles=["trial", *headings(figures.searched).values(), *map(heading, figures.columns), "status"],
        rows=list(_rows(figures)),
        trials_about=f"On the validation rows. {figures.conditions}".strip(),
        origin=", ".join(f"{name} {value}" for name, value in figures.origin.items() if name != "command"),
    )


@dataclass(frozen=True)
class Section:
    """A table of its own, with the chosen student's line marked."""

    title: str
    about: str
    titles: Sequence[str]
    rows: Sequence[tuple[bool, Sequence[str]]]
    failures: Sequence[str]


def _confirmed(verdict: Verdict) -> Section:
    return Section(
        "Confirmed on rows that nothing was chosen by",
        confirmed.about(verdict),
        confirmed.titles(verdict),
        list(confirmed.rows(verdict)),
        confirmed.failures(verdict),
    )


def _controls(figures: Figures) -> Section:
    return Section(
        "What distillation and the search bring at each size",
        controls.ABOUT,
        controls.titles(figures),
        list(controls.rows(figures)),
        controls.failures(figures),
    )


def _div(plot: go.Figure) -> str:
    return str(plotly.io.to_html(plot, include_plotlyjs=False, full_html=False, config={"displayModeBar": False}))


def _about(figures: Figures) -> str:
    states = [record.state for record in figures.records]
    told = [f"{len(states)} trials"] + [
        f"{states.count(s)} {s}" for s in ("stopped", "failed", "running") if s in states
    ]
    return f"Distilled with kdray: {', '.join(told)}."


def _tiles(figures: Figures, chosen: TrialRecord) -> Iterable[tuple[str, str]]:
    """The chosen student at a glance, with the teacher's figure beside each of its own; on the test rows if it can."""
    metrics, taught = chosen.metrics, dict(figures.teacher)
    if figures.verdict is not None and (winner := figures.verdict.winner) is not None:
        metrics = {**metrics, **winner.metrics}
        taught = {name: taught[name] for name in figures.costs if name in taught}
        taught[figures.verdict.metric] = figures.verdict.teacher.estimate
    for name in (*CARD, *(name for name in SIZES if name in figures.costs)):
        if name in metrics:
            beside = f" (teacher {format_metric(name, taught[name])})" if name in taught else ""
            yield format_metric(name, metrics[name]), heading(name) + beside


def _economy(figures: Figures) -> Iterable[tuple[str, str]]:
    """Time and what early stopping saved."""
    trials = sum(record.ended - record.started for record in figures.records if record.ended)
    yield format_duration(trials), "slot time of all trials"
    ran = sum(record.history[-1].get("epoch", 0.0) for record in figures.records if record.history)
    stopped = [record for record in figures.records if record.state == "stopped" and record.history]
    if stopped:
        most = max((r.history[-1].get("epoch", 0.0) for r in figures.records if r.state == "completed"), default=0.0)
        saved = sum(max(0.0, most - record.history[-1].get("epoch", 0.0)) for record in stopped)
        yield (
            f"{saved / (ran + saved):.0%}" if ran + saved else "0%",
            f"of the epochs saved by stopping {len(stopped)} early",
        )
    for stage, seconds in figures.times.items():
        yield format_duration(seconds), stage.lower()


def _rows(figures: Figures) -> Iterable[tuple[str, list[str]]]:
    yield "", [*teacher_cells(figures), ""]
    for record in figures.ranked():
        yield f"{figures.place(record)} {record.state}", [*cells(figures, record), shorten(format_status(record), 200)]
