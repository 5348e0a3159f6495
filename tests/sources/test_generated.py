"""Generated rows: what holds for every generator, true labels of reviews, and a fresh Transformer that reads them."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdray.data.rows import SPLITS
from kdray.data.splits import Data
from kdray.errors import SpecError
from kdray.models.fresh import FreshTransformer
from kdray.sources import generated
from kdray.sources.generated.drawing import GeneratedRows, is_right
from kdray.sources.generated.generators import KINDS
from kdray.sources.generated.reviews import BAD, GOOD, LABELS, THINGS, GeneratedReviews
from kdray.sources.opening import open_source
from kdray.tasks.text_classification import TextClassification

SMALL = GeneratedReviews(train_rows=3000, validation_rows=2000, test_rows=300)
TINY = FreshTransformer(layers=2, width=16, heads=2, feed_forward=32)

DIGESTS = {
    "reviews": 1891559062,
    "mentions": 1576698925,
    "moods": 800213126,
    "pairs": 2116041402,
    "articles": 55271554,
}
"""CRC-32 of 60 training rows and 20 validation rows. With other rows, a sweep would not continue as it was started."""

PRINT_DIGESTS = """
import json, zlib
from kdray.sources.generated.generators import KINDS
digests = {}
for kind, generator in KINDS.items():
    rows = generator(train_rows=60, validation_rows=20, test_rows=20)
    digests[kind] = zlib.crc32(repr([rows.rows("train"), rows.rows("validation")]).encode())
print(json.dumps(digests))
"""


def generator(kind: str, **settings: Any) -> GeneratedRows:
    settings = {"train_rows": 60, "validation_rows": 20, "test_rows": 20, **settings}
    source = Data(source={"kind": kind, **settings}).source  # type: ignore[arg-type]
    assert isinstance(source, GeneratedRows)
    return source


def keys(columns: dict[str, list[Any]]) -> list[str]:
    """What tells the rows apart: the cells of all columns but the answers, which are the last of several columns."""
    questions = list(columns.values())[: max(1, len(columns) - 1)]
    return [repr(cells) for cells in zip(*questions, strict=True)]


@pytest.mark.parametrize("hash_seed", ["1", "12345"])
def test_the_rows_are_the_same_in_every_process_and_version(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PRINT_DIGESTS]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(there.stdout) == DIGESTS


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_rows(kind: str) -> None:
    assert keys(generator(kind, seed=1).rows("test")) != keys(generator(kind, seed=0).rows("test"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_occurs_twice(kind: str) -> None:
    rows = generator(kind, train_rows=600, validation_rows=200, test_rows=200)
    every = [key for split in SPLITS for key in keys(rows.rows(split))]  # type: ignore[arg-type]
    assert len(set(every)) == len(every) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_split_only_gets_more_rows_and_changes_no_other_split(kind: str) -> None:
    small, larger = generator(kind), generator(kind, train_rows=90, test_rows=40)
    assert larger.rows("validation") == small.rows("validation")
    assert keys(larger.rows("train"))[:60] == keys(small.rows("train"))
    assert keys(larger.rows("test"))[:20] == keys(small.rows("test"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_reads_the_columns_of_its_generator(kind: str) -> None:
    rows = generator(kind)
    source = open_source(rows, Data(source=rows))
    (table,) = source.read("validation")
    assert table.columns == rows.rows("validation")
    assert (source.where, source.splits, table.where) == (
        f"generated {kind}",
        SPLITS,
        f"generated {kind}, split 'validation'",
    )


def test_the_folder_lists_its_files() -> None:
    folder = Path(str(generated.__file__)).parent
    for path in folder.glob("[!_]*.py"):
        assert f"`{path.stem}`" in str(generated.__doc__)


def test_an_annotator_is_right_more_often_where_the_answer_is_clear_and_always_with_infinite_sureness() -> None:
    draw = SMALL.random_of("train")

    def share(strength: float, sureness: float) -> float:
        return sum(is_right(draw, strength, sureness) for _ in range(4000)) / 4000

    assert 0.46 < share(0.0, 3.0) < 0.54
    assert 0.70 < share(1.0, 1.0) < 0.76
    assert share(0.1, float("inf")) == 1.0


@pytest.mark.parametrize("split", ["train", "validation"])
def test_both_labels_are_about_as_frequent(split: str) -> None:
    labels = SMALL.rows(split)["label"]
    assert set(labels) == set(LABELS)
    assert 0.45 < labels.count("positive") / len(labels) < 0.55


def test_the_true_labels_agree_with_the_words_and_their_negation() -> None:
    rows = SMALL.rows("validation")
    labels = dict(zip(rows["text"], rows["label"], strict=True))
    compared = 0
    for words, plain, negated in ((GOOD, "positive", "negative"), (BAD, "negative", "positive")):
        for thing in THINGS:
            for word in chain.from_iterable(words.values()):
                expected = {
                    f"{word} {thing} .": plain,
                    f"the {thing} is {word} .": plain,
                    f"the {thing} is not {word} .": negated,
                    f"i doubt that the {thing} is {word} .": negated,
                    f"the {thing} should be {word} .": negated,
                }
                for text in expected.keys() & labels.keys():
                    assert labels[text] == expected[text], text
                    compared += 1
    assert compared > 20


def test_a_less_sure_annotator_is_wrong_more_often() -> None:
    def error_rate(sureness: float) -> float:
        votes = SMALL.model_copy(update={"sureness": sureness}).rows("train")["label"]
        true_labels = SMALL.model_copy(update={"sureness": 1000.0}).rows("train")["label"]
        return sum(vote != label for vote, label in zip(votes, true_labels, strict=True)) / len(votes)

    assert 0.02 < error_rate(3.0) < error_rate(1.6) < error_rate(0.8) < 0.4


def test_the_tokenizer_has_every_word_and_is_the_same_after_saving(tmp_path: Path) -> None:
    _, tokenizer = TINY.create(SMALL.rows("train")["text"], LABELS, TextClassification(max_length=48), seed=0)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = SMALL.rows("validation")["text"]
    ids = loaded(texts)["input_ids"]
    assert ids == tokenizer(texts)["input_ids"]
    assert not any(loaded.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= 48
    assert loaded("Good plot", "a film")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_fresh_model_depends_on_its_seed_only_and_is_the_same_after_saving(tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        return (
            TINY.create(["a plot"], LABELS, TextClassification(max_length=16), seed)[0]
            .bert.encoder.layer[1]
            .output.dense.weight
        )

    state = torch.random.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.random.get_rng_state(), state)
    model, _ = TINY.create(["a plot"], LABELS, TextClassification(max_length=16), seed=3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_a_number_of_heads_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(SpecError, match="width"):
        FreshTransformer(width=64, heads=5)
