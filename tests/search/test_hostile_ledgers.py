"""A ledger that somebody else wrote is a sentence that names the ledger and what to do, and never a traceback."""

import json
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdray.errors import StorageError
from kdray.search import ledger_storage
from kdray.search.ledger import Ledger
from kdray.search.planner import EARLIER_TRIALS, SECONDS_SPENT, Planner
from kdray.search.settings import Search
from kdray.search.space import SearchSpace
from kdray.stages.warm_start import MATERIAL, TrialMaterial
from tests.search.test_ledger import OBJECTIVES, make_ledger

SPACE = {"student.depth": [1, 2], "alpha": [0.1, 0.2, 0.3, 0.4]}
READERS: dict[str, Callable[[Path], object]] = {
    "read": lambda journal: Ledger.read(journal, "reviews"),
    "open": lambda journal: Ledger.open(journal, "reviews", OBJECTIVES),
    "count": lambda journal: Ledger.count_trials(journal, "reviews"),
}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with one trial in each state."""
    make_ledger(tmp_path)
    return tmp_path / "ledger" / "journal.log"


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pipe_in_place_of_the_journal_is_a_sentence(journal: Path, read: Callable[[Path], object]) -> None:
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(StorageError, match=r"journal\.log: is not a regular file"):
        read(journal)


LINES = {
    "200,000 levels": "[" * 200_000,
    "an operation that does not exist": '{"op_code": 99}',
    "an operation that is a text": '{"op_code": "x"}',
    "an operation without values": '{"op_code": 4}',
    "a study without a name": '{"op_code": 0, "worker_id": "x"}',
    "a parameter of no kind": '{"op_code": 5, "worker_id": "x", "trial_id": 3, "param_name": "a", "distribution": "x"}',
    "a list": "[1]",
    "no text": "\udcff\udcfe",
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_foreign_line_in_the_journal_is_a_sentence(journal: Path, line: str, read: Callable[[Path], object]) -> None:
    with journal.open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(
        StorageError, match=rf"ledger {journal}: .* Restore the file|{journal}: .* Restore it"
    ) as caught:
        read(journal)
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "line",
    [
        '{"op_code": 4, "worker_id": "x", "study_id": 77}',
        '{"op_code": 8, "worker_id": "x", "trial_id": 10000, "user_attr": {"a": 1}}',
    ],
)
def test_an_operation_on_another_study_changes_nothing(journal: Path, line: str) -> None:
    before = Ledger.read(journal, "reviews").records()
    with journal.open("a") as file:
        file.write(f"{line}\n")
    assert Ledger.read(journal, "reviews").records() == before


def test_a_line_that_is_too_long_is_not_read(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_storage, "MAX_LINE_BYTES", 10_000)
    Ledger.read(journal, "reviews")
    with journal.open("ab") as file:
        file.write(b" " * 10_001 + b"\n")
    with pytest.raises(StorageError, match=r"line \d+ has more than 10,000 bytes, .* Restore the file"):
        Ledger.read(journal, "reviews")


def edit_trials(journal: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change each line that creates a trial or sets a value of one."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        change(record)
    journal.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def set_value(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """A change that gives each trial this attribute."""

    def change(record: dict[str, Any]) -> None:
        if "params" in record:
            record["user_attrs"] = {**record.get("user_attrs", {}), name: value}

    return change


VALUES: dict[str, tuple[str, Any]] = {
    "costs that are no numbers": ("costs", {"latency_ms": "fast"}),
    "costs that are a list": ("costs", [1]),
    "costs that are not a number": ("costs", {"latency_ms": float("nan")}),
    "an evaluation that is a text": ("evaluation 0000", "x"),
    "an evaluation with a list": ("evaluation 0000", {"accuracy": [1]}),
    "an evaluation without end": ("evaluation 0000", {"accuracy": float("inf")}),
    "a remark that is a number": ("remark 0000", 7),
    "attempts that are a text": ("attempts", "many"),
    "a host that is a list": ("host", ["x"]),
    "a start that is a text": ("resumed", "now"),
    "a rung that is an object": ("passed", {}),
}


@pytest.mark.parametrize(("name", "value"), VALUES.values(), ids=VALUES)
def test_a_value_of_another_kind_names_the_trial(journal: Path, name: str, value: Any) -> None:
    edit_trials(journal, set_value(name, value))
    with pytest.raises(StorageError, match=r"trial \d is damaged \(.*\)\. Restore the ledger, or start over"):
        Ledger.read(journal, "reviews")


def test_a_trial_that_waits_is_none_of_kdray(journal: Path) -> None:
    edit_trials(journal, lambda record: record.update(state=4) if "params" in record else None)
    with pytest.raises(StorageError, match=r"trial \d is damaged|cannot be used"):
        Ledger.read(journal, "reviews")


ATTRIBUTES: dict[str, tuple[str, Any]] = {
    "a number": (EARLIER_TRIALS, 1),
    "a trial that is none": (EARLIER_TRIALS, {"trials": [1]}),
    "a metric that is none": (EARLIER_TRIALS, {"trials": [{"params": {}, "metrics": {"accuracy": "x"}}]}),
    "seconds that are a text": (SECONDS_SPENT, "x"),
    "seconds without end": (SECONDS_SPENT, float("inf")),
}


@pytest.mark.parametrize(("name", "value"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_an_attribute_of_the_sweep_of_another_kind_is_a_sentence(tmp_path: Path, name: str, value: Any) -> None:
    ledger = Ledger.open(tmp_path / "journal.log", "reviews", OBJECTIVES)
    ledger.set_attr(name, value)
    with pytest.raises(StorageError, match=rf"journal\.log, '{name}': is damaged"):
        make_planner(ledger)


@pytest.mark.parametrize("value", [1, [1], {"teacher.training": 1}, {"student.checkpoint": [1]}], ids=str)
def test_material_of_another_kind_is_a_sentence(tmp_path: Path, value: Any) -> None:
    ledger = Ledger.open(tmp_path / "journal.log", "reviews", OBJECTIVES)
    ledger.set_attr(MATERIAL, value)
    with pytest.raises(StorageError, match=r"journal\.log, 'material': is damaged"):
        TrialMaterial.read(ledger)


def make_planner(ledger: Ledger, trials: int = 9) -> Planner:
    search = Search(trials=trials, objectives=OBJECTIVES, stopping=None, sampler="nsga2")
    return Planner(search, SearchSpace(SPACE), ledger, costs=lambda params: {"latency_ms": params["student.depth"]})


def test_a_completed_trial_without_its_objective_is_a_sentence(journal: Path) -> None:
    edit_trials(journal, lambda record: record.update(user_attr={"host": "x"}) if "user_attr" in record else None)
    with pytest.raises(StorageError, match=r"trial 0 is damaged \(KeyError: 'accuracy'\)"):
        make_planner(Ledger.open(journal, "reviews", OBJECTIVES))


@pytest.mark.parametrize("note", ["x", "[", "[1]", 7, None, "[" * 200_000], ids=lambda note: repr(note)[:10])
def test_notes_of_the_sampler_of_another_kind_are_a_sentence(journal: Path, note: Any) -> None:
    ledger = Ledger.open(journal, "reviews", OBJECTIVES)
    ledger.sampler_notes(1)["kdray:study"] = note
    with pytest.raises(StorageError, match="trial 1 is damaged"):
        make_planner(ledger)


@pytest.mark.parametrize(
    "notes",
    [
        {"NSGAIISampler:generation": 10**9},
        {"NSGAIISampler:generation": "x"},
        {"kdray:study": '{"NSGAIISampler:parent:0": [10000, -7]}', "NSGAIISampler:generation": 1},
        {"kdray:study": '{"NSGAIISampler:parent:0": "x"}', "NSGAIISampler:generation": 1},
    ],
    ids=str,
)
def test_notes_that_a_sampler_cannot_use_are_a_sentence_or_change_draws_only(tmp_path: Path, notes: Any) -> None:
    planner = make_planner(Ledger.open(tmp_path / "journal.log", "reviews", OBJECTIVES), trials=60)
    for number in range(55):
        assert planner.next_trial() is not None
        planner.observe(number, {"accuracy": 0.5, "step": 1})
        planner.finish(number, "completed")
    ledger = Ledger.open(tmp_path / "journal.log", "reviews", OBJECTIVES)
    for number in range(55):
        ledger.sampler_notes(number).update(notes)
    try:
        planner = make_planner(ledger, trials=60)
        assert planner.next_trial() is not None
    except StorageError as error:
        assert re.search(r"ledger .*journal\.log: .*(is damaged|cannot continue).* --fresh", str(error))  # noqa: PT017


DATABASES: dict[str, bytes | str] = {
    "no database": b"x" * 5000,
    "the start of one": b"SQLite format 3\x00" + b"\xff" * 5000,
    "an empty one": "",
    "other tables": "CREATE TABLE notes (text TEXT)",
    "tables without columns": "CREATE TABLE studies (a INT); CREATE TABLE version_info (a INT);",
}


@pytest.mark.parametrize("content", DATABASES.values(), ids=DATABASES)
def test_a_file_that_is_no_ledger_is_a_sentence(tmp_path: Path, content: bytes | str) -> None:
    file = tmp_path / "ledger.db"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with sqlite3.connect(file) as database:
            database.executescript(content)
    with pytest.raises(StorageError, match=r"ledger sqlite:///.*ledger\.db: .*") as caught:
        Ledger.read(f"sqlite:///{file}", "reviews")
    assert caught.value.exit_code == 2
