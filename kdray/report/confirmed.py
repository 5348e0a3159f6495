"""The table of the confirmed students: the same titles and cells for report.md, the page and the model card."""

from collections.abc import Iterator

from kdray.choice.reruns import role_name
from kdray.choice.verdict import ConfirmedStudent, Verdict
from kdray.evaluation.formatting import format_interval, heading
from kdray.tasks.task import Task


def about(verdict: Verdict) -> str:
    """The caption of the table."""
    caption = (
        f"The students were trained again with seeds that the search did not use, and measured on {verdict.rows:,} "
        "test rows. The intervals are 95% bootstrap intervals over rows and seeds."
    )
    if not verdict.dropped:
        return caption
    return (
        f"{caption} A candidate with fewer seeds was dropped, because it could no longer be chosen: its figures are of "
        "these seeds only, and are not to be compared with those of all seeds. Controls were trained for the chosen "
        "student."
    )


def titles(verdict: Verdict) -> list[str]:
    """The titles of the columns."""
    dropped = ["why it was dropped"] if verdict.dropped else []
    return ["student", "seeds", heading(verdict.metric), "retention", "rule not satisfied", *dropped]


def rows(verdict: Verdict, task: Task) -> Iterator[tuple[bool, list[str]]]:
    """For the teacher, each candidate and each of its controls: whether it is the chosen student, and its cells."""
    dropped_of = {dropped.trial: dropped for dropped in verdict.dropped}
    blank = [""] if dropped_of else []
    yield False, ["teacher", "", format_interval(verdict.metric, verdict.teacher), "100%", "", *blank]
    for student in verdict.confirmed:
        is_candidate = student.role == "candidate"
        dropped = dropped_of.get(student.trial) if is_candidate else None
        cells = [
            _name(student, task),
            f"{student.seeds} of {dropped.planned}" if dropped else str(student.seeds),
            format_interval(verdict.metric, student.metric),
            format_interval("retention", student.retention),
            # A control cannot be chosen, so the rule does not apply to it.
            "; ".join(student.misses) if is_candidate else "",
            *([dropped.reason] if dropped else blank),
        ]
        yield student == verdict.winner, cells


def failures(verdict: Verdict) -> list[str]:
    """For each failed rerun a line with the reason."""
    return [f"{run}: {error}" for run, error in verdict.failed.items()]


def _name(student: ConfirmedStudent, task: Task) -> str:
    role = "" if student.role == "candidate" else f", {role_name(student.role, task)}"
    return f"trial {student.trial:03d}{role}"
