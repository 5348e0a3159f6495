"""What confirmation came to: each candidate's figures on rows that nothing was chosen by, with intervals.

The interval of a figure draws rows and seeds anew; those of differences draw the same rows for both (`statistics`). A
gain whose interval holds zero is not shown, and the sentence says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from kdray.choice.reruns import Rerun, Role
from kdray.choice.rule import Choice, Choose, chosen
from kdray.data.rows import Rows
from kdray.evaluation.formatting import bounded, in_points
from kdray.evaluation.quality import quality
from kdray.evaluation.statistics import Counted, Interval, classified, difference, interval, mcnemar, ratio
from kdray.evaluation.trial_record import TrialRecord
from kdray.tasks.task import Task

FEW_ROWS = 200


class Confirmed(BaseModel):
    """One student over its seeds, on the test rows."""

    model_config = ConfigDict(frozen=True)

    trial: int
    role: Role
    seeds: int
    metric: Interval
    retention: Interval
    metrics: dict[str, float]
    """All of the task's, averaged over the seeds."""
    misses: list[str]
    """What it lacks by the rule, on these figures."""


class Gain(BaseModel):
    """How much better the chosen student is than one of its controls."""

    model_config = ConfigDict(frozen=True)

    over: Role
    difference: Interval


class Against(BaseModel):
    """The chosen student beside the next candidate, on rows that only one of them has right."""

    model_config = ConfigDict(frozen=True)

    trial: int
    only_chosen: int
    only_other: int
    p: float


class Verdict(BaseModel):
    """What confirmation came to."""

    model_config = ConfigDict(frozen=True)

    metric: str
    rows: int
    teacher: Interval
    confirmed: list[Confirmed]
    chosen: int | None
    satisfied: bool
    sentences: list[str]
    gains: list[Gain] = []
    against: Against | None = None
    flattered: float | None = None
    """The metric on the validation rows when the chosen trial was found, less the confirmed one."""
    failed: dict[str, str] = {}
    """What could not be trained again, and why."""

    @property
    def winner(self) -> Confirmed | None:
        """The chosen student's confirmed figures; None where none was chosen, or none could be trained again."""
        return next((c for c in self.confirmed if (c.trial, c.role) == (self.chosen, "candidate")), None)


def judged(
    answers: Mapping[Rerun, np.ndarray], failed: Mapping[Rerun, str], rows: Rows, task: Task,
    candidates: Sequence[TrialRecord], rule: Choose, costs: Mapping[str, float],
) -> Verdict:  # fmt: skip
    """Apply the rule to the confirmed figures; to the search's when not one candidate was trained again to its end.

    `answers` are logits (N x C) for the test rows, `costs` the teacher's.
    """
    court = _Court(answers, rows, task, rule)
    confirmed = [court.confirmed(record, role) for record in candidates for role in court.roles(record.number)]
    tested = {each.trial: each.metrics for each in confirmed if each.role == "candidate"}
    records = [
        replace(record, history=(*record.history, tested[record.number]))
        for record in candidates
        if record.number in tested
    ]
    # The knee is the whole front's, which the search knows: of these it is the first that still has what is asked for.
    bends = {record.number: -float(place) for place, record in enumerate(candidates)}
    if records:
        choice = chosen(records, rule, {**costs, **court.taught}, "confirmed student", bends)
    else:
        choice = chosen(candidates, rule, costs, "candidate", bends)
    verdict = Verdict(
        metric=court.metric, rows=len(rows), teacher=court.teacher, confirmed=confirmed, chosen=choice.number,
        satisfied=choice.satisfied, sentences=[], failed={str(run): why for run, why in failed.items()},
    )  # fmt: skip
    if (winner := verdict.winner) is not None:
        found = next(record for record in candidates if record.number == winner.trial)
        flattered = found.metrics[court.metric] - winner.metric.estimate if court.metric in found.metrics else None
        ranked = [record.number for record in (rule.ranked(records, bends) or rule.nearest(records))]
        against = next((court.against(winner.trial, other) for other in ranked if other != winner.trial), None)
        gains = [court.gain(winner.trial, role) for role in court.roles(winner.trial) if role != "candidate"]
        verdict = verdict.model_copy(update={"gains": gains, "against": against, "flattered": flattered})
    return verdict.model_copy(update={"sentences": _sentences(verdict, choice)})


