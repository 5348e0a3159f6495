"""Claim: a sweep whose driver is killed ten times ends with the table of one that was left in peace.

Runs a sweep on one slot of a Ray of its own, kills the driver (SIGKILL) at random moments, a few pieces of news after
each start and in all of its stages, and gives the same command again each time; then runs it once undisturbed, from the
same teacher, and compares all that no clock has a say in: numbers, settings, states, every metric of every evaluation
to the last digit, controls, and what confirmation came to. `ratio` is the time of all sessions over that of the
undisturbed one: mostly Ray and imports started anew.

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
from pathlib import Path
from typing import Any

from machine import machine, say

from kdray.errors import KDRayError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths

ROOT = Path(__file__).parents[1]
CLOCKS = ("examples_per_s", "train_seconds", "eval_seconds")
NEWS: tuple[tuple[str, ...], ...] = (
    ("epochs of the teacher",),
    ("shards labelled", " begins: ", " completed: ", " stopped at "),
    ("controls trained: ",),
    ("trained again: ",),
    ("Choice",),
)
"""What lines say in which a session tells that it got on, stage after stage."""
ANEW = ("epochs of the teacher", "Choice")
"""What each session begins anew; other news counts once, for a session repeats what the ones before had told."""
MOMENTS = ((0, 4), (0, 4), (1, 9), (1, 9), (1, 9), (1, 9), (1, 9), (2, 2), (3, 2), (3, 2))
"""By kill: from which stage on news is counted, and how much of it there may be before; again from the first one when
there are more kills."""
LIVES_S = 3.0
"""How long a session lives at most from then on."""
LIMIT_S = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", type=Path, default=ROOT / "sweeps" / "quickstart.py")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    on = machine()
    with tempfile.TemporaryDirectory() as storage:
        killed, disturbed_s = _disturbed(asked.sweep, Path(storage), asked.kills, random.Random(asked.seed))
        began = time.monotonic()
        _begun(asked.sweep, Path(storage), "undisturbed", 0, set())[0].wait(LIMIT_S)
        quiet_s = time.monotonic() - began
        tables = {name: _table(Path(storage), name) for name in ("disturbed", "undisturbed")}
        verdicts = {name: _confirmed(Path(storage), name) for name in tables}
    equal = tables["disturbed"] == tables["undisturbed"] and verdicts["disturbed"] == verdicts["undisturbed"]
    figures: dict[str, Any] = {
        "equal": equal,
        "kills": killed,
        "trials": len(tables["undisturbed"]),
        "confirmed": len(verdicts["undisturbed"]),
    }
    figures |= {"disturbed_s": disturbed_s, "undisturbed_s": quiet_s}
    say(
        "a sweep that is killed again and again ends with the table of one left in peace",
        disturbed_s / quiet_s,
        figures,
        on,
    )
    return 0 if equal and killed == asked.kills else 1


def _disturbed(sweep: Path, storage: Path, kills: int, draw: random.Random) -> tuple[int, float]:
    """Run the sweep to its end, killing it on the way: how often, and the seconds of all sessions."""
    killed, began = 0, time.monotonic()
    told: set[str] = set()
    while True:
        stage, most = MOMENTS[killed % len(MOMENTS)]
        driver, news = _begun(sweep, storage, "disturbed", stage, told)
        if killed < kills:
            for _ in range(draw.randint(1, most)):
                news.acquire(timeout=LIMIT_S)
        try:
            driver.wait(draw.uniform(0, LIVES_S) if killed < kills else LIMIT_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait(LIMIT_S)
            killed += 1
            _tell(f"kill {killed}: {_standing(storage)}")
            continue
        if driver.returncode:
            raise SystemExit(f"the sweep ended with {driver.returncode}; see {storage / 'disturbed' / 'logs'}")
        return killed, time.monotonic() - began


def _begun(
    sweep: Path, storage: Path, name: str, stage: int, told: set[str]
) -> tuple[subprocess.Popen[str], threading.Semaphore]:
    """A session, whose words go to this process's stderr, and how much news it has told from this stage on."""
    command = [
        sys.executable,
        "-c",
        "from kdray.cli.app import app; app()",
        "run",
        str(sweep),
        "--storage",
        str(storage),
    ]
    command += ["--address", "local", "--set", f"name={name}", "--set", "slots.count=1"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    news = threading.Semaphore(0)

    def listen() -> None:
        for line in driver.stderr or ():
            sys.stderr.write(line)
            said = line.partition("] ")[2].partition("  [")[0]  # without the time, and without how many are left
            for number, words in enumerate(NEWS):
                if any(word in said for word in words) and (said not in told or words[0] in ANEW):
                    told.add(said)
                    if number >= stage:
                        news.release()
        news.release(max(most for _, most in MOMENTS))

    threading.Thread(target=listen, daemon=True).start()
    return driver, news


def _records(storage: Path, name: str) -> Sequence[TrialRecord]:
    try:
        return Ledger.read(SweepPaths(storage, name).journal, name).records()
    except KDRayError:
        return ()


def _table(storage: Path, name: str) -> list[Any]:
    return [
        (r.number, r.params, r.state, r.error, [{k: v for k, v in m.items() if k not in CLOCKS} for m in r.history])
        for r in _records(storage, name)
    ]


def _confirmed(storage: Path, name: str) -> list[Any]:
    """Each student that was trained outside the search: whose it is, over how many seeds, and what it measured."""
    choice = read_json(SweepPaths(storage, name).choice)
    again = [
        (each["trial"], each["role"], each["seeds"], each["metrics"]) for each in choice["confirmation"]["confirmed"]
    ]
    return again + [
        (each["trial"], each["role"], 1, {k: v for k, v in each["metrics"].items() if k not in CLOCKS})
        for each in choice["controls"]
    ]


def _standing(storage: Path) -> str:
    records = _records(storage, "disturbed")
    ended = sum(record.state != "running" for record in records)
    evaluations = sum(len(record.history) for record in records)
    return f"{ended} trials ended, {len(records) - ended} running, {evaluations} evaluations recorded"


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
