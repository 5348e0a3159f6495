"""Masked language models: documents become blocks, blocks are masked, and token sets are cached."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdray.data.masked_rows import MaskedRows
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.task_data import Encoded
from kdray.data.tokens import TokenSet, tokenise
from kdray.errors import DataError, SpecError, TeacherError
from kdray.storage.paths import StoragePaths
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.windows import frame_of
from tests.tasks.language_tokenizers import MASKED, load

WORDS = ["the", "playing", "player", "plays", "a", "play", "don't", "in", "New", "York", "3.14", "naïve", "players,"]
BLOCK = 16


def text_of(words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


TEXTS = [*(text_of(words, words) for words in (1, 2, 5, 11, 30, 90)), "\u200b", "a"]


@pytest.fixture(scope="module", params=MASKED)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(request.param, tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load("roberta", tmp_path_factory.mktemp("tokenizers"))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answers_of(encoded: Encoded, row: int) -> list[tuple[list[int], list[int], list[int]]]:
    """The input, the places and the gold of each block of a document."""
    assert encoded.rows is not None
    assert encoded.places is not None
    assert encoded.gold is not None
    return [
        (list(ids), list(places), list(gold))
        for ids, places, gold, of_row in zip(
            encoded.inputs["input_ids"], encoded.places, encoded.gold, encoded.rows, strict=True
        )
        if of_row == row
    ]


@pytest.mark.parametrize("whole_words", [False, True])
def test_every_token_of_a_document_is_in_one_block_of_it(tokenizer: Any, whole_words: bool) -> None:
    encoded = MaskedLM(block=BLOCK, whole_words=whole_words).encode(tokenizer, {"text": TEXTS}, for_training=True)
    frame = frame_of(tokenizer)
    assert encoded.rows == sorted(encoded.rows or ())
    for row, text in enumerate(TEXTS):
        blocks = answers_of(encoded, row)
        ids = ids_of(tokenizer, text)
        assert [token for _, _, gold in blocks for token in gold] == ids
        assert len(blocks) == max(1, -(-len(ids) // (BLOCK - frame.size)))
        for block, places, gold in blocks:
            assert 1 <= len(block) <= BLOCK
            assert places == [*range(len(frame.before), len(frame.before) + len(gold))]
            if ids:
                assert block == [*frame.before, *gold, *frame.behind]
    has_types = "token_type_ids" in tokenizer.model_input_names
    assert encoded.inputs.keys() == {"input_ids"} | ({"token_type_ids"} if has_types else set())
    assert all(
        [len(row) for row in lists] == [*map(len, encoded.inputs["input_ids"])] for lists in encoded.inputs.values()
    )


def test_blocks_have_the_special_tokens_and_types_of_a_text(tokenizer: Any) -> None:
    encoded = MaskedLM(block=BLOCK).encode(tokenizer, {"text": ["the player"]}, for_training=True)
    whole = tokenizer("the player")
    for name, (values,) in encoded.inputs.items():
        assert list(values) == whole[name]


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_documents_of_about_a_block(roberta: Any, more: int) -> None:
    room = BLOCK - 2
    token = ids_of(roberta, "play")
    text = "".join(["play"] * ((room + more) // len(token)))
    words = [text, "".join([*[text], " a" * (room + more - len(ids_of(roberta, text)))])]
    ids = ids_of(roberta, words[1])
    assert len(ids) == room + more
    encoded = MaskedLM(block=BLOCK).encode(roberta, {"text": [words[1]]}, for_training=True)
    sizes = [len(gold) for _, _, gold in answers_of(encoded, 0)]
    assert sizes == ([room, 1] if more == 1 else [room + more])


def test_stored_masks_change_the_answers_alone_and_restore_the_text(tokenizer: Any) -> None:
    task, whole = MaskedLM(block=BLOCK, mask_share=0.3), MaskedLM(block=BLOCK)
    stored = task.encode(tokenizer, {"text": TEXTS})
    full = whole.encode(tokenizer, {"text": TEXTS}, for_training=True)
    assert stored.rows == full.rows
    changed = 0
    for row in range(len(TEXTS)):
        for (block, places, gold), (ids, all_places, _) in zip(
            answers_of(stored, row), answers_of(full, row), strict=True
        ):
            count = len(all_places)
            assert len(places) == min(count, max(1, round(0.3 * count)))
            assert {*places} <= {*all_places}
            restored = list(block)
            for place, token in zip(places, gold, strict=True):
                restored[place] = token
            assert restored == ids
            changed += block != ids
    assert changed > 10


def test_stored_masks_depend_on_the_document_alone(tokenizer: Any) -> None:
    task = MaskedLM(block=BLOCK)
    together, again = (task.encode(tokenizer, {"text": TEXTS}) for _ in range(2))
    assert together == again
    for row, text in enumerate(TEXTS):
        assert answers_of(task.encode(tokenizer, {"text": [text]}), 0) == answers_of(together, row)


def test_several_maskings_are_different_and_follow_each_other(roberta: Any) -> None:
    task = MaskedLM(block=BLOCK, maskings=3)
    text = text_of(60)
    assert [len(answers_of(task.encode(roberta, {"text": [text]}, train), 0)) for train in (True, False)] == [
        3 * len(answers_of(task.encode(roberta, {"text": [text]}), 0)),
        len(answers_of(task.encode(roberta, {"text": [text]}), 0)),
    ]
    blocks = answers_of(task.encode(roberta, {"text": [text]}, for_training=True), 0)
    for first in range(0, len(blocks) - 3, 3):
        assert len({tuple(places) for _, places, _ in blocks[first : first + 3]}) > 1
    # Fewer maskings are the first ones of more.
    fewer = answers_of(MaskedLM(block=BLOCK, maskings=2).encode(roberta, {"text": [text]}, for_training=True), 0)
    assert fewer == [block for number, block in enumerate(blocks) if number % 3 < 2]


def test_whole_words_are_masked_together(tokenizer: Any) -> None:
    task = MaskedLM(block=64, mask_share=0.3, whole_words=True)
    texts = [text_of(20, seed) for seed in range(20)]
    encoded = task.encode(tokenizer, {"text": texts})
    before = len(frame_of(tokenizer).before)
    several = 0
    for row, text in enumerate(texts):
        words = tokenizer(text, add_special_tokens=False).word_ids()
        start = 0
        for _, places, _ in answers_of(encoded, row):
            room = 64 - frame_of(tokenizer).size
            of_block = words[start : start + room]
            masked = {place - before for place in places}
            for word in {*of_block}:
                tokens = {place for place, each in enumerate(of_block) if each == word}
                assert tokens <= masked or not tokens & masked
                several += len(tokens) > 1 and tokens <= masked
            start += room
    assert several > 5


def test_special_tokens_in_a_text_are_never_answers(roberta: Any) -> None:
    text = "the player<mask> plays</s> a play"
    for train, share in ((True, 0.15), (False, 0.99)):
        ((block, _, gold),) = answers_of(
            MaskedLM(block=64, mask_share=share).encode(roberta, {"text": [text]}, train), 0
        )
        assert roberta.eos_token_id in block[1:-1]
        assert not {*gold} & {roberta.mask_token_id, roberta.eos_token_id, roberta.bos_token_id}
        assert len(gold) == len(ids_of(roberta, text)) - 2


def test_a_long_document_is_cut_without_a_warning(roberta: Any, caplog: pytest.LogCaptureFixture) -> None:
    encoded = MaskedLM(block=64).encode(roberta, {"text": [text_of(20_000)]})
    assert len(encoded.places or ()) > 300
    assert not caplog.records


def without_words() -> Any:
    """As of Llama: no pre-tokenizer; spaces are replaced by a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<mask>"], max_token_length=4)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>")


