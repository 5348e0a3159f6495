"""The table of the controls of the front: the same titles and cells for report.md and the page."""

from collections.abc import Iterator

import numpy as np

from kdray.choice.controls import Control
from kdray.choice.reruns import CONTROLS, Role, role_name
from kdray.evaluation.formatting import format_metric, format_setting, heading, headings
from kdray.losses.distillation import Distillation
from kdray.report.figures import Figures

TITLE = "The gain from distillation and from the search, for each architecture"


def about(figures: Figures) -> str:
    """The caption of the table."""
    defaults = Distillation()
    # The gold decides the units of the outputs, not which settings have a meaning for them.
    has_temperature = "temperature" in figures.task.distribution(np.zeros(1)).settings
    losses = f"{f'T {defaults.temperature:g}, ' if has_temperature else ''}alpha {defaults.alpha:g}"
    return (
        "For each architecture on the front: its best trial, and the same student trained "
        f"{figures.task.without_teacher} and with "
        f"default distillation ({losses}, the sweep's own training settings){_about_others(figures)}. All have the "
        "seed of the search and the same number of steps, and are measured on the validation rows. The trial is the "
        "best of many on these rows, so its figure is too good; a small difference is noise."
    )


def _about_others(figures: Figures) -> str:
    """Sentences about the controls that only some sweeps have."""
    meanings: dict[Role, str] = {
        "labelled rows": ". The column labelled rows has the trial's own distillation, but without any other text",
        "logits alone": (
            ". The column logits alone has the trial's own distillation without its inner terms, which compare layers; "
            "a dash means that the trial has none"
        ),
    }
    return "".join(meanings.get(role, "") for role in _roles(figures))


def titles(figures: Figures) -> list[str]:
    """The titles of the columns."""
    return [
        "trial",
        *_shape_settings(figures),
        heading(figures.cost),
        f"{heading(figures.quality)}, best trial",
        *(role_name(role, figures.task) for role in _roles(figures)),
    ]


def rows(figures: Figures) -> Iterator[tuple[bool, list[str]]]:
    """For each architecture, the cheapest first: whether the chosen student has it, and its cells."""
    controls = {(control.trial, control.role): control for control in figures.controls}
    trials = {control.trial for control in figures.controls}
    records = [record for record in figures.records if record.number in trials]
    for record in sorted(records, key=lambda record: record.metrics[figures.cost]):
        shape = [format_setting(record.params.get(name)) for name in _shape_settings(figures).values()]
        metrics = [format_metric(name, record.metrics.get(name)) for name in (figures.cost, figures.quality)]
        control_cells = [_quality_cell(figures, controls.get((record.number, role))) for role in _roles(figures)]
        yield record.number == figures.chosen, [f"{record.number:03d}", *shape, *metrics, *control_cells]


def failures(figures: Figures) -> list[str]:
    """For each failed control a line with the reason."""
    return [
        f"trial {control.trial:03d}, {control.role}: {control.error}" for control in figures.controls if control.error
    ]


def _roles(figures: Figures) -> list[Role]:
    """The roles that the sweep has controls of: without more text, for example, there is no control that sees less."""
    found = {control.role for control in figures.controls}
    return [role for role in CONTROLS if role in found]


def _shape_settings(figures: Figures) -> dict[str, str]:
    """Heading -> dotted name, for the searched settings of the student."""
    return {short: name for name, short in headings(figures.searched).items() if name.startswith("student.")}


def _quality_cell(figures: Figures, control: Control | None) -> str:
    if control is None:
        return "-"
    return "failed" if control.error else format_metric(figures.quality, control.metrics.get(figures.quality))
