"""The table of the labels: how well the chosen student finds each of them; the same for report.md and the page."""

from collections.abc import Iterator

from kdray.report.figures import Figures

TITLE = "F1 of each label"


def about(figures: Figures) -> str:
    """The caption of the table."""
    return (
        f"The student in chosen/ on the test rows, the most frequent label first. The last column is the number of "
        f"{figures.task.counted} that have the label in the data: with few of them, F1 is uncertain."
    )


def titles(figures: Figures) -> list[str]:
    """The titles of the columns."""
    return ["label", "F1", figures.task.counted]


def rows(figures: Figures) -> Iterator[tuple[bool, list[str]]]:
    """For each label whether its row is marked, which none is, and its cells."""
    for label, of_label in sorted(figures.by_label.items(), key=lambda item: -item[1].count):
        yield False, [label, f"{of_label.f1:.4f}", f"{of_label.count:,}"]
