"""The table of the confirmed students: the same titles and cells for report.md, the page and the model card."""

from collections.abc import Iterator

from kdray.choice.verdict import ConfirmedStudent, Verdict
from kdray.evaluation.formatting import format_interval, heading
from kdray.report.figures import role_name
from kdray.tasks.task import Task


def about(verdict: Verdict) -> str:
    """The caption of the table."""
    return (
        f"The students were trained again with seeds that the search did not use, and measured on {verdict.rows:,} "
        "test rows. The intervals are 95% bootstrap intervals over rows and seeds."
    )


def titles(verdict: Verdict) -> list[str]:
    """The titles of the columns."""
    return ["student", "seeds", heading(verdict.metric), "retention", "rule not satisfied"]


def rows(verdict: Verdict, task: Task) -> Iterator[tuple[bool, list[str]]]:
    """For the teacher, each candidate and each of its controls: whether it is the chosen student, and its cells."""
    yield False, ["teacher", "", format_interval(verdict.metric, verdict.teacher), "100%", ""]
    for student in verdict.confirmed:
        is_candidate = student.role == "candidate"
        cells = [
            _name(student, task),
            str(student.seeds),
            format_interval(verdict.metric, student.metric),
            format_interval("retention", student.retention),
            # A control cannot be chosen, so the rule does not apply to it.
            "; ".join(student.misses) if is_candidate else "",
        ]
        yield student == verdict.winner, cells


def failures(verdict: Verdict) -> list[str]:
    """For each failed rerun a line with the reason."""
    return [f"{run}: {error}" for run, error in verdict.failed.items()]


def _name(student: ConfirmedStudent, task: Task) -> str:
    role = "" if student.role == "candidate" else f", {role_name(student.role, task)}"
    return f"trial {student.trial:03d}{role}"
