"""What goes on beside the search: tracker, screen and disk are kept up with the ledger as trials change."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdray.choice import front_numbers
from kdray.paths import SweepPaths
from kdray.record import TrialRecord
from kdray.screen import Screen
from kdray.search.ledger import Ledger
from kdray.settings import dotted
from kdray.sweep import Sweep
from kdray.tracking import Tracker, git_commit, key_of, note_runs, open_tracker, sweep_run, versions


class Keeper:
    """Keeps tracker, screen and disk up with the ledger as trials change."""

    def __init__(self, sweep: Sweep, paths: SweepPaths, ledger: Ledger, tracker: Tracker, screen: Screen) -> None:
        self.sweep, self.paths, self.ledger, self.tracker, self.screen = sweep, paths, ledger, tracker, screen
        self.tags = {"kdray.task": sweep.task.name, "kdray.teacher": sweep.teacher.called}
        for record in ledger.records():
            self.take(record)

    def take(self, record: TrialRecord) -> None:
        """A trial began, was evaluated or ended."""
        self.tracker.trial(record, dotted(self.sweep.recipe_of(record.params)), self.tags)
        note_runs(self.ledger, self.tracker.run_ids())
        records = self.ledger.records()
        if record.state != "running":
            self.drop_students(records)
        best = max(
            (r for r in records if r.state == "completed"),
            key=lambda r: (r.metrics[self.sweep.search.objectives[0]], -r.number), default=None,
        )  # fmt: skip
        self.screen.trials(records, self.sweep.search.trials, best)

    def drop_students(self, records: list[TrialRecord]) -> None:
        """Remove the weights of students that are neither on the front nor may be chosen, and what cut trials left."""
        sweep = self.sweep
        kept = front_numbers(records, sweep.search.objectives) | front_numbers(records, sweep.choose.compared)
        for record in records:
            if record.state != "running" and record.number not in kept:
                shutil.rmtree(self.paths.student(record.number).parent, ignore_errors=True)


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
