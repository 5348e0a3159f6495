"""The front's controls, as a table: the same words in report.md and on the page."""

from collections.abc import Iterator

from kdray.choice.controls import Control
from kdray.choice.reruns import Role
from kdray.evaluation.formatting import format_metric, format_setting, heading, headings
from kdray.report.figures import Figures

ABOUT = (
    "The best trial of each architecture on the front, and the same student on labels only, and with default "
    "distillation (T 2, alpha 0.5, the sweep's own training settings): one seed, as many epochs, the validation rows. "
    "The trial is the best of many on these rows and so flattered; a difference of a point is noise."
)
ROLES: tuple[Role, ...] = ("labels only", "default distillation")


def titles(figures: Figures) -> list[str]:
    return ["trial", *_shape(figures), heading(figures.cost), f"{heading(figures.quality)}, as searched", *ROLES]


def rows(figures: Figures) -> Iterator[tuple[bool, list[str]]]:
    """Each architecture, the cheapest first: whether the chosen student is of it, and its cells."""
    controls = {(control.trial, control.role): control for control in figures.controls}
    trials = {control.trial for control in figures.controls}
    for record in sorted((r for r in figures.records if r.number in trials), key=lambda r: r.metrics[figures.cost]):
        shape = [format_setting(record.params.get(name)) for name in _shape(figures).values()]
        found = [format_metric(name, record.metrics.get(name)) for name in (figures.cost, figures.quality)]
        beside = [_told(figures, controls.get((record.number, role))) for role in ROLES]
        yield record.number == figures.chosen, [f"{record.number:03d}", *shape, *found, *beside]


def failures(figures: Figures) -> list[str]:
    """Each control that failed, and why, in a line."""
    return [f"trial {c.trial:03d}, {c.role}: {' '.join(c.error.split())}" for c in figures.controls if c.error]


def _shape(figures: Figures) -> dict[str, str]:
    """Heading -> dotted name, of what was searched of the student."""
    return {short: name for name, short in headings(figures.searched).items() if name.startswith("student.")}


def _told(figures: Figures, control: Control | None) -> str:
    if control is None:
        return "-"
    return "failed" if control.error else format_metric(figures.quality, control.metrics.get(figures.quality))
