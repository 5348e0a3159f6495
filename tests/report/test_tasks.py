"""The table, the page and report.md speak of the metrics of the sweep's own task, and put the best trial first."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from kdray.choice.controls import Control
from kdray.choice.verdict import ConfirmedStudent, Verdict
from kdray.evaluation.formatting import format_metric, heading
from kdray.evaluation.statistics import Interval
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.figures import Figures
from kdray.report.files import markdown
from kdray.report.front import front_picture
from kdray.report.page import page
from kdray.report.plots import curves_plot, front_plot, map_plot, parallel_plot
from kdray.report.table import table
from kdray.tasks.label_figures import LabelFigures
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification

TASKS = {
    task.kind: task
    for task in (
        TextClassification(),
        TokenClassification(),
        MultiLabel(label="labels"),
        Regression(),
    )
}
EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def trial(number: int, quality: float, task: Task) -> TrialRecord:
    """A trial in which every metric of the task has this value; its latency grows with its number."""
    metrics = dict.fromkeys(task.metric_names(None), quality)
    params = {"student.depth": number + 1, "distillation.alpha": 0.5, "distillation.temperature": 2.0}
    return TrialRecord(
        number=number,
        params=params,
        state="completed",
        history=({"epoch": 1.0, "step": 1.0, **metrics, "retention": 0.9, "agreement": 0.8},),
        costs={"latency_ms": 1.0 + number, "speedup": 2.0, "parameters": 1e6},
    )


def figures(task: Task, objective: str | None = None) -> Figures:
    """Three completed trials, 0.5, 0.7 and 0.6, and one that failed."""
    names = task.metric_names(None)
    failed = replace(trial(3, 0.1, task), state="failed", error="out of memory")
    return Figures(
        "tiny",
        {**dict.fromkeys(names, 0.95), "latency_ms": 8.0},
        [*(trial(number, value, task) for number, value in enumerate((0.5, 0.7, 0.6))), failed],
        objectives=(objective or task.quality.name, "latency_ms"),
        task=task,
        front=(0, 1),
        chosen=1,
        searched=("student.depth",),
        controls=[Control(trial=1, role="labels only", metrics=dict.fromkeys(names, 0.55))],
    )


def verdict(metric: str, names: tuple[str, ...]) -> Verdict:
    """One confirmed student, whose metrics are all 0.65 on the test rows."""
    interval = Interval(0.65, 0.6, 0.7, 0.95)
    student = ConfirmedStudent(
        trial=1,
        role="candidate",
        seeds=2,
        metric=interval,
        retention=interval,
        metrics=dict.fromkeys(names, 0.65),
        misses=[],
    )
    return Verdict(
        metric=metric, rows=300, teacher=interval, confirmed=[student], chosen=1, satisfied=True, sentences=[]
    )


def body(html: str) -> str:
    """The words of a page, without scripts and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", "", html.partition("<body>")[2]))


def printed(figures: Figures) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    console.print(table(figures))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [" ".join(line.split()) for line in lines if line.strip()]


@EVERY_TASK
def test_every_metric_of_the_task_is_shown_and_none_of_another_task(task: Task) -> None:
    names = [heading(name) for name in task.metric_names(None)]
    shown = figures(task)
    text, html = markdown(shown), body(page(shown))
    for name in task.metric_names(None):
        assert f"| {heading(name)} | 0.9500 | 0.7000 |" in text
        assert f"{heading(name)} (teacher 0.9500)" in " ".join(html.split())
    others = {heading(name) for other in TASKS.values() for name in other.metric_names(None)} - set(names)
    for other in others:
        # "accuracy" is no metric of a tagger, but "token accuracy" is.
        assert not any(re.search(rf"(?<!\w |\w\w){other}(?! \w)", cell) for cell in _cells(text)), other


def _cells(markdown_text: str) -> list[str]:
    """The cells of all tables."""
    return [cell.strip() for line in markdown_text.splitlines() if line.startswith("|") for cell in line.split("|")]


@EVERY_TASK
def test_the_table_has_the_quality_of_the_task_and_its_best_trial_first(task: Task) -> None:
    lines = printed(figures(task))
    title = next(line for line in lines if line.startswith("trial"))
    assert title.startswith(f"trial depth {heading(task.quality.name)} retention latency")
    assert [line[:5] for line in lines if re.match(r"([★●] )?00", line)] == ["★ 001", "002 3", "● 000", "003 4"]


def test_of_a_minimized_metric_the_smallest_value_is_the_best() -> None:
    shown = figures(Regression(), "mse")
    assert [record.number for record in shown.by_quality()] == [0, 2, 1, 3]
    plot = front_plot(shown)
    assert plot.layout.yaxis.title.text == "MSE (less is better)"
    assert curves_plot(shown).layout.yaxis.title.text == "MSE (less is better)"  # type: ignore[union-attr]
    # A trial that failed is drawn at the worst quality, which is the largest one.
    assert [list(points.y) for points in plot.data if points.name == "failed"] == [[0.7]]
    # The brightest colour of the scale has the best quality.
    assert parallel_plot(shown).data[0].line.reversescale  # type: ignore[union-attr]
    assert map_plot(shown).data[0].marker.reversescale  # type: ignore[union-attr]
    assert not parallel_plot(figures(Regression())).data[0].line.reversescale  # type: ignore[union-attr]
    assert front_picture(shown).axes[0].get_ylabel() == "MSE (less is better)"
    assert front_picture(figures(Regression())).axes[0].get_ylabel() == "Pearson"


@pytest.mark.parametrize(("objective", "has_intervals"), [("pearson", True), ("mse", False)])
def test_confirmed_students_have_intervals_of_the_quality_of_the_task_only(objective: str, has_intervals: bool) -> None:
    task = Regression()
    shown = replace(figures(task, objective), verdict=verdict("pearson", task.metric_names(None)))
    (points,) = [points for points in front_plot(shown).data if points.name == "confirmed (test)"]
    assert list(points.y) == [0.65]
    assert (points.error_y.array is not None) is has_intervals
    name, value = heading(objective), format_metric(objective, 0.65)
    assert f"2 seeds: {name} {value}" in points.text[0]
    assert ("95%" in points.text[0]) is has_intervals
    assert "| student | seeds | Pearson | retention | rule not satisfied |" in markdown(shown)


def test_each_label_is_listed_by_its_frequency() -> None:
    by_label = {"joy": LabelFigures(0.5, 12), "fear <b>": LabelFigures(0.25, 1200), "*none*": LabelFigures(0.0, 0)}
    shown = replace(figures(MultiLabel(label="labels")), by_label=by_label)
    lines = markdown(shown).splitlines()
    start = lines.index("## F1 of each label")
    assert "rows" in lines[start + 2]
    assert lines[start + 4] == "| label | F1 | rows |"
    assert lines[start + 6 : start + 9] == [
        r"| fear \<b\> | 0.2500 | 1,200 |",
        "| joy | 0.5000 | 12 |",
        r"| \*none\* | 0.0000 | 0 |",
    ]
    html = page(shown)
    assert "fear &lt;b&gt;" in html
    assert "F1 of each label" in html
    assert "F1 of each label" not in page(figures(Regression())) + markdown(figures(Regression()))


@EVERY_TASK
def test_retention_and_agreement_are_explained(task: Task) -> None:
    shown = figures(task)
    assert f"divided by the teacher's. The agreement of student and teacher is {task.agreement_meaning}." in shown.terms
    assert shown.terms.partition(".")[0] in markdown(shown)
    assert shown.terms.partition("'")[0] in body(page(shown))
