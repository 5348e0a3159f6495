"""Keeps MLflow, the screen and the disk up to date with the ledger while trials run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdray.choice.rule import front_trials
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.settings import dotted_values
from kdray.stages.session import Session
from kdray.storage.mirror import list_bucket, remove
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.ids import save_run_ids, sweep_key, sweep_run_id
from kdray.tracking.mlflow_tracker import open_tracker
from kdray.tracking.origin import git_commit, versions
from kdray.tracking.tracker import Tracker


class Bookkeeper:
    """Is told of every change of a trial, and passes it on to the tracker, the screen and the disk."""

    def __init__(self, session: Session) -> None:
        """Bring all three up to date with the trials of earlier sessions."""
        self.session = session
        self._sweep, self._paths, self._ledger = session.sweep, session.paths, session.ledger
        self._tags = {
            "kdray.task": self._sweep.task.name,
            "kdray.teacher": self._sweep.teacher.display_name,
            "kdray.role": "search",
        }
        self._shown_remarks = {record.number: len(record.remarks) for record in self._ledger.records()}
        """Trial -> how many of its remarks were shown on the screen."""
        self._on_any_front: list[TrialRecord] = []
        """Completed trials that may still be chosen: they lie on the front of the objectives or of the rule."""
        self._front: dict[int, TrialRecord] = {}
        """The trials on the front of the objectives."""
        self._best: TrialRecord | None = None
        for record in self._ledger.records():
            self._note(record)
        self._show()

    def update(self, record: TrialRecord) -> None:
        """A trial began, was evaluated or ended."""
        if record.number not in self._shown_remarks and record.attempts == 1:
            # A session whose ledger was lost may have left files under the number of this new trial.
            remove(self._paths.student(record.number).parent)
        self._note(record)
        for remark in record.remarks[self._shown_remarks.get(record.number, 0) :]:
            self.session.screen.note(f"trial {record.number:03d}: {remark}")
        self._shown_remarks[record.number] = len(record.remarks)
        self._show()

    def remove_leftovers(self) -> None:
        """Remove what slots wrote for trials after their end. Call it when no trial runs."""
        kept = {record.number for record in self._on_any_front}
        for record in self._ledger.records():
            if record.state != "running" and record.number not in kept:
                remove(self._paths.student(record.number).parent)

    def _note(self, record: TrialRecord) -> None:
        tracker = self.session.tracker
        tracker.trial(record, dotted_values(self._sweep.recipe_of(record.params)), self._tags)
        if record.state != "running":
            save_run_ids(self._ledger, tracker.run_ids())
            self._keep_front_students(record)
        if record.state == "completed":
            self._best = max(filter(None, (self._best, record)), key=self._rank)

    def _rank(self, record: TrialRecord) -> tuple[float, int]:
        return record.metrics[self._sweep.search.objectives[0]], -record.number

    def _keep_front_students(self, ended: TrialRecord) -> None:
        """Remove the checkpoint of an ended trial, and the students that are on no front any more.

        A trial that left the front never comes back, so it is enough to compare with those on it so far.
        """
        candidates = [*self._on_any_front, ended]
        objectives = (self._sweep.search.objectives, self._sweep.choose.compared)
        on_front = set().union(*(front_trials(candidates, names) for names in objectives))
        remove_all_but(self._paths.student(ended.number))
        for record in candidates:
            if record.number not in on_front:
                remove(self._paths.student(record.number).parent)
        self._on_any_front = [record for record in candidates if record.number in on_front]
        self._tag_front(ended)

    def _tag_front(self, ended: TrialRecord) -> None:
        """Tell the tracker which trials are on the front of the objectives, as far as that has changed."""
        numbers = front_trials(self._on_any_front, self._sweep.search.objectives)
        front = {record.number: record for record in self._on_any_front if record.number in numbers}
        changed = {number: (self._front | front)[number] for number in self._front.keys() ^ front.keys()}
        for record in (changed | {ended.number: ended}).values():
            on_front = "yes" if record.number in front else "no"
            self.session.tracker.trial(record, {}, {"kdray.front": on_front})
        self._front = front

    def _show(self) -> None:
        self.session.screen.trials(self._ledger.records(), self._sweep.search.trials, self._best)


def remove_all_but(folder: Path) -> None:
    """Remove what lies beside this folder: finished and unfinished checkpoints."""
    for path in {*folder.parent.glob("*"), *list_bucket(folder.parent)} - {folder}:
        remove(path)


@contextmanager
def open_sweep_run(sweep: Sweep, paths: SweepPaths, ledger: Ledger, note: Callable[[str], None]) -> Iterator[Tracker]:
    """The sweep's run in MLflow, opened or continued, and closed with how the sweep ended; `note` tells a person."""
    tracker = open_tracker(sweep.tracking, paths, sweep_key(ledger), note)
    commit = git_commit(Path.cwd())
    tags = {"kdray.task": sweep.task.name, "kdray.teacher": sweep.teacher.display_name, **versions()}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    tracker.start_sweep(sweep.as_params(), tags, sweep_run_id(ledger))
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.end_sweep("interrupted")
        raise
    except BaseException:
        tracker.end_sweep("failed")
        raise
    else:
        tracker.end_sweep("finished")
    finally:
        save_run_ids(ledger, tracker.run_ids())
