"""The desired content of a run: which part is new, which first values stay, and its JSON."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.tracking.content import Point, RunContent, TrackedRun, params_of, tags_of, trial_content

WORDS = st.text(max_size=8)
CONTENTS = st.builds(
    RunContent,
    name=WORDS,
    started=st.floats(0, 2e9),
    ended=st.floats(0, 2e9),
    status=st.sampled_from([None, "RUNNING", "FINISHED"]),
    params=st.dictionaries(WORDS, WORDS, max_size=3),
    tags=st.dictionaries(WORDS, WORDS, max_size=3),
    metrics=st.dictionaries(
        st.tuples(WORDS, st.integers(0, 9)),
        st.builds(Point, st.floats(allow_nan=False), st.integers(0, 2**41)),
        max_size=3,
    ),
    artifacts=st.dictionaries(
        st.sampled_from(["report", "student", "a/b"]),
        st.sampled_from([Path("/sweep/report"), Path("/sweep/trials/x y")]),
        max_size=2,
    ),
)


@given(CONTENTS)
def test_json_gives_the_same_content_again(content: RunContent) -> None:
    line = json.dumps(content.to_json(Path("/sweep")))
    assert RunContent.from_json(json.loads(line), Path("/sweep"), "spool") == content


@given(CONTENTS, CONTENTS)
def test_nothing_is_missing_after_the_missing_part_is_added(stored: RunContent, desired: RunContent) -> None:
    stored.add(desired.missing_in(stored))
    missing = desired.missing_in(stored)
    assert not any([missing.params, missing.tags, missing.metrics, missing.artifacts])
    assert not (desired.status and missing.status)


def test_folders_of_a_moved_sweep_are_below_its_new_folder() -> None:
    content = RunContent(artifacts={"report": Path("/old/sweep/report")})
    moved = RunContent.from_json(content.to_json(Path("/old/sweep")), Path("/new/sweep"), "spool")
    assert moved.artifacts == {"report": Path("/new/sweep/report")}


@pytest.mark.parametrize("folder", ["/etc", "../other", "report/../../other", "", ".", "a//b", "~/x\\y"])
def test_a_folder_outside_of_the_sweep_is_refused(folder: str) -> None:
    with pytest.raises(StorageError, match=r"spool.jsonl, line 3: names a file .*, which "):
        RunContent.from_json({"artifacts": {"report": folder}}, Path("/sweep"), "spool.jsonl, line 3")
    with pytest.raises(StorageError, match="names a file"):
        RunContent.from_json({"artifacts": {folder: "report"}}, Path("/sweep"), "spool.jsonl, line 3")


def test_a_folder_outside_of_the_sweep_is_never_written() -> None:
    with pytest.raises(ValueError, match="is not in the subpath"):
        RunContent(artifacts={"report": Path("/elsewhere")}).to_json(Path("/sweep"))


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": [["accuracy", "much", 1, 1]]},
        {"metrics": {"accuracy": 1}},
        {"params": {"a": {}}},
        {"started": "now"},
        {"artifacts": ["/etc"]},
        {"unknown": 1},
    ],
)
def test_wrong_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        RunContent.from_json(fields, Path("/sweep"), "spool")


def test_a_repeated_value_keeps_its_first_time_and_a_new_value_has_its_own() -> None:
    content = RunContent(metrics={("accuracy", 1): Point(0.8, 1000), ("loss", 1): Point(math.nan, 1000)})
    content.add(RunContent(metrics={("accuracy", 1): Point(0.8, 9000), ("loss", 1): Point(math.nan, 9000)}))
    assert {point.time_ms for point in content.metrics.values()} == {1000}
    content.add(RunContent(started=5.0, metrics={("accuracy", 1): Point(0.9, 9000)}))
    content.add(RunContent(started=7.0))
    assert content.metrics["accuracy", 1] == Point(0.9, 9000)
    assert content.started == 5.0


def test_a_run_from_the_store_receives_only_later_or_newer_points_in_order_of_step() -> None:
    latest = {"accuracy": (2, Point(0.8, 2000)), "teacher": (0, Point(0.9, 500))}
    run = TrackedRun(7, is_in_store=True, latest=latest)
    for step, value in ((4, 0.9), (3, 0.85), (2, 0.8), (1, 0.7)):
        run.desired.metrics["accuracy", step] = Point(value, 9000 + step)
    run.desired.metrics["teacher", 0] = Point(0.95, 600)
    assert list(run.unsent().metrics) == [("teacher", 0), ("accuracy", 3), ("accuracy", 4)]


def test_a_changed_param_becomes_a_tag() -> None:
    run = TrackedRun(None, RunContent(params={"trials": "48", "new": "1"}), RunContent(params={"trials": "24"}))
    unsent = run.unsent()
    assert (unsent.params, unsent.tags) == ({"new": "1"}, {"changed.trials": "48"})
    run.stored.add(unsent)
    assert not run.unsent()


def test_times_of_a_trial_are_computed_from_its_record() -> None:
    history = tuple({"epoch": n, "step": 10.0 * n, "train_seconds": 2.0, "eval_seconds": 0.5} for n in (1, 2))
    record = TrialRecord(
        number=7,
        params={"student.depth": 2},
        state="completed",
        history=history,
        costs={"latency_ms": 1.5},
        started=100.0,
        ended=106.0,
    )
    assert "kdray.host" not in trial_content("quickstart", record, {}, {}).tags
    assert trial_content("quickstart", replace(record, host="h2"), {}, {}).tags["kdray.host"] == "h2"
    content = trial_content("quickstart", record, {}, {})
    assert content.metrics["latency_ms", 0] == Point(1.5, 100_000)
    assert content.metrics["epoch", 10] == Point(1.0, 102_500)
    assert content.metrics["epoch", 20] == Point(2.0, 105_000)
    assert (content.name, content.started, content.ended) == ("trial 007 depth 2", 100.0, 106.0)


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("postgresql://me:secret@db/x", "postgresql://***@db/x"),
        ("postgresql://me:se@cr/et@db/x", "postgresql://***@db/x"),
        ("postgresql://db/x?user=me&password=secret&a=1", "postgresql://db/x?***"),
        ("https://host/x?access_token=secret", "https://host/x?***"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_params_and_tags_have_no_secrets(address: str, masked: str) -> None:
    assert params_of({"uri": address}) == tags_of({"uri": address}) == {"uri": masked}
