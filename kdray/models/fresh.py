"""A small Transformer with random weights, and a word tokenizer made from the texts that it is trained on."""

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, GPT2Config, PreTrainedModel, PreTrainedTokenizerFast

from kdray.settings import Settings
from kdray.tasks.task import Task


class FreshTransformer(Settings):
    """A BERT with random weights, and a tokenizer of whole words made from the texts that it is trained on.

    For a causal language model it is a GPT-2 of these sizes.
    """

    layers: int = Field(4, ge=1)
    width: int = Field(64, ge=8)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(128, ge=8)
    dropout: float = Field(0.0, ge=0, lt=1)
    vocabulary: int = Field(2000, ge=16)
    """The maximum number of words and special tokens: the most frequent words. All other words become [UNK]."""
    spread: float = Field(0.05, gt=0)
    """The standard deviation of the initial weights. BERT's 0.02 is for a width of 768; narrow layers need more."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"a width of {self.width} cannot be shared by {self.heads} heads; give a multiple of heads."
            )
        return self

    def create(
        self, texts: Sequence[str], labels: Sequence[str], task: Task, seed: int
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """An untrained model with the head of the task and these labels, and its tokenizer.

        `seed` decides the weights; torch's global random generator is left as it was.
        """
        tokenizer = word_tokenizer(texts, self.vocabulary, task.max_length, task.is_causal)
        config = self._causal_config(tokenizer, task) if task.is_causal else self._config(tokenizer, task, labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return task.fresh_model(config), tokenizer

    def _config(self, tokenizer: PreTrainedTokenizerFast, task: Task, labels: Sequence[str]) -> BertConfig:
        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.feed_forward,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=task.max_length,
            initializer_range=self.spread,
            pad_token_id=tokenizer.pad_token_id,
            **task.head_settings(labels),
        )

    def _causal_config(self, tokenizer: PreTrainedTokenizerFast, task: Task) -> GPT2Config:
        return GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            n_inner=self.feed_forward,
            n_positions=task.max_length,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            resid_pdrop=self.dropout,
            initializer_range=self.spread,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


def word_tokenizer(
    texts: Sequence[str], vocabulary: int, max_length: int, is_causal: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-case words and punctuation; it adds BERT's special tokens to a text or a pair of texts.

    `is_causal`: it adds none, so that a text may be continued, and has tokens for the begin and the end of a text.
    """
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    )
    if is_causal:
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            model_max_length=max_length,
            model_input_names=["input_ids", "attention_mask"],
            pad_token="[PAD]",
            unk_token="[UNK]",
            bos_token="[CLS]",
            eos_token="[SEP]",
        )
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
