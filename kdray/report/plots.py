"""The interactive plots of the page; their captions are in `page`. A plot that has nothing to show is None."""

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from kdray.choice.reruns import Role, role_name
from kdray.choice.verdict import ConfirmedStudent
from kdray.evaluation.formatting import (
    format_count,
    format_interval,
    format_metric,
    format_setting,
    format_status,
    heading,
    headings,
    shorten,
)
from kdray.evaluation.measuring import COST_METRICS
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.figures import Figures
from kdray.report.front import (
    CHOSEN,
    CONTROL,
    FRONT,
    OTHER,
    TEACHER,
    axis_title,
    coordinates,
    drawable_trials,
    front_line,
    needs_log_axis,
    quality_title,
    trial_groups,
)
from kdray.safe_text.escaping import html_text

SYMBOLS = {"*": "star", "o": "circle", "s": "square", "^": "triangle-up", "P": "cross", "D": "diamond"}
"""Marker of matplotlib -> symbol of plotly."""
CONTROL_COLORS: dict[Role, str] = {
    "labels only": CONTROL,
    "labelled rows": "#8d6a9f",
    "logits alone": "#b5651d",
    "default distillation": "#2a9d8f",
}
TEMPERATURE, ALPHA = "distillation.temperature", "distillation.alpha"


def front_plot(figures: Figures) -> go.Figure:
    """Quality over cost: every trial, the teacher, the controls, and the confirmed figures."""
    plot = _plot(axis_title(figures.cost), quality_title(figures))
    x, y = front_line(figures)
    plot.add_scatter(x=x, y=y, mode="lines", line={"color": FRONT, "width": 1}, hoverinfo="skip", showlegend=False)
    for group in trial_groups(figures):
        x, y = coordinates(figures, group.records)
        symbol = SYMBOLS[group.marker] + ("-open" if group.hollow else "")
        marker = {"color": group.color, "symbol": symbol, "size": 16 if group.marker == "*" else 9}
        texts = [_hover_text(figures, record) for record in group.records]
        plot.add_scatter(x=x, y=y, mode="markers", name=group.label, marker=marker, text=texts, hoverinfo="text")
    _add_failed(plot, figures)
    _add_controls(plot, figures)
    _add_confirmed(plot, figures)
    _add_teacher(plot, figures)
    plot.update_xaxes(type="log" if needs_log_axis(figures) else "linear")
    return plot


def speed_plot(figures: Figures) -> go.Figure | None:
    """Retention over speed-up, both relative to the teacher."""
    speedup = figures.speedup
    records = [record for record in drawable_trials(figures) if {"retention", speedup} <= record.metrics.keys()]
    if not records:
        return None
    plot = _plot(f"{heading(speedup)} over the teacher", "retention")
    for label, group in _by_place(figures, records):
        plot.add_scatter(
            x=[record.metrics[speedup] for record in group],
            y=[record.metrics["retention"] for record in group],
            mode="markers",
            name=label,
            text=[_hover_text(figures, record) for record in group],
            hoverinfo="text",
            marker={"color": {"chosen student": CHOSEN, "Pareto front": FRONT}.get(label, OTHER), "size": 10},
        )
    plot.add_hline(y=1, line={"color": TEACHER, "width": 1, "dash": "dot"})
    plot.update_yaxes(tickformat=".1%")
    return plot


def parallel_plot(figures: Figures) -> go.Figure | None:
    """One line for each completed trial, through its settings, its cost and its quality."""
    records = [record for record in drawable_trials(figures) if record.state == "completed"]
    if len(records) < 2:
        return None
    dimensions = [
        _axis(short, [r.params.get(name) for r in records]) for name, short in headings(figures.searched).items()
    ]
    dimensions += [_axis(heading(name), [r.metrics[name] for r in records]) for name in (figures.cost, figures.quality)]
    quality = [record.metrics[figures.quality] for record in records]
    line = {"color": quality, "colorscale": "Viridis", "reversescale": figures.is_quality_minimized}
    plot = go.Figure(go.Parcoords(line=line, dimensions=dimensions))
    plot.update_layout(template="plotly_white", height=380, margin={"l": 60, "r": 60, "t": 50, "b": 30})
    return plot


