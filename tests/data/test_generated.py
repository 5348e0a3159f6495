"""Generated reviews are the same everywhere, honest about their labels, and learnt by the Transformer made for them."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdray.data.generated import BAD, GOOD, LABELS, THINGS, GeneratedReviews
from kdray.errors import SpecError
from kdray.models.fresh import FreshTransformer

SMALL = GeneratedReviews(train_rows=3000, validation_rows=2000, test_rows=300)
TINY = FreshTransformer(layers=2, width=16, heads=2, feed_forward=32)

DIGEST = """
import zlib
from kdray.data.generated import GeneratedReviews
print(zlib.crc32(repr(GeneratedReviews(train_rows=50).rows("train")).encode()))
"""


def test_another_process_makes_the_same_rows() -> None:
    here = zlib.crc32(repr(GeneratedReviews(train_rows=50).rows("train")).encode())
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", DIGEST]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert int(there.stdout) == here


def test_another_seed_makes_other_rows() -> None:
    assert GeneratedReviews(seed=1, test_rows=20).rows("test") != GeneratedReviews(seed=0, test_rows=20).rows("test")


def test_no_sentence_stands_twice_or_in_two_splits() -> None:
    texts = [text for split in ("train", "validation", "test") for text in SMALL.rows(split)["text"]]
    assert len(texts) == 3000 + 2000 + 300
    assert len(set(texts)) == len(texts)


def test_the_size_of_a_split_changes_no_other_and_only_adds_sentences() -> None:
    larger = SMALL.model_copy(update={"train_rows": 4000, "test_rows": 400})
    assert larger.rows("validation") == SMALL.rows("validation")
    assert larger.rows("test")["text"][:300] == SMALL.rows("test")["text"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_both_labels_are_about_as_frequent(split: str) -> None:
    labels = SMALL.rows(split)["label"]
    assert set(labels) == set(LABELS)
    assert 0.45 < labels.count("positive") / len(labels) < 0.55


def test_the_true_labels_follow_the_words_and_their_negation() -> None:
    rows = SMALL.rows("validation")
    label = dict(zip(rows["text"], rows["label"], strict=True))
    seen = 0
    for words, plain, turned in ((GOOD, "positive", "negative"), (BAD, "negative", "positive")):
        for thing in THINGS:
            for word in (word for group in words.values() for word in group):
                told = {f"the {thing} is {word} .": plain, f"the {thing} is not {word} .": turned}
                told |= {f"{word} {thing} .": plain, f"i doubt that the {thing} is {word} .": turned}
                told |= {f"the {thing} should be {word} .": turned}
                for text in told.keys() & label.keys():
                    assert label[text] == told[text], text
                    seen += 1
    assert seen > 20


def test_an_annotator_errs_more_often_the_less_sure() -> None:
    def wrong(sureness: float) -> float:
        votes = SMALL.model_copy(update={"sureness": sureness}).rows("train")["label"]
        truth = SMALL.model_copy(update={"sureness": 1000.0}).rows("train")["label"]
        return sum(vote != true for vote, true in zip(votes, truth, strict=True)) / len(votes)

    assert 0.02 < wrong(3.0) < wrong(1.6) < wrong(0.8) < 0.4


def test_the_tokenizer_knows_every_word_and_loads_from_a_folder(tmp_path: Path) -> None:
    _, tokenizer = TINY.create(SMALL.rows("train")["text"], LABELS, 48, seed=0)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = SMALL.rows("validation")["text"]
    ids = loaded(texts)["input_ids"]
    assert ids == tokenizer(texts)["input_ids"]
    assert not any(loaded.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= 48
    assert loaded("Good plot", "a film")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_fresh_model_depends_on_its_seed_alone_and_loads_from_a_folder(tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        return TINY.create(["a plot"], LABELS, 16, seed)[0].bert.encoder.layer[1].output.dense.weight

    before = torch.random.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.random.get_rng_state(), before)
    model, _ = TINY.create(["a plot"], LABELS, 16, seed=3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SpecError, match="width"):
        FreshTransformer(width=64, heads=5)
