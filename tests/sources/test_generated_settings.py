"""Generators as settings: chosen by their kind, in Python, in JSON and by dotted names, also in older folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdray.data.splits import Data
from kdray.errors import SpecError
from kdray.models.fresh import FreshTransformer
from kdray.search.claim import claim_folder
from kdray.search.space import distributions
from kdray.sources.generated.drawing import GeneratedRows
from kdray.sources.generated.generators import KINDS
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training

OLD_SOURCE = {"train_rows": 12_000, "validation_rows": 2_000, "test_rows": 2_000, "sureness": 1.6, "seed": 0}
"""`data.source` in the sweep.json of sweeps that were started when reviews were the only generated rows."""

REVIEWS = GeneratedReviews(train_rows=12_000)


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_same_generator_again(kind: str) -> None:
    data = Data(source={"kind": kind, "train_rows": 50})  # type: ignore[arg-type]
    again = Data(**json.loads(json.dumps(data.model_dump(mode="json"))))
    assert again == data
    assert (type(again.source), again.source.kind) == (type(data.source), kind)  # type: ignore[union-attr]


def test_reviews_are_written_and_read_without_a_kind() -> None:
    assert Data(source=REVIEWS).model_dump(mode="json")["source"] == OLD_SOURCE
    assert Data(source=OLD_SOURCE).source == REVIEWS  # type: ignore[arg-type]


def test_a_sweep_of_reviews_continues_in_its_older_folder(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path, "tiny")
    paths.logs.mkdir(parents=True)
    teacher = Teacher(model=FreshTransformer(), training=Training())
    sweep = Sweep(name="tiny", data=Data(source=REVIEWS), teacher=teacher, space={"student.depth": [1, 2]})
    ledger = claim_folder(sweep.identity(), paths, False)
    ledger.add({"student.depth": 1}, ledger.extend_choices(distributions(sweep.space)), {"latency_ms": 2.5}, {})
    stored = read_json(paths.settings)
    write_json(paths.settings, {**stored, "data": {**stored["data"], "source": OLD_SOURCE}})
    assert len(claim_folder(sweep.identity(), paths, False)) == 1
    identity = read_json(paths.settings)
    assert Sweep.from_identity(identity, space=sweep.space).data.source == REVIEWS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": {"kind": "moods"}}, GeneratedMoods()),
        ({"source.kind": "moods"}, GeneratedMoods(train_rows=12_000)),
        ({"source.seed": 3, "source.kind": "moods"}, GeneratedMoods(train_rows=12_000, seed=3)),
        (
            {"source.kind": "pairs", "source.train_rows": 90, "source.spread": 0},
            GeneratedPairs(train_rows=90, spread=0),
        ),
        ({"source.kind": "reviews", "source.sureness": 2}, GeneratedReviews(train_rows=12_000, sureness=2)),
    ],
)
def test_dotted_names_choose_another_generator(changes: dict[str, Any], expected: GeneratedRows) -> None:
    assert Data(source=REVIEWS).with_dotted(changes).source == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source.kind": "mood"},
            "source.kind: got 'mood'; did you mean 'moods'? Allowed: articles, mentions, moods,",
        ),
        ({"source.kind": "pairs", "source.sureness": 2}, "source.sureness: no such setting; "),
    ],
)
def test_a_wrong_generator_by_dotted_names_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Data(source=REVIEWS).with_dotted(changes)
    assert message in str(caught.value)


def test_every_generator_is_listed() -> None:
    assert GeneratedRows.kinds == KINDS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"kind": "mention"},
            "no generator of the kind 'mention'; did you mean 'mentions'? Allowed: articles, mentions, ",
        ),
        ({"kind": ["moods"]}, "no generator of the kind ['moods']; "),
        ({"kind": "moods", "spread": 1}, "GeneratedMoods.spread: no such setting; "),
        ({"train_rows": 1}, "GeneratedReviews.train_rows: got 1; input should be greater than or equal to 2."),
        (3, "got 3; "),
    ],
)
def test_a_wrong_source_is_refused_in_one_sentence(source: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Data(source=source)
    assert message in str(caught.value)
    assert str(caught.value).count("got ") <= 1