def test_a_tokenizer_that_the_task_cannot_use_is_refused(roberta: Any, tmp_path: Path) -> None:
    text = {"text": ["a play"]}
    with pytest.raises(SpecError, match=r"task\.kind: got masked_lm, but .* no mask token\. .* task\.kind=causal_lm"):
        MaskedLM(block=BLOCK).encode(load("gpt2", tmp_path), text)
    with pytest.raises(SpecError, match=r"task\.block: got 128; this model takes at most 64 tokens"):
        MaskedLM(block=128).encode(load("bert", tmp_path), text)
    with pytest.raises(TeacherError, match=r"SimpleNamespace, does not say which tokens are special.*tokenizer\.json"):
        MaskedLM(block=BLOCK).encode(SimpleNamespace(is_fast=False), text)
    with pytest.raises(SpecError, match=r"task\.whole_words: .* does not divide a text into words"):
        MaskedLM(block=BLOCK, whole_words=True).encode(without_words(), text)
    MaskedLM(block=BLOCK).encode(without_words(), text)


def test_a_block_with_no_room_for_text_is_refused(tmp_path: Path) -> None:
    tokenizer = load("bert", tmp_path)
    special = [("[CLS]", tokenizer.convert_tokens_to_ids("[CLS]"))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(["[CLS]"] * 8) + " $A", special_tokens=special
    )
    with pytest.raises(SpecError, match=r"task\.block: got 8; this model adds 8 tokens to each block\. .* at least 9"):
        MaskedLM(block=8).encode(tokenizer, {"text": ["a play"]})
    assert len(answers_of(MaskedLM(block=9).encode(tokenizer, {"text": ["a play"]}), 0)) > 1


