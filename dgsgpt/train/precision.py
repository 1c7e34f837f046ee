"""Arithmetic in less than 32 bits: where it is native, and the context that a forward pass runs in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def has_native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 itself; others emulate it, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of torch cannot tell
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[object]]:
    """A context for the forward pass: half precision where asked for, or where `auto` finds a GPU that has bf16."""
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        precision = "bf16"
    if precision not in HALF:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=HALF[precision])
