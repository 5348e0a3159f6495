"""Whether a model computes in bf16 or in float32 on a device."""

from typing import Literal

import torch
from torch import nn

NOT_IN_BF16 = ("deberta", "xmod")
"""Families whose forward overflows under autocast in bf16: they mask with the least float32."""

DTYPE_OF_PRECISION = {"fp32": None, "bf16": torch.bfloat16}


def autocast_dtype(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device, model: nn.Module
) -> torch.dtype | None:
    """The type that autocast computes in for this model on this device; None for plain float32."""
    if precision != "auto":
        return DTYPE_OF_PRECISION[precision]
    if model_family(model) in NOT_IN_BF16:
        return None
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and "avx512" in torch.backends.cpu.get_cpu_capability().lower() and _cpu_has_bf16()
    return torch.bfloat16 if fast else None


def model_family(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", "")


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
