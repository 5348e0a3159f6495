"""Texts that a causal language model continues, token by token.

A model of transformers keeps what it has computed of earlier tokens (its cache). A graph has no cache: it reads the
whole text again for each new token. Shapes: B texts, L tokens, V tokens of the vocabulary, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdray.errors import SpecError
from kdray.tasks.answers import PREDICTED, PROBABILITY, LoadedStudent, Progress
from kdray.tasks.token_answers import LOGITS_AT_ONCE


@dataclass(frozen=True)
class ContinuedText:
    """What a model writes behind a text."""

    text: str
    probability: float
    """The geometric mean of the probabilities of its tokens, the end token included; 1 / perplexity."""

    def cells(self) -> list[str]:
        """The continuation in one line, and its probability."""
        return [" ".join(self.text.split()), f"{self.probability:.4f}"]

    def columns(self) -> dict[str, Any]:
        """The continuation, and its probability."""
        return {PREDICTED: self.text, PROBABILITY: round(self.probability, 6)}


def continue_texts(
    student: LoadedStudent, texts: Sequence[str], block: int, on_progress: Progress
) -> list[ContinuedText]:
    """Continue each text, up to its end token or by `Continuation.tokens` tokens.

    A text is read from its end: as many of its tokens as a block has room for besides the new ones. Raises SpecError if
    a block has no room for a text.
    """
    how, tokenizer = student.continuation, student.tokenizer
    if how.tokens >= block:
        raise SpecError(
            f"--tokens {how.tokens}: this student reads blocks of {block} tokens, text and continuation together. Give "
            f"at most {block - 1}."
        )
    prompts = [_prompt(tokenizer, text, block - how.tokens) for text in texts]
    # Texts of similar length share a batch, which needs less padding.
    order = sorted(range(len(texts)), key=lambda row: len(prompts[row]), reverse=True)
    # A graph gives the logits of all tokens of a block; of a model with a cache, those of each new token are kept.
    at_once = min(student.batch_size, max(1, LOGITS_AT_ONCE // (block * len(tokenizer))))
    torch.manual_seed(how.seed)
    continued: dict[int, ContinuedText] = {}
    for start in range(0, len(order), at_once):
        batch = order[start : start + at_once]
        with torch.inference_mode():
            new_BxS, logs_BxS = _continue(student, [prompts[row] for row in batch])
        for row, tokens, logs in zip(batch, new_BxS.tolist(), logs_BxS, strict=True):
            continued[row] = _read(tokenizer, prompts[row], tokens, logs)
        on_progress(len(continued) / len(texts))
    return [continued[row] for row in range(len(texts))]


def _prompt(tokenizer: Any, text: str, room: int) -> list[int]:
    """The last tokens of a text, with those that the tokenizer puts before it; a text has at least one token."""
    ids: list[int] = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers end each text; this one goes on
    first = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids[-room:] or [first]


def _continue(student: LoadedStudent, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """The new tokens of a batch, and the logarithms of their probabilities (each B x S)."""
    with_cache = isinstance(student.model, PreTrainedModel)
    return (_with_cache if with_cache else _without_cache)(student, prompts)


def _with_cache(student: LoadedStudent, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    how, tokenizer, model = student.continuation, student.tokenizer, student.model
    longest = max(map(len, prompts))
    padding = [longest - len(ids) for ids in prompts]
    ids_BxL = torch.tensor([[tokenizer.pad_token_id] * pad + ids for pad, ids in zip(padding, prompts, strict=True)])
    mask_BxL = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    sampling = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
    outputs = model.generate(  # type: ignore[operator]
        input_ids=ids_BxL,
        attention_mask=mask_BxL,
        max_new_tokens=how.tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        output_logits=True,
        return_dict_in_generate=True,
        **(sampling if how.temperature else {"do_sample": False}),
    )
    new_BxS = outputs.sequences[:, longest:]
    logs = [
        logits_BxV.float().log_softmax(dim=-1).gather(-1, new_BxS[:, step, None])
        for step, logits_BxV in enumerate(outputs.logits)
    ]
    return new_BxS, torch.cat(logs, dim=-1)


def _without_cache(student: LoadedStudent, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    how, tokenizer = student.continuation, student.tokenizer
    texts = [list(ids) for ids in prompts]
    new, logs = [], []
    is_open_B = torch.ones(len(texts), dtype=torch.bool)
    for _ in range(how.tokens):
        logs_BxV = _next_logits(student, texts).float().log_softmax(dim=-1)
        tokens_B = logs_BxV.argmax(dim=-1)
        if how.temperature:
            tokens_B = torch.multinomial((logs_BxV / how.temperature).softmax(dim=-1), 1)[:, 0]
        tokens_B = torch.where(is_open_B, tokens_B, tokenizer.pad_token_id)
        new.append(tokens_B)
        logs.append(logs_BxV.gather(-1, tokens_B[:, None])[:, 0])
        is_open_B &= tokens_B != (-1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
        if not is_open_B.any():
            break
        texts = [[*ids, token] for ids, token in zip(texts, tokens_B.tolist(), strict=True)]
    return torch.stack(new, dim=-1), torch.stack(logs, dim=-1)


def _next_logits(student: LoadedStudent, texts: Sequence[list[int]]) -> Tensor:
    """The logits behind the last token of each text (B x V)."""
    inputs = student.tokenizer.pad(
        {"input_ids": list(texts)}, return_tensors="pt", return_attention_mask=True, padding_side="right"
    )
    logits_BxLxV: Tensor = student.model(**inputs).logits
    return logits_BxLxV[torch.arange(len(texts)), inputs["attention_mask"].sum(dim=-1) - 1]


def _read(tokenizer: Any, prompt: list[int], tokens: list[int], logs_S: Tensor) -> ContinuedText:
    """The text of new tokens, which end behind the first end token."""
    ends = [step for step, token in enumerate(tokens) if token == tokenizer.eos_token_id]
    size = ends[0] + 1 if ends else len(tokens)
    # Decoded alone, the first word would lose the space before it where the tokens have none.
    before, text = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + tokens[:size]))
    return ContinuedText(text[len(before) :], float(logs_S[:size].mean().exp()))
