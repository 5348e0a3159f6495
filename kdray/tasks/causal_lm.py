"""Causal language models: the model says which token comes next, at each token of a text."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from kdray.data.task_data import Encoded, TextColumns
from kdray.tasks.answers import PREDICTED, PROBABILITY, Continuation, LoadedStudent, Progress
from kdray.tasks.continuing import ContinuedText, continue_texts
from kdray.tasks.language_model import LanguageModel, token_ids
from kdray.tasks.serving import Serving
from kdray.tasks.texts import check_max_length
from kdray.tasks.usage import continuing_code, onnx_continuing_code
from kdray.tasks.windows import spare_token


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
        """See `TaskData`. A text begins as the tokenizer begins it, and ends with the end token if there is one.

        So a student has learnt from texts that begin as the ones do that it continues. A block begins with the last
        token of the block before it, from which its first answer follows. Raises SpecError for blocks that the model of
        this tokenizer cannot read.
        """
        check_max_length(self.block, tokenizer, self.length_setting)
        spare = [spare_token(tokenizer)]
        first = _begin(tokenizer)
        last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        blocks, rows = [], []
        for row, ids in enumerate(token_ids(tokenizer, columns["text"])["input_ids"]):
            # A text without tokens still is a row, and a model reads at least one token; it is no answer.
            for block in blocks_of([*first, *ids, *last] or spare, self.block, overlap=1):
                blocks.append(list(block))
                rows.append(row)
        places = [list(range(len(block) - 1)) for block in blocks]
        return Encoded({"input_ids": blocks}, places, rows, [block[1:] for block in blocks])

    def reply(self, student: LoadedStudent, columns: TextColumns, on_progress: Progress) -> list[ContinuedText]:
        """The continuation of each text. Raises SpecError if a block has no room for a text beside it."""
        return continue_texts(student, columns["text"], self.block, on_progress)

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """See `Task`."""
        return (PREDICTED, PROBABILITY)

    def predicts(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return "the next token of a text, and so continues texts"

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return continuing_code()

    def onnx_code(self, file: str) -> str:
        """See `Task`."""
        return onnx_continuing_code(file, self.block)

    def serving(self, labels: Sequence[str]) -> Serving:
        """See `Task`: the continuation alone, of texts of any length."""
        settings = {"answers": "continuation", "tokens": min(Continuation.tokens, self.block // 2)}
        return Serving({"continuation": "string", "score": "double"}, settings)


def blocks_of(ids: Sequence[int], room: int, overlap: int = 0) -> list[Sequence[int]]:
    """Cut the tokens of a text into blocks of at most `room`; the last tokens of a block are the first of the next."""
    step = room - overlap
    return [ids[start : start + room] for start in range(0, max(1, len(ids) - overlap), step)]


def _begin(tokenizer: Any) -> list[int]:
    """The begin token, if the tokenizer puts it before a text; GPT-2 has one, but does not."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
