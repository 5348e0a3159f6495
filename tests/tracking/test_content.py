"""What a run ought to hold: what is news, what stays as it was said first, and how it is written."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.evaluation.trial_record import TrialRecord
from kdray.tracking.content import Point, RunContent, TrackedRun, params_of, tags_of, trial_content
from kdray.tracking.settings import mask_secrets

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
    artifacts=st.dictionaries(WORDS, st.sampled_from([Path("/sweep/report"), Path("/elsewhere/x y")]), max_size=2),
)


@given(CONTENTS)
def test_what_is_written_is_read_again(content: RunContent) -> None:
    line = json.dumps(content.written(Path("/sweep")))
    assert RunContent.read(json.loads(line), Path("/sweep")) == content


@given(CONTENTS, CONTENTS)
def test_news_added_is_no_news(held: RunContent, told: RunContent) -> None:
    held.add(told.beyond(held))
    left = told.beyond(held)
    assert not any([left.params, left.tags, left.metrics, left.artifacts])
    assert not (told.status and left.status)


def test_a_moved_sweep_finds_its_folders_again() -> None:
    content = RunContent(artifacts={"report": Path("/old/sweep/report"), "other": Path("/elsewhere")})
    moved = RunContent.read(content.written(Path("/old/sweep")), Path("/new/sweep"))
    assert moved.artifacts == {"report": Path("/new/sweep/report"), "other": Path("/elsewhere")}


def test_a_value_said_again_keeps_its_first_time_and_a_new_one_has_its_own() -> None:
    held = RunContent(metrics={("accuracy", 1): Point(0.8, 1000), ("loss", 1): Point(math.nan, 1000)})
    held.add(RunContent(metrics={("accuracy", 1): Point(0.8, 9000), ("loss", 1): Point(math.nan, 9000)}))
    assert {point.at for point in held.metrics.values()} == {1000}
    held.add(RunContent(started=5.0, metrics={("accuracy", 1): Point(0.9, 9000)}))
    held.add(RunContent(started=7.0))
    assert held.metrics["accuracy", 1] == Point(0.9, 9000)
    assert held.started == 5.0


def test_of_a_run_that_was_found_only_later_or_newer_points_are_sent_by_step() -> None:
    run = TrackedRun(7, found=True, latest={"accuracy": (2, Point(0.8, 2000)), "teacher": (0, Point(0.9, 500))})
    for step, value in ((4, 0.9), (3, 0.85), (2, 0.8), (1, 0.7)):
        run.wanted.metrics["accuracy", step] = Point(value, 9000 + step)
    run.wanted.metrics["teacher", 0] = Point(0.95, 600)
    assert list(run.unsent().metrics) == [("teacher", 0), ("accuracy", 3), ("accuracy", 4)]


def test_a_param_that_has_changed_becomes_a_tag() -> None:
    run = TrackedRun(None, RunContent(params={"trials": "48", "new": "1"}), RunContent(params={"trials": "24"}))
    news = run.unsent()
    assert (news.params, news.tags) == ({"new": "1"}, {"changed.trials": "48"})
    run.sent.add(news)
    assert not run.unsent()


def test_a_trials_times_follow_from_its_record() -> None:
    history = tuple({"epoch": n, "step": 10.0 * n, "train_seconds": 2.0, "eval_seconds": 0.5} for n in (1, 2))
    record = TrialRecord(7, {"student.depth": 2}, "completed", history, {"latency_ms": 1.5}, started=100.0, ended=106.0)
    assert "kdray.host" not in trial_content("quickstart", record, {}, {}).tags
    assert trial_content("quickstart", replace(record, host="h2"), {}, {}).tags["kdray.host"] == "h2"
    content = trial_content("quickstart", record, {}, {})
    assert content.metrics["latency_ms", 0] == Point(1.5, 100_000)
    assert content.metrics["epoch", 10] == Point(1.0, 102_500)
    assert content.metrics["epoch", 20] == Point(2.0, 105_000)
    assert (content.name, content.started, content.ended) == ("trial 007 depth 2", 100.0, 106.0)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:secret@db/x", "postgresql://***@db/x"),
        ("postgresql://db/x?user=me&password=secret&a=1", "postgresql://db/x?user=me&password=***&a=1"),
        ("https://host/x?access_token=secret", "https://host/x?access_token=***"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_secrets_are_masked_wherever_they_stand(address: str, shown: str) -> None:
    assert mask_secrets(address) == shown
    assert params_of({"at": address}) == tags_of({"at": address}) == {"at": shown}
