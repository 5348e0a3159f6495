"""A report about students of several families."""

from dataclasses import replace

from kdray.report.families import about_families, families
from kdray.report.files import markdown
from kdray.report.front import front_picture, trial_groups
from kdray.report.page import page
from kdray.report.plots import front_plot
from tests.report.test_report import FIGURES, RECORDS, printed_table

NAMES = ("static", "transformer", "recurrent", "recurrent", "convolutional")
SEVERAL = replace(
    FIGURES,
    records=[
        replace(record, params={**record.params, "student.family": name})
        for record, name in zip(RECORDS, NAMES, strict=True)
    ],
    searched=(*FIGURES.searched, "student.family"),
)
SAID = (
    "The front, from the smallest latency on: static (0.80 ms, accuracy 0.8100), recurrent (1.60 ms, accuracy 0.8500), "
    "transformer (2.40 ms, accuracy 0.8600)."
)


def test_the_report_says_which_family_is_where_on_the_front() -> None:
    assert about_families(SEVERAL) == SAID
    assert SAID in markdown(SEVERAL)
    assert SAID in page(SEVERAL)
    assert SAID in " ".join(" ".join(printed_table(SEVERAL, width=400)).split())


def test_neighbours_of_one_family_are_one_stretch_and_absent_families_are_named() -> None:
    names = ("recurrent", "transformer", "recurrent", "static", "static")
    records = [
        replace(record, params={**record.params, "student.family": name})
        for record, name in zip(RECORDS, names, strict=True)
    ]
    assert about_families(replace(SEVERAL, records=records)) == (
        "The front, from the smallest latency on: recurrent (0.80 ms to 1.60 ms, accuracy 0.8100 to 0.8500), "
        "transformer (2.40 ms, accuracy 0.8600). No student of the family static is on it."
    )


def test_one_family_is_not_mentioned() -> None:
    assert families(RECORDS) == []
    assert about_families(FIGURES) == ""
    assert about_families(replace(SEVERAL, front=())) == ""


def test_each_family_has_a_symbol() -> None:
    markers = {group.label: group.marker for group in trial_groups(SEVERAL)}
    assert markers == {
        "stopped early, recurrent": "o",
        "Pareto front, static": "s",
        "Pareto front, transformer": "^",
        "chosen student": "*",
    }
    assert {group.label for group in trial_groups(FIGURES)} == {"stopped early", "Pareto front", "chosen student"}
    symbols = {trace.name: trace.marker.symbol for trace in front_plot(SEVERAL).data if trace.name in markers}
    assert symbols == {
        "stopped early, recurrent": "circle-open",
        "Pareto front, static": "square",
        "Pareto front, transformer": "triangle-up",
        "chosen student": "star",
    }
    assert front_picture(SEVERAL).axes
