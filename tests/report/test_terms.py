"""The table of the terms of the loss, the control of inner terms, and the names of inner settings in a report."""

from dataclasses import replace
from typing import Any

import pytest

from kdray.choice.controls import Control
from kdray.choice.reruns import CONTROLS
from kdray.evaluation.trial_record import TrialRecord
from kdray.report import controls, terms
from kdray.report.figures import Figures
from kdray.report.files import markdown
from kdray.report.page import page
from kdray.report.plots import CONTROL_COLORS, front_plot, importance_plot
from tests.report.test_report import FIGURES

FIRST = {"share_hidden_mse": 0.75, "share_relations": 0.25}
LAST = {"share_soft": 0.7, "share_hard": 0.2, "share_logit_mse": 0.1}


def with_shares(*evaluations: dict[str, float], **fields: Any) -> Figures:
    """Figures in which the chosen trial, number 2, has these shares at its evaluations."""

    def record_of(record: TrialRecord) -> TrialRecord:
        if record.number != FIGURES.chosen:
            return record
        return replace(record, history=tuple({**record.metrics, **shares} for shares in evaluations))

    return replace(FIGURES, records=[record_of(record) for record in FIGURES.records], **fields)


def test_the_terms_of_the_chosen_student_are_listed_by_their_share() -> None:
    figures = with_shares(FIRST, FIRST, LAST, LAST)
    text = markdown(figures)
    lines = text[text.index(f"## {terms.TITLE}") :].splitlines()
    assert "How much of the loss of trial 002 in the search each term is" in lines[2]
    assert lines[4] == "| term | first evaluation | last evaluation | mean of 4 |"
    assert lines[6:11] == [
        "| hidden mse | 75.0% | 0.0% | 37.5% |",
        "| soft | 0.0% | 70.0% | 35.0% |",
        "| relations | 25.0% | 0.0% | 12.5% |",
        "| hard | 0.0% | 20.0% | 10.0% |",
        "| logit mse | 0.0% | 10.0% | 5.0% |",
    ]
    html = page(figures)
    assert f"<h2>{terms.TITLE}</h2>" in html
    assert "<tr><td>hidden mse</td><td>75.0%</td><td>0.0%</td><td>37.5%</td></tr>" in html


@pytest.mark.parametrize(
    "figures",
    [
        FIGURES,
        with_shares(),
        with_shares({"share_soft": 0.7, "share_hard": 0.3}),
        with_shares({"share_hard": 1.0}),
        with_shares(FIRST, chosen=None),
        with_shares(FIRST, chosen=0),
    ],
    ids=["no shares", "no evaluations", "soft and hard", "hard", "no student", "another trial"],
)
def test_without_further_terms_there_is_no_table(figures: Figures) -> None:
    assert terms.TITLE not in markdown(figures)
    assert terms.TITLE not in page(figures)


def test_the_control_without_inner_terms_has_a_column_and_points() -> None:
    figures = replace(
        FIGURES,
        controls=[
            Control(trial=2, role="labels only", metrics={"accuracy": 0.83}),
            Control(trial=2, role="logits alone", metrics={"accuracy": 0.845}),
            Control(trial=2, role="default distillation", metrics={"accuracy": 0.84}),
            Control(trial=0, role="labels only", metrics={"accuracy": 0.78}),
            Control(trial=0, role="default distillation", metrics={"accuracy": 0.79}),
        ],
    )
    text = markdown(figures)
    lines = text[text.index(f"## {controls.TITLE}") :].splitlines()
    assert "The column logits alone has the trial's own distillation without its inner terms" in lines[2]
    assert lines[4].endswith("| labels only | logits alone | default distillation |")
    assert lines[6] == "| 000 | 1 | 0.80 ms | 0.8100 | 0.7800 | \\- | 0.7900 |"
    assert lines[7] == "| 002 | 2 | 1.60 ms | 0.8500 | 0.8300 | 0.8450 | 0.8400 |"
    (points,) = [points for points in front_plot(figures).data if points.name == "logits alone"]
    assert (list(points.x), list(points.y)) == ([1.6], [0.845])
    without = replace(figures, controls=[each for each in figures.controls if each.role != "logits alone"])
    assert "logits alone" not in markdown(without) + page(without).partition("<body>")[2]


def test_every_control_has_a_colour_of_its_own() -> None:
    assert tuple(CONTROL_COLORS) == CONTROLS
    assert len(set(CONTROL_COLORS.values())) == len(CONTROLS)


def test_inner_settings_are_among_the_importances_by_name() -> None:
    importances = {
        "distillation.hidden_mse": 0.5,
        "distillation.hidden_mse_end": 0.2,
        "distillation.layer_map": 0.2,
        "distillation.alpha": 0.1,
    }
    plot = importance_plot(replace(FIGURES, importances=importances))
    assert plot is not None
    assert set(plot.data[0].y) == {"alpha", "layer map", "hidden mse end", "hidden mse"}
