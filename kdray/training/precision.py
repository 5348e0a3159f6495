"""Decide whether a model computes in bf16 or in float32 on a device."""

from typing import Literal

import torch
from torch import nn

NOT_IN_BF16 = ("deberta", "xmod")
"""Model families whose forward pass overflows under bf16 autocast, because they mask with the least float32 value."""

DTYPE_OF_PRECISION = {"fp32": None, "bf16": torch.bfloat16}


def autocast_dtype(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device, model: nn.Module
) -> torch.dtype | None:
    """The type that autocast uses for this model on this device; None for plain float32.

    `auto` gives bf16 only where the hardware computes in it: emulated bf16 is not used.
    """
    if precision != "auto":
        return DTYPE_OF_PRECISION[precision]
    if model_family(model) in NOT_IN_BF16:
        return None
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_avx512 = "avx512" in torch.backends.cpu.get_cpu_capability().lower()
        has_bf16 = device.type == "cpu" and has_avx512 and _cpu_has_bf16()
    return torch.bfloat16 if has_bf16 else None


def model_family(model: nn.Module) -> str:
    """The model type in the model's config, such as "bert"; empty if the model has no config."""
    return getattr(getattr(model, "config", None), "model_type", "")


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
