"""Generated reviews: the same rows in every process, correct labels, and a fresh Transformer that can read them."""

import os
import subprocess
import sys
import zlib
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdray.data.generated import BAD, GOOD, LABELS, THINGS, GeneratedReviews
from kdray.errors import SpecError
from kdray.models.fresh import FreshTransformer

SMALL = GeneratedReviews(train_rows=3000, validation_rows=2000, test_rows=300)
TINY = FreshTransformer(layers=2, width=16, heads=2, feed_forward=32)

PRINT_DIGEST = """
import zlib
from kdray.data.generated import GeneratedReviews
print(zlib.crc32(repr(GeneratedReviews(train_rows=50).rows("train")).encode()))
"""


def test_another_process_generates_the_same_rows() -> None:
    here = zlib.crc32(repr(GeneratedReviews(train_rows=50).rows("train")).encode())
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", PRINT_DIGEST]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert int(there.stdout) == here


def test_another_seed_gives_other_rows() -> None:
    assert GeneratedReviews(seed=1, test_rows=20).rows("test") != GeneratedReviews(seed=0, test_rows=20).rows("test")


def test_no_sentence_occurs_twice() -> None:
    texts = [text for split in ("train", "validation", "test") for text in SMALL.rows(split)["text"]]
    assert len(texts) == 3000 + 2000 + 300
    assert len(set(texts)) == len(texts)


def test_a_larger_split_only_gets_more_sentences_and_changes_no_other_split() -> None:
    larger = SMALL.model_copy(update={"train_rows": 4000, "test_rows": 400})
    assert larger.rows("validation") == SMALL.rows("validation")
    assert larger.rows("test")["text"][:300] == SMALL.rows("test")["text"]


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
    _, tokenizer = TINY.create(SMALL.rows("train")["text"], LABELS, 48, seed=0)
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
        return TINY.create(["a plot"], LABELS, 16, seed)[0].bert.encoder.layer[1].output.dense.weight

    state = torch.random.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.random.get_rng_state(), state)
    model, _ = TINY.create(["a plot"], LABELS, 16, seed=3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_a_number_of_heads_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(SpecError, match="width"):
        FreshTransformer(width=64, heads=5)
