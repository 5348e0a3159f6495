"""What confirmation came to, as a table: the same words in report.md and on the page."""

from collections.abc import Iterator

from kdray.choice.verdict import ConfirmedStudent, Verdict
from kdray.evaluation.formatting import format_interval


def about(verdict: Verdict) -> str:
    """What the table holds, in two sentences."""
    return (
        f"Trained again with other seeds than the search's, and measured on {verdict.rows:,} test rows. An interval "
        "holds the figure of other rows and seeds with 95% confidence (bootstrap over rows and seeds)."
    )


def titles(verdict: Verdict) -> list[str]:
    return ["student", "seeds", verdict.metric, "retention", "misses"]


def rows(verdict: Verdict) -> Iterator[tuple[bool, list[str]]]:
    """The teacher, then each candidate and its controls: whether it is the chosen one, and its cells."""
    yield False, ["teacher", "", format_interval(verdict.metric, verdict.teacher), "100%", ""]
    for each in verdict.confirmed:
        cells = [_called(each), str(each.seeds), format_interval(verdict.metric, each.metric)]
        cells += [
            format_interval("retention", each.retention),
            "; ".join(each.misses) if each.role == "candidate" else "",
        ]
        yield each == verdict.winner, cells


def failures(verdict: Verdict) -> list[str]:
    """Each run that failed, and why, in a line."""
    return [f"{run}: {' '.join(why.split())}" for run, why in verdict.failed.items()]


def _called(each: ConfirmedStudent) -> str:
    return f"trial {each.trial:03d}" + ("" if each.role == "candidate" else f", {each.role}")
