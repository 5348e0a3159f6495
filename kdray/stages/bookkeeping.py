"""Keeps MLflow, the screen and the disk up to date with the ledger while trials run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdray.choice.rule import front_trials, signed
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.settings import dotted_values
from kdray.stages.session import Session
from kdray.storage.mirror import delete, list_bucket
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.ids import save_run_ids, sweep_run_id, tracked_sweep
from kdray.tracking.mlflow_tracker import open_tracker
from kdray.tracking.origin import git_commit, versions
from kdray.tracking.tracker import RunNumber, Tracker


class Bookkeeper:
    """Passes every change of a trial on to the tracker, the screen and the disk.

    On disk it keeps only the students of trials on a front, because the sweep's rule chooses one of them.
    """

    def __init__(self, session: Session) -> None:
        """Bring the tracker, the screen and the disk up to date with the trials of earlier sessions."""
        self.session = session
        self._sweep, self._paths, self._ledger = session.sweep, session.paths, session.ledger
        self._tags = {
            "kdray.task": self._sweep.task.name,
            "kdray.teacher": self._sweep.teacher.display_name,
            "kdray.role": "search",
        }
        self._remark_counts = {record.number: len(record.remarks) for record in self._ledger.records()}
        """Number of a trial -> how many of its remarks the screen has shown."""
        self._in_tracker: set[int] = set()
        """The trials whose settings and tags the tracker has; they do not change."""
        self._without_run_id: set[RunNumber] = {None}
        """The runs in MLflow whose ids are not in the ledger yet."""
        self._front_members: list[TrialRecord] = []
        """The completed trials on the front of the objectives, or on the front of the rule."""
        self._objective_front: dict[int, TrialRecord] = {}
        """The trials on the front of the objectives, by number."""
        self._best: TrialRecord | None = None
        for record in self._ledger.records():
            self._process(record)
        self._refresh_screen()

    def update(self, record: TrialRecord) -> None:
        """Process the record of a trial that has begun, has been evaluated or has ended."""
        if record.number not in self._remark_counts and record.attempts == 1:
            # A session whose ledger was lost may have left files under the number of this new trial.
            delete(self._paths.student(record.number).parent)
        self._process(record)
        for remark in record.remarks[self._remark_counts.get(record.number, 0) :]:
            self.session.screen.note(f"trial {record.number:03d}: {remark}")
        self._remark_counts[record.number] = len(record.remarks)
        self._refresh_screen()

    def remove_leftovers(self) -> None:
        """Delete the files that slots wrote for trials after these had ended. Call it when no trial runs."""
        members = {record.number for record in self._front_members}
        for record in self._ledger.records():
            if record.state != "running" and record.number not in members:
                delete(self._paths.student(record.number).parent)

    def _process(self, record: TrialRecord) -> None:
        tracker, is_known = self.session.tracker, record.number in self._in_tracker
        self._in_tracker.add(record.number)
        settings = {} if is_known else dotted_values(self._sweep.recipe_of(record.params))
        tags = {} if is_known else dict(self._tags)
        if record.state != "running":
            self._delete_dominated_students(record)
            tags |= self._front_tag(record)
        tracker.trial(record, settings, tags)
        if not is_known and record.run_id is None:
            self._without_run_id.add(record.number)
        if record.state != "running":
            # Not those of all runs: each end of a trial would then take longer than the one before.
            run_ids = tracker.run_ids(self._without_run_id)
            save_run_ids(self._ledger, run_ids)
            self._without_run_id -= run_ids.keys()
        if record.state == "completed" and (self._best is None or self._rank(record) < self._rank(self._best)):
            self._best = record

    def _rank(self, record: TrialRecord) -> tuple[float, int]:
        """Smaller for a better trial: by the first objective, and of equal trials the earlier one is better."""
        return signed(record, self._quality), record.number

    @property
    def _quality(self) -> str:
        """The metric that the trials of the search are compared by."""
        return self._sweep.search.objectives[0]

    def _delete_dominated_students(self, ended: TrialRecord) -> None:
        """Delete the checkpoint of an ended trial, and the students of trials that are no longer on a front.

        A trial that has left a front never returns to it. So it is enough to compare the ended trial with the members.
        """
        candidates = [*self._front_members, ended]
        # The rule may compare other metrics than the objectives, so it has a front of its own.
        fronts = (self._sweep.search.objectives, self._sweep.choose.compared)
        on_front = set().union(*(front_trials(candidates, names) for names in fronts))
        remove_siblings(self._paths.student(ended.number))
        for record in candidates:
            if record.number not in on_front:
                delete(self._paths.student(record.number).parent)
        self._front_members = [record for record in candidates if record.number in on_front]
        self._tag_changes(ended)

    def _tag_changes(self, ended: TrialRecord) -> None:
        """Tag other trials than the ended one that joined or left the front of the objectives."""
        numbers = front_trials(self._front_members, self._sweep.search.objectives)
        before = self._objective_front
        self._objective_front = {each.number: each for each in self._front_members if each.number in numbers}
        either = before | self._objective_front
        for number in (before.keys() ^ self._objective_front.keys()) - {ended.number}:
            self.session.tracker.trial(either[number], {}, self._front_tag(either[number]))

    def _front_tag(self, record: TrialRecord) -> dict[str, str]:
        """The tag of a trial that says whether it is on the front of the objectives."""
        return {"kdray.front": "yes" if record.number in self._objective_front else "no"}

    def _refresh_screen(self) -> None:
        self.session.screen.trials(self._ledger.records(), self._sweep.search.trials, self._best, self._quality)


def remove_siblings(folder: Path) -> None:
    """Delete everything beside this folder, here and in the bucket: complete and incomplete checkpoints."""
    for path in {*folder.parent.glob("*"), *list_bucket(folder.parent)} - {folder}:
        delete(path)


@contextmanager
def open_sweep_run(
    sweep: Sweep, paths: SweepPaths, ledger: Ledger, note: Callable[[str], None], *, own_process: bool
) -> Iterator[Tracker]:
    """Open or continue the sweep's run in MLflow, and at the end of the block close it with the status of the sweep.

    `note` receives messages for the user. With `own_process`, MLflow's client has a process of its own.
    """
    tracker = open_tracker(sweep.tracking, paths, tracked_sweep(ledger), note, own_process=own_process)
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
