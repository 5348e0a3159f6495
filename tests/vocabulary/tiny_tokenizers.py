"""Tiny tokenizers of each kind, made of a few texts, with the classes of BERT, RoBERTa and XLM-RoBERTa."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, XLMRobertaTokenizer

from kdray.models.fresh import word_tokenizer

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a film with wit and charm, and a very good cast",
    "this movie was awful, boring and far too long",
    "playing and played: a player plays with the players",
    "the cast is good, the plot is thin, the music is loud",
)
WORDS = tuple(word for text in TEXTS for word in text.replace(",", "").replace(":", "").split())

UNUSED = tuple(f"[unused{number}]" for number in range(10))
"""Pieces between the padding token and the other special tokens, as in BERT."""


def bert_tokenizer(texts: Sequence[str] = TEXTS, size: int = 120) -> Any:
    """WordPiece."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size - len(UNUSED), special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    first, *others = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    vocab = {piece: number for number, piece in enumerate((first, *UNUSED, *others))}
    return BertTokenizer(vocab=vocab, model_max_length=64)


def roberta_tokenizer(texts: Sequence[str] = TEXTS, size: int = 360) -> Any:
    """BPE of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=64)


def xlm_roberta_tokenizer(texts: Sequence[str] = TEXTS, size: int = 90) -> Any:
    """Unigram, as SentencePiece has it. The token for masks is not a piece of the model."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=64)


def words_tokenizer(texts: Sequence[str] = TEXTS, size: int = 60) -> Any:
    """WordLevel."""
    return word_tokenizer(texts, size, 64)


def suffix_tokenizer(texts: Sequence[str] = TEXTS, size: int = 110) -> Any:
    """BPE whose pieces at the end of a word have a mark, as CLIP and the first GPT have them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def prefix_tokenizer(texts: Sequence[str] = TEXTS, size: int = 110) -> Any:
    """BPE whose pieces inside a word have a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<unk>"], continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


TOKENIZERS = {
    "WordPiece": bert_tokenizer,
    "BPE": roberta_tokenizer,
    "Unigram": xlm_roberta_tokenizer,
    "WordLevel": words_tokenizer,
    "BPE with a suffix": suffix_tokenizer,
    "BPE with a prefix": prefix_tokenizer,
}
"""The kind of a tokenizer -> what makes one."""


def rules_of(tokenizer: Any) -> dict[str, Any]:
    """The content of tokenizer.json."""
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return rules
