"""A source with fewer pieces answers as the source does for texts of these pieces, and plain transformers loads it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from kdray.data.copies import WithCopies
from kdray.data.splits import Splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import Head, Pretrained, import_model, save_model
from kdray.storage.paths import StoragePaths
from kdray.students import cut_vocabulary
from kdray.students.cut_vocabulary import KeptPieces, MostUsedPieces
from kdray.tasks.text_classification import TextClassification
from tests.models.families import LABELS, save_tiny
from tests.models.families import logits as family_logits
from tests.vocabulary.tiny_tokenizers import TEXTS, bert_tokenizer, roberta_tokenizer, xlm_roberta_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
    "num_labels": 2,
    "initializer_range": 0.5,
}
FAMILIES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "bert": (BertConfig, bert_tokenizer),
    "roberta": (RobertaConfig, roberta_tokenizer),
    "xlm-roberta": (XLMRobertaConfig, xlm_roberta_tokenizer),
}
TASK = TextClassification(max_length=48)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def save_source(tmp_path: Path, splits: Splits) -> Callable[[str], Pretrained]:
    """A function that saves a tiny model of a family, with a tokenizer made of the data's texts and others."""

    def save(family: str) -> Pretrained:
        config_class, make_tokenizer = FAMILIES[family]
        tokenizer = make_tokenizer([*splits.train["text"], *TEXTS], 320 if family == "roberta" else 90)
        torch.manual_seed(0)
        # Tables have more rows than there are pieces where sizes are rounded up.
        named = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id}
        config = config_class(vocab_size=len(tokenizer) + 5, **named, **SIZES)
        save_model(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path / family)
        return Pretrained(tmp_path / family, family)

    return save


@pytest.fixture
def plan(
    save_source: Callable[[str], Pretrained], splits: Splits, tmp_path: Path
) -> Callable[[str, int], tuple[KeptPieces, TokenSet]]:
    """A function that plans a vocabulary with so many pieces more than must stay."""

    def make(family: str, more: int) -> tuple[KeptPieces, TokenSet]:
        source = save_source(family)
        tokens = tokenise(splits, TASK, source.tokenizer(), StoragePaths(tmp_path))
        limit = len(cut_vocabulary.pieces_of(source).must_stay) + more
        return MostUsedPieces(limit).plan(source, tokens, splits), tokens

    return make


