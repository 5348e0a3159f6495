"""Causal language models: the model says which token comes next, at each token of a text."""

from typing import Any, ClassVar, Literal

from kdray.data.task_data import Encoded, TextColumns
from kdray.tasks.language_model import LanguageModel, blocks_of, token_ids
from kdray.tasks.texts import check_max_length


class CausalLM(LanguageModel):
    """The texts and their blocks. Each token of a text but the first one is an answer, in exactly one block."""

    kind: Literal["causal_lm"] = "causal_lm"

    head: ClassVar[str] = "ForCausalLM"
    pipeline: ClassVar[str] = "text-generation"
    is_causal: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See `Task`."""
        return "causal language modelling"

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """See `Task`."""
        return (self.name, self.top_k)

    def layout(self, tokenizer: Any) -> dict[str, Any]:
        """See `TaskData`."""
        return {"top_k": self.top_k}

    def encode(self, tokenizer: Any, columns: TextColumns, for_training: bool = False) -> Encoded:
        """See `TaskData`. A text begins with the token that the tokenizer begins it with, and ends with its end token.

        A block begins with the last token of the block before it, from which its first answer follows. Raises SpecError
        for blocks that the model of this tokenizer cannot read.
        """
        check_max_length(self.block, tokenizer, "task.block")
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        blocks, rows = [], []
        for row, ids in enumerate(token_ids(tokenizer, columns["text"])["input_ids"]):
            for block in blocks_of([*first, *ids, *last], self.block, overlap=1):
                blocks.append(list(block))
                rows.append(row)
        places = [list(range(len(block) - 1)) for block in blocks]
        return Encoded({"input_ids": blocks}, places, rows, [block[1:] for block in blocks])