class _Court:
    """All answers, and the rows they are measured on."""

    def __init__(self, answers: Mapping[Rerun, np.ndarray], rows: Rows, task: Task, rule: Choose) -> None:
        self.answers, self.rows, self.task, self.rule = answers, rows, task, rule
        self.metric = task.metric_names(2)[0]
        self.taught_NxC = rows.teacher_logits(np.arange(len(rows)))
        self.taught = task.metrics(self.taught_NxC, rows.labels)
        self.teacher = interval(self._measured([self.taught_NxC]))

    def roles(self, trial: int) -> list[Role]:
        return list(dict.fromkeys(run.role for run in self.answers if run.trial == trial))

    def confirmed(self, record: TrialRecord, role: Role) -> Confirmed:
        logits = self._logits(record.number, role)
        student = self._measured(logits)
        each = [quality(self.task, logits_NxC, self.rows) for logits_NxC in logits]
        metrics = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        return Confirmed(
            trial=record.number, role=role, seeds=len(logits), metric=interval(student),
            retention=ratio(student, self._measured([self.taught_NxC])), metrics=metrics,
            misses=self.rule.misses({**record.metrics, **metrics}),
        )  # fmt: skip

    def gain(self, trial: int, over: Role) -> Gain:
        ours, theirs = (self._measured(self._logits(trial, role)) for role in ("candidate", over))
        return Gain(over=over, difference=difference(ours, theirs))

    def against(self, trial: int, other: int) -> Against:
        """By the first seed of each: the test is of two classifiers, not of two recipes."""
        right = [self._logits(each, "candidate")[0].argmax(1) == self.rows.labels for each in (trial, other)]
        found = mcnemar(*right)
        return Against(trial=other, only_chosen=found.only_first, only_other=found.only_second, p=found.p)

    def _logits(self, trial: int, role: str) -> list[np.ndarray]:
        runs = sorted((run for run in self.answers if (run.trial, run.role) == (trial, role)), key=lambda run: run.seed)
        return [self.answers[run] for run in runs]

    def _measured(self, logits: Sequence[np.ndarray]) -> Counted:
        return classified(self.metric, np.stack([one.argmax(1) for one in logits]), self.rows.labels)


def _sentences(verdict: Verdict, choice: Choice) -> list[str]:
    said = [choice.sentence]
    winner = verdict.winner
    if winner is not None:
        seeds = f"{winner.seeds} seed{'s' * (winner.seeds > 1)}"
        said.append(
            f"Trained again over {seeds} and measured on {verdict.rows:,} test rows that nothing was chosen by: "
            f"{verdict.metric} {bounded(verdict.metric, winner.metric)}, {bounded('retention', winner.retention)} of "
            "the teacher's."
        )
        said += [_gain(gain) for gain in verdict.gains]
    elif not any(each.role == "candidate" for each in verdict.confirmed):
        said.append(
            "This could not be confirmed: no candidate could be trained again, and the figures are those of the "
            "validation rows, which it was chosen by."
        )
    if verdict.flattered is not None:
        points = 100 * verdict.flattered
        why = "the choice among many flatters, and the rows differ" if points > 0 else "the choice did not flatter it"
        more = f"{abs(points):.1f} points {'more' if points > 0 else 'less'}"
        said.append(f"When it was found, the validation rows said {more}: {why}.")
    if verdict.against is not None:
        other = verdict.against
        said.append(
            f"Beside trial {other.trial}, the next candidate, it alone is right on {other.only_chosen} rows and alone "
            f"wrong on {other.only_other} (McNemar's p {other.p:.2g})."
        )
    if verdict.rows < FEW_ROWS:
        said.append(f"With {verdict.rows} test rows the intervals are wide: a difference of a point cannot be seen.")
    if verdict.failed:
        said.append(f"{len(verdict.failed)} of the runs that were to confirm it failed; report.md has the reasons.")
    return said


def _gain(gain: Gain) -> str:
    due, over = {
        "labels only": ("Due to distillation", "the same student trained on labels alone"),
        "default distillation": ("Due to the search", "the same student with distillation as it comes"),
    }[gain.over]
    shown = "" if gain.difference.low > 0 else "; it is worse" if gain.difference.high < 0 else "; no gain is shown"
    return f"{due}: {in_points(gain.difference)} over {over}{shown}."
