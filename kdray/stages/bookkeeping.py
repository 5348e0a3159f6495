"""What goes on beside the search: tracker, screen and disk are kept up with the ledger as trials change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdray.choice.rule import front_numbers
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import Screen
from kdray.search.ledger import Ledger
from kdray.settings import dotted
from kdray.storage.mirror import listed, remove
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.ids import key_of, note_runs, sweep_run
from kdray.tracking.mlflow_tracker import open_tracker
from kdray.tracking.origin import git_commit, versions
from kdray.tracking.tracker import Tracker


class Keeper:
    """Keeps tracker, screen and disk up with the ledger as trials change."""

    def __init__(self, sweep: Sweep, paths: SweepPaths, ledger: Ledger, tracker: Tracker, screen: Screen) -> None:
        self.sweep, self.paths, self.ledger, self.tracker, self.screen = sweep, paths, ledger, tracker, screen
        self.tags = {"kdray.task": sweep.task.name, "kdray.teacher": sweep.teacher.called, "kdray.role": "search"}
        self.said = {record.number: len(record.remarks) for record in ledger.records()}
        self.kept: list[TrialRecord] = []
        """Completed trials whose students are on a front, and so may be shipped."""
        self.front: dict[int, TrialRecord] = {}
        """Those on the front of the objectives."""
        self.best: TrialRecord | None = None
        for record in ledger.records():
            self._note(record)
        self._show()

    def take(self, record: TrialRecord) -> None:
        """A trial began, was evaluated or ended."""
        if record.number not in self.said and record.attempts == 1:  # left by a session whose ledger was lost
            remove(self.paths.student(record.number).parent)
        self._note(record)
        for remark in record.remarks[self.said.get(record.number, 0) :]:
            self.screen.note(f"trial {record.number:03d}: {remark}")
        self.said[record.number] = len(record.remarks)
        self._show()

    def clear_up(self) -> None:
        """Remove what slots wrote of trials after their end; to be called when no trial runs."""
        kept = {record.number for record in self.kept}
        for record in self.ledger.records():
            if record.state != "running" and record.number not in kept:
                remove(self.paths.student(record.number).parent)

    def _note(self, record: TrialRecord) -> None:
        self.tracker.trial(record, dotted(self.sweep.recipe_of(record.params)), self.tags)
        if record.state != "running":
            note_runs(self.ledger, self.tracker.run_ids())
            self._keep_or_drop(record)
        if record.state == "completed":
            self.best = max(filter(None, (self.best, record)), key=self._quality)

    def _quality(self, record: TrialRecord) -> tuple[float, int]:
        return record.metrics[self.sweep.search.objectives[0]], -record.number

    def _keep_or_drop(self, ended: TrialRecord) -> None:
        """Remove what an ended trial has left, and students that are on no front any more.

        One that is beaten stays so: it is enough to compare the new one with those kept so far.
        """
        candidates = [*self.kept, ended]
        objectives = (self.sweep.search.objectives, self.sweep.choose.compared)
        on_front = set().union(*(front_numbers(candidates, names) for names in objectives))
        drop_all_but(self.paths.student(ended.number))
        for record in candidates:
            if record.number not in on_front:
                remove(self.paths.student(record.number).parent)
        self.kept = [record for record in candidates if record.number in on_front]
        self._tell_front(ended)

    def _tell_front(self, ended: TrialRecord) -> None:
        """Tell the tracker who is on the front of the objectives, as far as that has changed."""
        numbers = front_numbers(self.kept, self.sweep.search.objectives)
        front = {record.number: record for record in self.kept if record.number in numbers}
        changed = {number: (self.front | front)[number] for number in self.front.keys() ^ front.keys()}
        for record in (changed | {ended.number: ended}).values():
            self.tracker.trial(record, {}, {"kdray.front": "yes" if record.number in front else "no"})
        self.front = front

    def _show(self) -> None:
        self.screen.trials(self.ledger.records(), self.sweep.search.trials, self.best)


def drop_all_but(kept: Path) -> None:
    """Remove what lies beside this folder: checkpoints, whole and half ones."""
    for path in {*kept.parent.glob("*"), *listed(kept.parent)} - {kept}:
        remove(path)


@contextmanager
def tracked(sweep: Sweep, paths: SweepPaths, ledger: Ledger, say: Callable[[str], None]) -> Iterator[Tracker]:
    """The sweep's run in MLflow, begun or gone on with, and closed with how the sweep ended; `say` tells a person."""
    tracker = open_tracker(sweep.tracking, paths, key_of(ledger), say)
    commit = git_commit(Path.cwd())
    tags = {"kdray.task": sweep.task.name, "kdray.teacher": sweep.teacher.called, **versions()}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    tracker.start_sweep(sweep.written(), tags, sweep_run(ledger))
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
        note_runs(ledger, tracker.run_ids())
