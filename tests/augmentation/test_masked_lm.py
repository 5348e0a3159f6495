"""A masked language model is checked like any model; words are replaced by the ones that it expects."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForSequenceClassification

from kdray.augmentation import masked_lm as module
from kdray.augmentation.masked_lm import MOST_PROBABLE
from kdray.augmentation.masked_model import import_masked_lm, load_masked_lm
from kdray.augmentation.texts import words_of
from kdray.data.words import Words
from kdray.errors import TeacherError
from kdray.models.pretrained import Pretrained
from kdray.storage.paths import StoragePaths
from tests.augmentation.tiny import TEXTS, WORDS, make_way, random_of, save_tiny

SENTENCE = ["the", "film", "is", "good", "and", "the", "plot", "was", "warm", "with", "a", "witty", "cast"]


@pytest.fixture
def folder(tiny_masked_lm: Pretrained, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(tiny_masked_lm.folder, tmp_path / "model"))


def change(model: Pretrained, texts: list[Words], share: float | None = None, seed: int = 0) -> list[Any]:
    way = make_way("masked_lm", model, model, share)
    return way.change(texts, [random_of((seed, number)) for number in range(len(texts))])


def most_probable(model: Pretrained, words: list[str], masked: list[int]) -> list[list[str]]:
    """The most probable words in the places of these words, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    text = " ".join("[MASK]" if place in masked else word for place, word in enumerate(words))
    inputs = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        logits_LxV = AutoModelForMaskedLM.from_pretrained(model.folder).eval()(**inputs).logits[0]
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    found = []
    for place, number in zip(places, masked, strict=True):
        order = tokenizer.convert_ids_to_tokens(logits_LxV[place].argsort(descending=True).tolist())
        found.append([word for word in order if word in WORDS and word != words[number]][:MOST_PROBABLE])
    return found


def test_words_are_replaced_by_the_most_probable_words(tiny_masked_lm: Pretrained) -> None:
    seen = set[str]()
    for seed in range(20):
        (new,) = change(tiny_masked_lm, [Words.of_list(SENTENCE)], seed=seed)
        changed = [place for place, word in enumerate(SENTENCE) if new[place] != word]
        assert changed
        for place, expected in zip(changed, most_probable(tiny_masked_lm, SENTENCE, changed), strict=True):
            assert new[place] in expected
            seen.add(new[place])
    assert len(seen) > 5


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_change_nothing(tiny_masked_lm: Pretrained, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [words_of(text) for text in TEXTS * 3]
    expected = change(tiny_masked_lm, texts)
    monkeypatch.setattr(module, "BATCH_SIZE", size)
    assert change(tiny_masked_lm, texts) == expected


def test_a_model_that_computes_its_head_otherwise_gives_the_same_words(
    tiny_masked_lm: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [words_of(text) for text in TEXTS]
    expected = change(tiny_masked_lm, texts)
    monkeypatch.setattr("transformers.BertForMaskedLM.get_output_embeddings", lambda self: None)
    assert change(tiny_masked_lm, texts) == expected


def test_words_far_behind_in_a_long_text_change_too(tiny_masked_lm: Pretrained) -> None:
    words = WORDS[:24] * 10
    # The model has 64 positions.
    (new,) = change(tiny_masked_lm, [Words.of_list(words)])
    changed = [place for place, word in enumerate(words) if new[place] != word]
    assert min(changed) < 40
    assert max(changed) > 200
    assert 15 < len(changed) < 60


def test_words_that_the_model_does_not_read_stay(tiny_masked_lm: Pretrained) -> None:
    long_word = "film " * 100
    (new,) = change(tiny_masked_lm, [Words.of_list(["a", long_word, "film"])], share=1)
    assert new[:2] != ["a", long_word]
    (new,) = change(tiny_masked_lm, [Words.of_list(["7 " * 100, "film"])])
    assert new == ["7 " * 100, "film"]


def test_a_text_with_the_mask_token_in_it_is_read_right(tiny_masked_lm: Pretrained) -> None:
    words = ["[MASK]", "the", "[MASK]", "film", "7", "..."]
    (new,) = change(tiny_masked_lm, [Words.of_list(words)], share=1)
    assert new[1] != "the"
    assert new[3] != "film"
    assert new[4:] == ["7", "..."]


def test_a_model_is_copied_into_the_cache_once(folder: Path, tmp_path: Path) -> None:
    paths = StoragePaths(tmp_path / "storage")
    imported = import_masked_lm(str(folder), None, paths)
    shutil.rmtree(folder)
    assert imported.folder == paths.model(imported.key)
    assert not load_masked_lm(imported, "cpu").training
    assert imported.tokenizer().mask_token == "[MASK]"


def refusal(folder: Path, tmp_path: Path) -> str:
    with pytest.raises(TeacherError) as caught:
        import_masked_lm(str(folder), None, StoragePaths(tmp_path / "storage"))
    message = str(caught.value)
    assert message.startswith(f"augmentation.model {folder}: ")
    assert "\n" not in message
    return message


def test_a_model_without_a_head_for_masked_words_is_refused(tmp_path: Path) -> None:
    message = refusal(save_tiny(tmp_path / "model", BertForSequenceClassification), tmp_path)
    assert "no trained head for masked words (cls.predictions" in message
    assert "bert-base-cased" in message


def test_a_family_without_a_masked_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "transformers cannot load it as a masked language model" in refusal(folder, tmp_path)


def test_a_tokenizer_without_a_mask_token_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            config.pop("mask_token", None)
            (folder / name).write_text(json.dumps(config))
    assert "its tokenizer has no mask token, so words cannot be masked" in refusal(folder, tmp_path)


def test_weights_that_can_run_code_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(AutoModelForMaskedLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "only pickled weights (pytorch_model.bin)" in refusal(folder, tmp_path)


def test_a_model_with_code_of_its_own_is_refused_also_in_the_cache(folder: Path, tmp_path: Path) -> None:
    stored = import_masked_lm(str(folder), None, StoragePaths(tmp_path / "storage"))
    for place in (folder, stored.folder):
        config = json.loads((place / "config.json").read_text())
        config["auto_map"] = {"AutoModelForMaskedLM": "code.Model"}
        (place / "config.json").write_text(json.dumps(config))
    assert "brings Python code of its own" in refusal(folder, tmp_path)
    with pytest.raises(TeacherError, match="brings Python code of its own"):
        load_masked_lm(stored, "cpu")


def test_a_config_of_a_far_larger_model_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 90_000_000}))
    with pytest.raises(TeacherError, match=r"config\.json describes a model of"):
        import_masked_lm(str(folder), None, StoragePaths(tmp_path / "storage"))
