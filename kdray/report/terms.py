"""The table of the terms of the chosen student's loss; the same titles and cells for report.md and the page."""

from collections.abc import Iterator

from kdray.report.figures import Figures

TITLE = "The terms of the loss"
USUAL = frozenset({"soft", "hard"})
"""The terms of every distillation. A loss that has no others gets no table: alpha alone decides their weights."""
_SHARE = "share_"
"""What the names of these metrics begin with; `training.checkpoint` computes them."""


def has_further_terms(figures: Figures) -> bool:
    """Whether the loss of the chosen student has terms that not every distillation has."""
    return not _mean_shares(figures).keys() <= USUAL


def about(figures: Figures) -> str:
    """The caption of the table."""
    return (
        f"How much of the loss of trial {figures.chosen:03d} in the search each term is, with its weight; the largest "
        "share first. Each evaluation has the shares of the steps since the one before it. The term soft compares with "
        "the teacher's outputs, hard with the labels; the other terms have the names of their settings. A share does "
        "not say what a term adds to the quality."
    )


def titles(figures: Figures) -> list[str]:
    """The titles of the columns."""
    return ["term", "first evaluation", "last evaluation", f"mean of {len(_evaluations(figures))}"]


def rows(figures: Figures) -> Iterator[tuple[bool, list[str]]]:
    """For each term whether its row is marked, which none is, and its cells."""
    evaluations = _evaluations(figures)
    for name, mean in sorted(_mean_shares(figures).items(), key=lambda item: -item[1]):
        # Before or after a stage of the training, a term may have no part in the loss and thus no share.
        shares = (evaluations[0].get(name, 0.0), evaluations[-1].get(name, 0.0), mean)
        yield False, [name.replace("_", " "), *(f"{share:.1%}" for share in shares)]


def _mean_shares(figures: Figures) -> dict[str, float]:
    """Name of a term -> its share of the loss of the chosen student, averaged over the evaluations."""
    evaluations = _evaluations(figures)
    names = dict.fromkeys(name for shares in evaluations for name in shares)
    return {name: sum(shares.get(name, 0.0) for shares in evaluations) / len(evaluations) for name in names}


def _evaluations(figures: Figures) -> list[dict[str, float]]:
    """The shares at each evaluation of the chosen student; empty if no student is chosen."""
    history = next((record.history for record in figures.records if record.number == figures.chosen), ())
    return [
        {name.removeprefix(_SHARE): value for name, value in metrics.items() if name.startswith(_SHARE)}
        for metrics in history
    ]