def importance_plot(figures: Figures) -> go.Figure | None:
    """The share of the differences in quality that each setting explains, by Optuna's fANOVA."""
    if not figures.importances:
        return None
    short = headings(figures.importances)
    names = sorted(figures.importances, key=lambda name: figures.importances[name])
    plot = _plot(f"share of the differences in {heading(figures.quality)}", "")
    plot.add_bar(
        x=[figures.importances[name] for name in names],
        y=[html_text(short[name]) for name in names],
        orientation="h",
        marker={"color": FRONT},
    )
    plot.update_xaxes(tickformat=".0%")
    plot.update_layout(height=140 + 36 * len(names))
    return plot


def curves_plot(figures: Figures) -> go.Figure | None:
    """Quality at each evaluation of each trial; a trial that early stopping ended has crosses."""
    plot = _plot("epoch", quality_title(figures))
    for record in figures.records:
        history = [m for m in record.history if {"epoch", figures.quality} <= m.keys()]
        if history:
            place = figures.place(record)
            color = {"chosen": CHOSEN, "front": FRONT}.get(place, OTHER)
            plot.add_scatter(
                x=[metrics["epoch"] for metrics in history],
                y=[metrics[figures.quality] for metrics in history],
                mode="lines+markers",
                name=f"trial {record.number:03d}",
                line={"color": color, "width": 2 if place else 1},
                marker={"size": 5, "symbol": "x" if record.state == "stopped" else "circle"},
                opacity=1 if place else 0.6,
                showlegend=False,
                text=[_hover_text(figures, record)] * len(history),
                hoverinfo="text",
            )
    return plot if plot.data else None


def map_plot(figures: Figures) -> go.Figure | None:
    """The completed trials by temperature and alpha, with their quality as colour."""
    records = [
        r for r in drawable_trials(figures) if r.state == "completed" and {TEMPERATURE, ALPHA} <= r.params.keys()
    ]
    if not records:
        return None
    plot = _plot("temperature", "alpha")
    quality = [record.metrics[figures.quality] for record in records]
    plot.add_scatter(
        x=[record.params[TEMPERATURE] for record in records],
        y=[record.params[ALPHA] for record in records],
        mode="markers",
        text=[_hover_text(figures, record) for record in records],
        hoverinfo="text",
        showlegend=False,
        marker={
            "size": 14,
            "color": quality,
            "colorscale": "Viridis",
            "reversescale": figures.is_quality_minimized,
            "showscale": True,
            "colorbar": {"title": html_text(heading(figures.quality))},
            "line": {"color": "white", "width": 1},
        },
    )
    return plot


