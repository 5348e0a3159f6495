"""Examples without a meaning, which a model is traced and timed with."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


def synthetic_inputs(model: PreTrainedModel, examples: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Full-length examples without padding tokens (`examples` x `length`), the same at each call."""
    shape = (examples, length)
    ids = torch.randint(model.config.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))
    padding = model.config.pad_token_id
    # The ids are drawn from one id too few. The ids from the padding id on move up by one, so none is the padding id.
    ids += (ids >= padding).long() if padding is not None else 0
    return {"input_ids": ids.to(device), "attention_mask": torch.ones(shape, dtype=torch.long, device=device)}
