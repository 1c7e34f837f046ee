"""Matrix products, of single rows too, as they are when text is written token by token.

A row times a matrix is as fast as memory gives the matrix, or should be: MKL reaches a third of that on some
processors, and threads that wait for each other at each of dozens of small products suffer wherever something else
runs. So there is a kernel of a few lines, for one thread, compiled in a fraction of a second by the C compiler that
`torch.compile` needs, too. Without one, torch's own product takes its place.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SOURCE = """
void multiply(const float *matrix, const float *row, float *result, long rows, long columns) {
    for (long i = 0; i < rows; i++) {
        const float *own = matrix + i * columns;
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < columns; j++) sum += own[j] * row[j];
        result[i] = sum;
    }
}
"""
_FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC", "-x", "c")  # simd alone: no OpenMP threads
_PLAIN = (Tensor, nn.Parameter)  # of subclasses, as in fake mode, there may be no memory to read


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., in] times `weight` [out, in], plus the bias [out] if there is one -> [..., out]."""
    if torch.is_grad_enabled() or x.numel() != weight.size(1) or not _fits(x, weight):
        return F.linear(x, weight, bias)
    kernel = row_kernel()
    if kernel is None:
        return F.linear(x, weight, bias)
    y = x.new_empty(*x.shape[:-1], weight.size(0))
    kernel(weight.data_ptr(), x.data_ptr(), y.data_ptr(), *weight.shape)
    return y if bias is None else y.add_(bias)


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can be given these."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or type(weight) not in _PLAIN:
        return False
    on_cpu = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return on_cpu and weight.is_contiguous() and x.is_contiguous() and not torch.is_autocast_enabled("cpu")


@lru_cache(maxsize=1)
def row_kernel() -> Any | None:
    """The compiled kernel; None where there is no C compiler, or what it makes cannot be loaded."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="dgsgpt-kernel-", ignore_cleanup_errors=True) as folder:
        library = Path(folder, "row.so")
        command = [compiler, *_FLAGS, "-", "-o", str(library)]
        try:
            subprocess.run(command, input=_SOURCE.encode(), capture_output=True, check=True, timeout=30)
            kernel = ctypes.CDLL(str(library)).multiply
        except (OSError, subprocess.SubprocessError, AttributeError):
            return None
    kernel.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 2
    kernel.restype = None
    return kernel


class Linear(nn.Linear):
    """torch's linear layer, with the kernel for single rows where nothing is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] -> [..., out]."""
        return multiply(x, self.weight, self.bias)


__all__ = ["Linear", "multiply", "row_kernel"]