# Token sets


def splits_of(folder: Path, task: MaskedLM) -> Splits:
    folder.mkdir(exist_ok=True)
    for number, (split, count) in enumerate((("train", 20), ("validation", 6), ("test", 6))):
        rows = [{"text": text_of(3 + 5 * (row % 9), 100 * number + row)} for row in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(Data(source=str(folder)), task)


def tokens_of(task: MaskedLM, tokenizer: Any, folder: Path) -> TokenSet:
    return tokenise(splits_of(folder / "data", task), task, tokenizer, StoragePaths(folder / "storage"))


def test_a_split_without_any_answer_is_refused(tmp_path: Path) -> None:
    """Its perplexity would be 1, the best there is."""
    task, tokenizer = MaskedLM(block=BLOCK), load("bert", tmp_path / "tokenizer")
    splits_of(tmp_path / "data", task)
    (tmp_path / "data" / "test.jsonl").write_text('{"text": "\\u0300"}\n{"text": "\\u0301"}\n')
    splits = load_splits(Data(source=str(tmp_path / "data")), task)
    with pytest.raises(DataError, match="test: none of its 2 texts has a token to answer"):
        tokenise(splits, task, tokenizer, StoragePaths(tmp_path / "storage"))


@pytest.mark.parametrize("settings", [{}, {"whole_words": True}, {"maskings": 3, "whole_words": True}], ids=str)
def test_a_token_set_is_read_back_as_it_was_written(settings: dict[str, Any], roberta: Any, tmp_path: Path) -> None:
    task = MaskedLM(block=BLOCK, **settings)
    made = tokens_of(task, roberta, tmp_path)
    written = (made.folder / "train.arrow").stat().st_mtime_ns
    cached = tokens_of(task, roberta, tmp_path)
    assert cached == made
    assert (made.folder / "train.arrow").stat().st_mtime_ns == written
    is_anew = task.maskings is None
    assert isinstance(cached.rows("train"), MaskedRows) is is_anew
    assert cached.is_masked_anew("train") is is_anew
    assert not cached.is_masked_anew("validation")
    assert cached.layout.repeats == (task.maskings or 1)
    assert cached.epoch_rows() * cached.layout.repeats == cached.texts() == len(cached.rows("train"))
    for split in ("train", "validation", "test"):
        one, other = (tokens.rows(split).batch(np.arange(5)) for tokens in (made, cached))
        assert one.inputs["input_ids"].tolist() == other.inputs["input_ids"].tolist()
        assert one.gold.tolist() == other.gold.tolist()
        assert one.top_k == task.top_k


def test_a_damaged_set_is_made_again(roberta: Any, tmp_path: Path) -> None:
    task = MaskedLM(block=BLOCK)
    made = tokens_of(task, roberta, tmp_path)
    meta = made.folder / "meta.json"
    good = json.loads(meta.read_text())
    for damaged in (
        "{",
        json.dumps({**good, "task": {**good["task"], "masking": {"share": 0.15}}}),
        json.dumps({**good, "task": {**good["task"], "other": 1}}),
        json.dumps({**good, "task": 3}),
    ):
        meta.write_text(damaged)
        assert tokens_of(task, roberta, tmp_path) == made
        assert json.loads(meta.read_text()) == good


def test_what_changes_the_masks_changes_the_key(roberta: Any, tmp_path: Path) -> None:
    tasks = [
        MaskedLM(block=BLOCK),
        MaskedLM(block=BLOCK + 1),
        MaskedLM(block=BLOCK, top_k=8),
        MaskedLM(block=BLOCK, mask_share=0.2),
        MaskedLM(block=BLOCK, whole_words=True),
        MaskedLM(block=BLOCK, maskings=1),
    ]
    assert len({tokens_of(task, roberta, tmp_path).key for task in tasks}) == len(tasks)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 4}, "top_k"),
        ({"block": 7}, "block"),
        ({"mask_share": 0}, "mask_share"),
        ({"mask_share": 1}, "mask_share"),
        ({"maskings": 0}, "maskings"),
        ({"pair": "other"}, "reads single texts"),
        ({"max_length": 64}, "max_length"),
    ],
    ids=str,
)
def test_settings_outside_their_limits_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLM(**setting)
