"""What a report says of the families of students, where a sweep has several of them."""

from collections.abc import Sequence
from itertools import groupby

from kdray.evaluation.formatting import format_metric, noun
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.figures import Figures

FAMILY = "student.family"


def family_of(record: TrialRecord) -> str:
    """The family of a trial's student; empty if the sweep does not search over families."""
    return str(record.params.get(FAMILY, ""))


def families(records: Sequence[TrialRecord]) -> list[str]:
    """The families of these trials, by name; empty if there is only one."""
    names = sorted({family_of(record) for record in records})
    return names if len(names) > 1 else []


def about_families(figures: Figures) -> str:
    """Which family is where on the front, from the smallest cost to the largest; empty without several families."""
    tried = families([record for record in figures.records if record.state != "failed"])
    needed = (figures.cost, figures.quality)
    front = [r for r in figures.records if r.number in figures.front and all(name in r.metrics for name in needed)]
    if not tried or not front:
        return ""
    front.sort(key=lambda record: record.metrics[figures.cost])
    parts = [_stretch(figures, family, list(group)) for family, group in groupby(front, key=family_of)]
    absent = [name for name in tried if name not in map(family_of, front)]
    others = f" No student of the family {' or '.join(absent)} is on it." if absent else ""
    return f"The front, from the smallest {noun(figures.cost)} on: {', '.join(parts)}.{others}"


def _stretch(figures: Figures, family: str, records: Sequence[TrialRecord]) -> str:
    """A family and the range of its neighbouring students on the front, such as `static (0.1 ms, accuracy 0.80)`."""
    ranges = []
    for name in (figures.cost, figures.quality):
        values = [record.metrics[name] for record in records]
        ends = dict.fromkeys(format_metric(name, value) for value in (min(values), max(values)))
        ranges.append(" to ".join(ends))
    return f"{family} ({ranges[0]}, {noun(figures.quality)} {ranges[1]})"
