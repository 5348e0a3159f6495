"""Causal language models: each token of a document but the first one is an answer, in exactly one block."""

import copy
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from kdray.data.rows import Rows
from kdray.data.splits import Data, load_splits
from kdray.data.task_data import Encoded
from kdray.data.tokens import tokenise
from kdray.errors import SpecError
from kdray.models.pretrained import Head, import_model, save_model
from kdray.storage.paths import StoragePaths
from kdray.tasks.causal_lm import CausalLM, blocks_of
from tests.tasks.language_tokenizers import CAUSAL, load

BLOCK = 12
SENTENCE = "the playing player plays a play"
TEXTS = ["a", "the player plays", *(" ".join([SENTENCE] * count) for count in (2, 5, 9)), "\u200b"]


@pytest.fixture(scope="module", params=CAUSAL)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(request.param, tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load("gpt2", tmp_path_factory.mktemp("tokenizers"))


def blocks(encoded: Encoded, row: int) -> list[tuple[list[int], list[int], list[int]]]:
    """The input, the places and the gold of each block of a document."""
    lists = (encoded.inputs["input_ids"], encoded.places or (), encoded.gold or (), encoded.rows or ())
    return [
        (list(ids), list(places), list(gold)) for ids, places, gold, of_row in zip(*lists, strict=True) if of_row == row
    ]


def test_each_token_but_the_first_is_an_answer_once(tokenizer: Any) -> None:
    encoded = CausalLM(block=BLOCK).encode(tokenizer, {"text": TEXTS}, for_training=True)
    assert encoded.inputs.keys() == {"input_ids"}
    assert encoded == CausalLM(block=BLOCK).encode(tokenizer, {"text": TEXTS})
    for row, text in enumerate(TEXTS):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            ids = [tokenizer.bos_token_id, *ids]
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
        of_text = blocks(encoded, row)
        assert [token for _, _, gold in of_text for token in gold] == ids[1:]
        for block, places, gold in of_text:
            assert 1 <= len(block) <= BLOCK
            # The token at a place is followed by its answer.
            assert places == [*range(len(block) - 1)]
            assert gold == block[1:]
        if ids:
            assert of_text[0][0][0] == ids[0]
            assert all(before[0][-1] == block[0][0] for before, block in pairwise(of_text))
        else:
            # A model reads at least one token, which is no answer.
            assert [(len(block), places) for block, places, _ in of_text] == [(1, [])]


@pytest.mark.parametrize(("tokens", "sizes"), [(1, [1]), (2, [2]), (BLOCK, [BLOCK]), (BLOCK + 1, [BLOCK, 2])])
def test_documents_of_about_a_block(tokens: int, sizes: list[int]) -> None:
    assert [len(block) for block in blocks_of(range(tokens), BLOCK, overlap=1)] == sizes


@given(st.integers(0, 100), st.integers(2, 20), st.integers(0, 1))
def test_blocks_hold_each_token_once_besides_the_overlap(tokens: int, room: int, overlap: int) -> None:
    cut = blocks_of(range(tokens), room, overlap)
    assert [*cut[0], *(token for block in cut[1:] for token in block[overlap:])] == [*range(tokens)]
    assert all(len(block) <= room for block in cut)
    assert all(len(block) == room for block in cut[:-1])
    assert len(cut) == 1 or len(cut[-1]) > overlap


def test_a_long_document_is_cut_without_a_warning(gpt2: Any, caplog: pytest.LogCaptureFixture) -> None:
    text = " ".join(random.Random(0).choices(["the", "playing", "player"], k=20_000))
    assert len(CausalLM(block=64).encode(gpt2, {"text": [text]}).places or ()) > 300
    assert not caplog.records


def test_a_block_that_the_model_cannot_read_is_refused(gpt2: Any) -> None:
    with pytest.raises(SpecError, match=r"task\.block: got 128; this model takes at most 64 tokens"):
        CausalLM(block=128).encode(gpt2, {"text": ["a"]})


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 32}


@pytest.mark.parametrize("config_class", [GPT2Config, LlamaConfig])
def test_a_block_beyond_the_positions_of_a_model_is_refused(
    config_class: type[PreTrainedConfig], gpt2: Any, tmp_path: Path
) -> None:
    """The tokenizer does not know the maximum length, so a long block would end in an index error of GPT-2.

    Llama has no table of positions: it would read the block, but was never trained on as many.
    """
    folder, tokenizer = tmp_path / "model", copy.deepcopy(gpt2)
    tokenizer.model_max_length, tokenizer.pad_token = int(1e30), tokenizer.eos_token
    config = config_class(vocab_size=len(gpt2), intermediate_size=8, pad_token_id=0, **SIZES)
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder)
    with pytest.raises(SpecError, match=r"task\.block: got 33; the model of .* takes at most 32 tokens"):
        import_model(folder, CausalLM(block=33), Head(()), StoragePaths(tmp_path / "storage"), 0)
    import_model(folder, CausalLM(block=32), Head(()), StoragePaths(tmp_path / "storage"), 0)


def test_a_token_set_is_read_back_as_it_was_written(gpt2: Any, tmp_path: Path) -> None:
    for split, lines in (("train", 30), ("validation", 5), ("test", 5)):
        rows = [f'{{"text": "{split} {number} {TEXTS[number % 5]}"}}\n' for number in range(lines)]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    task = CausalLM(block=BLOCK, top_k=7)
    splits = load_splits(Data(source=str(tmp_path)), task)
    made, cached = (tokenise(splits, task, gpt2, StoragePaths(tmp_path / "storage")) for _ in range(2))
    assert cached == made
    assert cached.layout.top_k == 7
    assert cached.stored_splits == ("train", "validation", "test")
    rows = cached.rows("train")
    assert type(rows) is Rows
    assert len({*rows.ids.tolist()}) == 30
    assert cached.epoch_rows() == len(rows) > 30
