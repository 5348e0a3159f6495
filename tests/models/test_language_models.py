"""Language models as folders: their heads, their direction, their padding, and those from scratch."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, GPT2Model, LlamaModel

from kdray.errors import TeacherError
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Head, Pretrained, find_model, import_model
from kdray.storage.paths import StoragePaths
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.language_model import LanguageModel
from kdray.tasks.masked_lm import MaskedLM
from tests.models.families import IDS, logits
from tests.models.language_models import CAUSAL, LANGUAGE_FAMILIES, language_config, language_model, save_language_model

TRAINED = Head((), must_be_trained=True)
TEXTS = ["The cat sat on the mat.", "A dog sat, too."]


def task_of(family: str) -> LanguageModel:
    return CausalLM(block=16) if family in CAUSAL else MaskedLM(block=16)


def load(folder: str, task: LanguageModel, storage: Path, head: Head = TRAINED) -> Pretrained:
    return import_model(find_model(folder, None, "teacher.model"), task, head, StoragePaths(storage), 0)


@pytest.mark.parametrize("family", LANGUAGE_FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_with_a_trained_head_is_imported_as_it_is(family: str, tied: bool, tmp_path: Path) -> None:
    model = language_model(family, tied)
    imported = load(save_language_model(model, tmp_path / "model"), task_of(family), tmp_path).model()
    assert torch.equal(logits(imported), logits(model))


@pytest.mark.parametrize(("base", "family"), [(BertModel, "bert"), (LlamaModel, "llama")])
def test_a_missing_head_is_drawn_if_it_is_trained_and_refused_otherwise(
    base: type, family: str, tmp_path: Path
) -> None:
    folder = save_language_model(base(language_config(family, tied=False)), tmp_path / "base")
    with pytest.raises(TeacherError, match=r"no trained head for (masked|causal) language modelling with a vocabulary"):
        load(folder, task_of(family), tmp_path)
    drawn = [load(folder, task_of(family), tmp_path, Head(())).model() for _ in range(2)]
    assert torch.equal(logits(drawn[0]), logits(drawn[1]))


def test_a_base_model_whose_head_is_its_embeddings_needs_no_other_one(tmp_path: Path) -> None:
    model = language_model("gpt2")
    assert isinstance(model.transformer, GPT2Model)
    imported = load(save_language_model(model.transformer, tmp_path / "base"), CausalLM(block=16), tmp_path)
    assert torch.equal(logits(imported.model()), logits(model))


def test_families_of_the_other_direction_are_refused(tmp_path: Path) -> None:
    gpt2 = save_language_model(language_model("gpt2"), tmp_path / "gpt2")
    with pytest.raises(TeacherError, match=r"no head for masked language modelling for a gpt2 .* task\.kind=causal_lm"):
        load(gpt2, MaskedLM(block=16), tmp_path)
    bert = save_language_model(language_model("bert"), tmp_path / "bert")
    with pytest.raises(TeacherError, match=r"a bert model reads a text in both directions.* set task\.kind=masked_lm"):
        load(bert, CausalLM(block=16), tmp_path)
    albert = save_language_model(language_model("albert"), tmp_path / "albert")
    with pytest.raises(TeacherError, match=r"no head for causal language modelling for a albert model"):
        load(albert, CausalLM(block=16), tmp_path)


def without_padding_token(folder: Path) -> str:
    model = language_model("llama", pad_token_id=None)
    save_language_model(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_end_token_is_used_as_padding_where_a_causal_tokenizer_has_none(tmp_path: Path) -> None:
    imported = load(without_padding_token(tmp_path / "model"), CausalLM(block=16), tmp_path)
    tokenizer, model = imported.tokenizer(), imported.model()
    assert tokenizer.pad_token == tokenizer.eos_token
    # Its embedding is trained: it is not the padding of the model.
    assert model.get_input_embeddings().padding_idx is None
    short, padded = tokenizer(["w1 w2"]), tokenizer(["w1 w2", "w3 w4 w5 w6"], padding=True)
    alone, together = (
        model(input_ids=torch.tensor(each["input_ids"]), attention_mask=torch.tensor(each["attention_mask"])).logits
        for each in (short, padded)
    )
    assert torch.allclose(alone[0], together[0, :2], atol=1e-5)


def test_a_masked_model_from_scratch(tmp_path: Path) -> None:
    task = MaskedLM(block=12)
    model, tokenizer = FreshTransformer(layers=1, width=16, heads=2, vocabulary=16).create(TEXTS, (), task, seed=0)
    assert type(model).__name__ == "BertForMaskedLM"
    assert tokenizer.tokenize("The CAT sat.") == ["the", "cat", "sat", "."]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a cat")["input_ids"]) == ["[CLS]", "a", "cat", "[SEP]"]
    assert model(input_ids=torch.tensor([[2, 4, 3]])).logits.shape == (1, 3, len(tokenizer))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_causal_model_from_scratch_continues_a_prompt(tmp_path: Path) -> None:
    fresh = FreshTransformer(layers=1, width=16, heads=2, vocabulary=16, dropout=0.25)
    state = torch.get_rng_state()
    model, tokenizer = fresh.create(TEXTS, (), CausalLM(block=12), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.model_type == "gpt2"
    assert {model.config.n_positions, model.config.resid_pdrop, model.config.n_inner} == {12, 0.25, 128}
    # Nothing behind a prompt, so that the next token is that of the text.
    assert tokenizer.convert_ids_to_tokens(tokenizer("The cat")["input_ids"]) == ["the", "cat"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.mask_token) == ("[CLS]", "[SEP]", None)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded.eval(), IDS % 10), logits(model.eval(), IDS % 10))
    again, _ = fresh.create(TEXTS, (), CausalLM(block=12), seed=0)
    assert torch.equal(logits(again.eval(), IDS % 10), logits(model, IDS % 10))
    prompt = tokenizer("the cat", return_tensors="pt")
    longer = loaded.generate(**prompt, max_new_tokens=3, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert longer[0, :2].tolist() == prompt["input_ids"][0].tolist()
