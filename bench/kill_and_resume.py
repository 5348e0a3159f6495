"""Claim: a sweep whose driver is killed ten times ends with the table of a sweep that was never disturbed.

The script runs a sweep on one slot of a Ray of its own, and kills the driver (SIGKILL) at random moments: a few
progress lines after each start, in all stages. After each kill it runs the same command again. Then it runs the sweep
once undisturbed, with the same teacher, and compares everything that does not depend on the clock: numbers, settings,
states, every metric of every evaluation to the last digit, controls, and the confirmed figures. `ratio` is the time
of all sessions / the time of the undisturbed session; the difference is mostly the start of Ray and the imports.

    python bench/kill_and_resume.py [SWEEP] [--kills 10]              sweeps/quickstart.py: about 20 minutes
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import machine, print_result

from kdray.errors import KDRayError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths

ROOT = Path(__file__).parents[1]
CLOCKS = ("examples_per_s", "train_seconds", "eval_seconds")
PROGRESS: tuple[tuple[str, ...], ...] = (
    ("epochs of the teacher",),
    ("shards labelled", " begins: ", " completed: ", " stopped at "),
    ("controls trained: ",),
    ("trained again: ",),
    ("Choice",),
)
"""Parts of the lines by which a session shows progress, stage after stage."""
REPEATED = ("epochs of the teacher", "Choice")
"""Stages that every session runs again. All other progress counts once, because a session repeats earlier lines."""
MOMENTS = ((0, 4), (0, 4), (1, 9), (1, 9), (1, 9), (1, 9), (1, 9), (2, 2), (3, 2), (3, 2))
"""For each kill: from which stage on progress counts, and the most progress lines before the kill. After the last entry
the first one comes again."""
MOST_SECONDS_TO_KILL = 3.0
"""The longest time from those progress lines to the kill, in seconds."""
LIMIT_S = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", type=Path, default=ROOT / "sweeps" / "quickstart.py")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    options = parser.parse_args()
    on = machine()
    with tempfile.TemporaryDirectory() as name:
        storage = Path(name)
        killed, disturbed_s = run_and_kill(options.sweep, storage, options.kills, random.Random(options.seed))
        began = time.monotonic()
        Driver(options.sweep, storage, "undisturbed").process.wait(LIMIT_S)
        undisturbed_s = time.monotonic() - began
        tables = [table(storage, sweep) for sweep in ("disturbed", "undisturbed")]
        confirmed = [confirmed_figures(storage, sweep) for sweep in ("disturbed", "undisturbed")]
    equal = tables[0] == tables[1] and confirmed[0] == confirmed[1]
    figures = {
        "equal": equal,
        "kills": killed,
        "trials": len(tables[1]),
        "confirmed": len(confirmed[1]),
        "disturbed_s": disturbed_s,
        "undisturbed_s": undisturbed_s,
    }
    print_result(
        "a sweep that is killed again and again ends with the table of an undisturbed one",
        disturbed_s / undisturbed_s,
        figures,
        on,
    )
    return 0 if equal and killed == options.kills else 1


def run_and_kill(sweep: Path, storage: Path, kills: int, draw: random.Random) -> tuple[int, float]:
    """Run the sweep to its end, and kill it several times. Returns how many times, and the seconds of all sessions."""
    killed, began = 0, time.monotonic()
    seen: set[str] = set()
    while True:
        stage, most = MOMENTS[killed % len(MOMENTS)]
        driver = Driver(sweep, storage, "disturbed", stage, seen)
        if killed < kills:
            for _ in range(draw.randint(1, most)):
                driver.progress.acquire(timeout=LIMIT_S)
        try:
            driver.process.wait(draw.uniform(0, MOST_SECONDS_TO_KILL) if killed < kills else LIMIT_S)
        except subprocess.TimeoutExpired:
            driver.process.kill()
            driver.process.wait(LIMIT_S)
            killed += 1
            sys.stderr.write(f"kill {killed}: {describe(storage)}\n")
            continue
        if driver.process.returncode:
            code, logs = driver.process.returncode, storage / "disturbed" / "logs"
            raise SystemExit(f"the sweep ended with {code}; see {logs}")
        return killed, time.monotonic() - began


@dataclass
class Driver:
    """One session of the sweep in a process of its own. Its output is copied to stderr."""

    sweep: Path
    storage: Path
    name: str
    stage: int = 0
    """Progress before this stage does not count."""
    seen: set[str] = field(default_factory=set)
    """Progress lines of earlier sessions."""
    progress: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for each progress line that counts."""

    def __post_init__(self) -> None:
        command = [sys.executable, "-c", "from kdray.cli.app import app; app()", "run", str(self.sweep)]
        command += ["--storage", str(self.storage), "--address", "local"]
        command += ["--set", f"name={self.name}", "--set", "slots.count=1"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            sys.stderr.write(line)
            # The time at the start of a line, and the number of trials that are left at its end, change.
            text = line.partition("] ")[2].partition("  [")[0]
            for number, parts in enumerate(PROGRESS):
                if any(part in text for part in parts) and (text not in self.seen or parts[0] in REPEATED):
                    self.seen.add(text)
                    if number >= self.stage:
                        self.progress.release()
        self.progress.release(max(most for _, most in MOMENTS))  # the process has ended: end all waiting


def read_records(storage: Path, name: str) -> Sequence[TrialRecord]:
    try:
        return Ledger.read(SweepPaths(storage, name).journal, name).records()
    except KDRayError:
        return ()


def table(storage: Path, name: str) -> list[Any]:
    return [
        (r.number, r.params, r.state, r.error, [{k: v for k, v in m.items() if k not in CLOCKS} for m in r.history])
        for r in read_records(storage, name)
    ]


def confirmed_figures(storage: Path, name: str) -> list[Any]:
    """Each student that was trained outside the search: its trial, its role, its number of seeds and its metrics."""
    choice = read_json(SweepPaths(storage, name).choice)
    again = [
        (each["trial"], each["role"], each["seeds"], each["metrics"]) for each in choice["confirmation"]["confirmed"]
    ]
    return again + [
        (each["trial"], each["role"], 1, {k: v for k, v in each["metrics"].items() if k not in CLOCKS})
        for each in choice["controls"]
    ]


def describe(storage: Path) -> str:
    records = read_records(storage, "disturbed")
    ended = sum(record.state != "running" for record in records)
    evaluations = sum(len(record.history) for record in records)
    return f"{ended} trials ended, {len(records) - ended} running, {evaluations} evaluations recorded"


if __name__ == "__main__":
    raise SystemExit(main())