def _plot(x: str, y: str) -> go.Figure:
    plot = go.Figure()
    plot.update_layout(
        template="plotly_white",
        height=430,
        # The legend grows upwards into the margin, so that its second row does not cover the plot.
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    plot.update_xaxes(title=html_text(x))
    plot.update_yaxes(title=html_text(y))
    return plot


def _add_failed(plot: go.Figure, figures: Figures) -> None:
    """Add the failed trials at the cost of their architecture.

    They have no quality, so they are drawn at the worst quality of the other trials.
    """
    failed = [record for record in figures.records if record.state == "failed" and figures.cost in record.costs]
    if failed:
        plot.add_scatter(
            x=[record.costs[figures.cost] for record in failed],
            y=[figures.worst_quality(drawable_trials(figures))] * len(failed),
            mode="markers",
            name="failed",
            marker={"color": "#c0392b", "symbol": "x", "size": 9},
            text=[_hover_title(record) for record in failed],
            hoverinfo="text",
        )


def _add_controls(plot: go.Figure, figures: Figures) -> None:
    """Add the controls of the front, which are measured on the validation rows as the trials are."""
    costs = _cost_of_trials(figures)
    for role, color in CONTROL_COLORS.items():
        controls = [
            control
            for control in figures.controls
            if control.role == role and control.trial in costs and figures.quality in control.metrics
        ]
        if controls:
            plot.add_scatter(
                x=[costs[control.trial] for control in controls],
                y=[control.metrics[figures.quality] for control in controls],
                mode="markers",
                name=role_name(role, figures.task),
                marker={"color": color, "symbol": "cross-thin-open", "size": 9},
                text=[
                    f"<b>{role_name(role, figures.task)}</b>, control of trial {control.trial:03d}<br>"
                    f"{html_text(heading(figures.quality))} "
                    f"{format_metric(figures.quality, control.metrics[figures.quality])}"
                    for control in controls
                ],
                hoverinfo="text",
            )


def _add_confirmed(plot: go.Figure, figures: Figures) -> None:
    """Add the confirmed candidates and controls; these figures are of the test rows.

    They have intervals of the task's own quality metric only, not of another metric that the search was for.
    """
    if figures.verdict is None:
        return
    costs = _cost_of_trials(figures)
    quality, has_intervals = figures.quality, figures.verdict.metric == figures.quality
    dropped = {each.trial for each in figures.verdict.dropped}
    for role, color in {"candidate": CHOSEN, **CONTROL_COLORS}.items():
        students = [
            each
            for each in figures.verdict.confirmed
            if each.role == role and each.trial in costs and quality in each.metrics
        ]
        if students:
            plot.add_scatter(
                x=[costs[each.trial] for each in students],
                y=[each.metrics[quality] for each in students],
                mode="markers",
                name=f"{'confirmed' if role == 'candidate' else role_name(role, figures.task)} (test)",
                hoverinfo="text",
                marker={
                    "color": color,
                    # A candidate that was dropped has fewer seeds.
                    "symbol": ["x-open" if each.trial in dropped else "square-open" for each in students],
                    "size": 10,
                },
                text=[_confirmed_text(figures, each, has_intervals) for each in students],
                error_y=_error_bars(students) if has_intervals else None,
            )


def _confirmed_text(figures: Figures, student: ConfirmedStudent, has_interval: bool) -> str:
    quality = figures.quality
    value = format_metric(quality, student.metrics[quality])
    figure = format_interval(quality, student.metric) if has_interval else value
    return (
        f"<b>trial {student.trial:03d}, {role_name(student.role, figures.task)}</b><br>"
        f"{format_count(student.seeds, 'seed')}: {html_text(heading(quality))} {figure}"
    )


def _error_bars(students: Sequence[ConfirmedStudent]) -> dict[str, Any]:
    """The intervals of the task's own quality metric, for plotly."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "array": [each.metric.high - each.metric.estimate for each in students],
        "arrayminus": [each.metric.estimate - each.metric.low for each in students],
    }


def _cost_of_trials(figures: Figures) -> dict[int, float]:
    """Number of a trial -> its cost, for the trials whose cost is known."""
    return {r.number: r.costs[figures.cost] for r in figures.records if figures.cost in r.costs}


def _add_teacher(plot: go.Figure, figures: Figures) -> None:
    if figures.quality not in figures.teacher:
        return
    level = figures.teacher[figures.quality]
    plot.add_hline(y=level, line={"color": TEACHER, "width": 1, "dash": "dot"})
    if figures.cost in figures.teacher:
        names = [name for name in figures.teacher if name in figures.costs or name not in COST_METRICS]
        numbers = [f"{heading(name)} {format_metric(name, figures.teacher[name])}" for name in names]
        plot.add_scatter(
            x=[figures.teacher[figures.cost]],
            y=[level],
            mode="markers",
            name="teacher",
            hoverinfo="text",
            text=["<br>".join(["<b>teacher</b>", *map(html_text, numbers)])],
            marker={"color": TEACHER, "symbol": "diamond", "size": 12},
        )


def _by_place(figures: Figures, records: list[TrialRecord]) -> Iterable[tuple[str, list[TrialRecord]]]:
    """The trials in groups, each with its label; a later group is drawn over the earlier ones."""
    labels = {"": "other trials", "front": "Pareto front", "chosen": "chosen student"}
    for place, label in labels.items():
        group = [record for record in records if figures.place(record) == place]
        if group:
            yield label, group


def _axis(label: str, values: list[Any]) -> dict[str, Any]:
    """The axis of a parallel plot: of numbers, or of text where a value is not a number."""
    label = html_text(label)
    # A bool is an int in Python, but its axis should say True and False.
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {"label": label, "values": values}
    texts = sorted({format_setting(value) for value in values})
    positions = [texts.index(format_setting(value)) for value in values]
    return {
        "label": label,
        "values": positions,
        "tickvals": list(range(len(texts))),
        "ticktext": [html_text(text) for text in texts],
    }


def _hover_text(figures: Figures, record: TrialRecord) -> str:
    lines = [f"{short} {format_setting(record.params[name])}" for name, short in headings(record.params).items()]
    lines += [f"{heading(name)} {format_metric(name, record.metrics.get(name))}" for name in figures.columns]
    return "<br>".join([_hover_title(record), *map(html_text, lines)])


def _hover_title(record: TrialRecord) -> str:
    return f"<b>trial {record.number:03d}</b>  {html_text(shorten(format_status(record), 160))}"