def logits(model: Pretrained, texts: list[str]) -> torch.Tensor:
    """The logits of these texts as one padded batch, by plain transformers."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    with torch.inference_mode():
        result: torch.Tensor = loaded(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return result


@every_family
def test_texts_of_kept_pieces_have_the_same_outputs(
    family: str, plan: Callable[..., Any], splits: Splits, tmp_path: Path
) -> None:
    kept, _ = plan(family, 4)
    derived = kept.derive(kept.source, StoragePaths(tmp_path))
    tokenizer = kept.source.tokenizer()
    words = sorted({word for text in splits.train["text"] for word in text.split()})
    texts = [" ".join(pair) for pair in product(words, words[::4])]
    covered = [text for text in texts if {*tokenizer(text)["input_ids"]} <= {*kept.cut.ids}]
    assert 3 < len(covered) < len(texts)
    assert torch.allclose(logits(derived, covered), logits(kept.source, covered), atol=1e-5)
    other = [text for text in texts if text not in covered]
    assert not torch.allclose(logits(derived, other), logits(kept.source, other), atol=1e-3)


@every_family
def test_table_and_tokenizer_are_smaller(family: str, plan: Callable[..., Any], tmp_path: Path) -> None:
    kept, _ = plan(family, 10)
    derived, size = kept.derive(kept.source, StoragePaths(tmp_path)), kept.vocabulary.limit
    assert derived.config().vocab_size == size
    assert derived.model().get_input_embeddings().weight.shape == (size, 16)
    assert len(derived.tokenizer()) == size
    assert derived.config().eos_token_id == derived.tokenizer().sep_token_id
    assert derived.config().pad_token_id == derived.tokenizer().pad_token_id
    assert derived.tokenizer().model_max_length == kept.source.tokenizer().model_max_length
    # The folder has the vocabulary once, in its smaller form.
    names = {path.name for path in derived.folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    sizes = [(model.folder / "tokenizer.json").stat().st_size for model in (derived, kept.source)]
    assert sizes[0] < sizes[1]


def test_the_source_is_cut_once(plan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = plan("bert", 10)
    derived = kept.derive(kept.source, StoragePaths(tmp_path))
    monkeypatch.setattr(cut_vocabulary, "_write_cut", None)
    assert kept.derive(kept.source, StoragePaths(tmp_path)) == derived


def test_a_trained_source_is_cut_to_the_same_pieces(plan: Callable[..., Any], tmp_path: Path) -> None:
    kept, _ = plan("bert", 10)
    model = kept.source.model()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    save_model(model, kept.source.tokenizer(), tmp_path / "trained")
    paths = StoragePaths(tmp_path)
    before, after = kept.derive(kept.source, paths), kept.derive(Pretrained(tmp_path / "trained", "trained"), paths)
    assert before.key != after.key
    assert before.tokenizer().get_vocab() == after.tokenizer().get_vocab()
    tables = [each.model().get_input_embeddings().weight for each in (before, after)]
    assert torch.allclose(tables[0] + 1, tables[1])


def test_the_note_says_what_changes(plan: Callable[..., Any], splits: Splits, tmp_path: Path) -> None:
    kept, tokens = plan("bert", 2)
    paths = StoragePaths(tmp_path)
    after = tokenise(splits, TASK, kept.derive(kept.source, paths).tokenizer(), paths)
    texts = kept.source.tokenizer()(list(splits.train["text"]))["input_ids"]
    ids = np.concatenate(texts)
    share = np.mean(~np.isin(ids, kept.cut.ids))
    note = kept.describe(tokens, after)
    assert note.startswith(f"student.vocabulary={kept.vocabulary.limit}: {kept.vocabulary.limit} of the 90 pieces stay")
    assert f"{share:.2%} are cut otherwise and 0.00% become unknown" in note
    longer = sum(after.all_rows("train").lengths) / len(ids)
    assert f"{longer:.3g} times as many tokens" in note
    assert longer > 1.05


def test_changed_copies_do_not_choose_the_pieces(plan: Callable[..., Any], splits: Splits, tmp_path: Path) -> None:
    """Their number is searched, and may grow while a sweep has trials."""
    kept, _ = plan("bert", 10)

    def write(texts: pa.Table, number: int) -> pa.Table:
        return pa.table({"text": pa.array(["playing"] * texts.num_rows, texts.schema.field("text").type)})

    tokenizer = kept.source.tokenizer()
    with_copies = tokenise(WithCopies(splits, 2, write, "copies"), TASK, tokenizer, StoragePaths(tmp_path))
    assert with_copies.texts(2) == 3 * len(splits.train)
    assert kept.vocabulary.plan(kept.source, with_copies, splits).cut.ids == kept.cut.ids


def test_a_tokenizer_without_a_fast_form_is_refused(
    save_source: Callable[[str], Pretrained], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_source("bert")

    class SlowTokenizer:
        is_fast = False

    monkeypatch.setattr(Pretrained, "tokenizer", lambda self: SlowTokenizer())
    with pytest.raises(TeacherError, match=r"student\.vocabulary: .* SlowTokenizer, has no fast form"):
        cut_vocabulary.pieces_of(source)


def test_pieces_without_an_embedding_are_refused(plan: Callable[..., Any], tmp_path: Path) -> None:
    kept, _ = plan("bert", 10)
    model = kept.source.model()
    model.resize_token_embeddings(30)
    save_model(model, kept.source.tokenizer(), tmp_path / "short")
    with pytest.raises(TeacherError, match="pieces without an embedding"):
        kept.derive(Pretrained(tmp_path / "short", "short"), StoragePaths(tmp_path))


def test_a_model_that_answers_otherwise_is_refused(
    plan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = plan("bert", 10)
    monkeypatch.setattr(
        cut_vocabulary, "_cut_weight", lambda weight, shape, kept: weight[: shape[0]] if shape else weight
    )
    with pytest.raises(TeacherError, match="does not answer as before"):
        kept.derive(kept.source, StoragePaths(tmp_path))
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))


@pytest.mark.parametrize("family", ["albert", "deberta-v2", "distilbert", "electra", "gpt2", "modernbert", "mpnet"])
def test_further_families_are_cut(family: str, tmp_path: Path) -> None:
    """The embeddings of some are narrower than their layers, lie elsewhere, or are tied to their positions."""
    save_tiny(family, tmp_path / family)
    source = import_model(tmp_path / family, TextClassification(max_length=12), Head(LABELS), StoragePaths(tmp_path), 0)
    pieces = cut_vocabulary.pieces_of(source)
    counts_V = np.arange(len(pieces))
    kept = KeptPieces(MostUsedPieces(30), source, pieces, pieces.most_used(counts_V, 30), counts_V)
    smaller = kept.derive(source, StoragePaths(tmp_path)).model()
    ids = torch.tensor([[2, 20, 21, 9, 22, 3], [2, 25, 26, 3, 0, 0]])
    old_ids = torch.tensor(kept.cut.ids)[ids]
    assert torch.allclose(family_logits(smaller, ids), family_logits(source.model(), old_ids), atol=1e-5)
    assert not torch.equal(ids, old_ids)


def test_a_vocabulary_larger_than_the_source_is_refused(
    save_source: Callable[[str], Pretrained], splits: Splits, tmp_path: Path
) -> None:
    source = save_source("bert")
    tokens = tokenise(splits, TASK, source.tokenizer(), StoragePaths(tmp_path))
    with pytest.raises(SpecError, match=r"student\.vocabulary: got 4,000, but .* 90 pieces"):
        MostUsedPieces(4000).plan(source, tokens, splits)
