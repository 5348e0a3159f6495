"""A tiny tokenizer of each kind: WordPiece, byte-level BPE, BPE behind a splitter, and Unigram as of SentencePiece."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["the playing player plays a play", "don't play in New York 3.14", "naïve players, played"] * 5


def _save(tokenizer: Tokenizer, folder: Path, **names: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"model_max_length": 64, **names}).save_pretrained(folder)


def word_piece(folder: Path) -> None:
    """As BERT: lower case, token types; those of the special tokens differ, as XLNet's do."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:1 $A [SEP]:2", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    _save(tokenizer, folder, unk_token="[UNK]", pad_token="[PAD]", model_input_names=inputs)


def _byte_level(pre_tokenizer: Any, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Trained with the spaces of texts, as every published one.
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def roberta(folder: Path) -> None:
    """As RoBERTa: a space is a part of the word behind it; special tokens on both sides."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special).save(str(_made(folder) / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))


def gpt2(folder: Path) -> None:
    """As GPT-2: no special tokens around a text, no token for unknown words."""
    _save(_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|end|>"]), folder, eos_token="<|end|>")


def behind_a_splitter(folder: Path) -> None:
    """As Qwen and Llama 3: a splitter before ByteLevel; no special tokens at all."""
    split = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]+|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    _save(_byte_level(pre_tokenizers.Sequence([split, byte_level]), []), folder)


def unigram(folder: Path) -> None:
    """As XLM-R and T5: SentencePiece's Unigram, where a mark stands before each word; only an end token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex("\\x{200b}"), "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    _save(tokenizer, folder, unk_token="<unk>", eos_token="</s>")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


KINDS: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (word_piece, roberta, gpt2, behind_a_splitter, unigram)
}
"""Name -> what saves a tokenizer of this kind in a folder."""
