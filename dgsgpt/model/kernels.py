"""Kernels of a few lines for what is done to single rows, dozens of times for each token that is written.

A row times a matrix is as fast as memory gives the matrix, or should be: MKL reaches a third of that on some
processors, and threads that wait for each other at each of dozens of small products suffer wherever something else
runs. These kernels are for one thread and compiled in a fraction of a second, once a process, by the C compiler that
`torch.compile` needs, too. Without one, torch's own operators take their place.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SOURCE = """
#include <math.h>
void multiply(const float *matrix, const float *row, float *result, long rows, long columns) {
    for (long i = 0; i < rows; i++) {
        const float *own = matrix + i * columns;
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < columns; j++) sum += own[j] * row[j];
        result[i] = sum;
    }
}
void rms_norm(const float *x, const float *gain, float *result, long rows, long columns, float eps) {
    for (long i = 0; i < rows; i++, x += columns, result += columns) {
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < columns; j++) sum += x[j] * x[j];
        const float scale = 1 / sqrtf(sum / columns + eps);
        for (long j = 0; j < columns; j++) result[j] = x[j] * scale * gain[j];
    }
}
"""
# Of OpenMP the vectors alone, no threads: torch has its own.
_FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-shared", "-fPIC", "-x", "c")
_PLAIN = (Tensor, nn.Parameter)  # of subclasses, as in fake mode, there may be no memory to read


class Kernels(NamedTuple):
    """Functions on addresses of float32 numbers."""

    multiply: Callable[[int, int, int, int, int], None]  # matrix, row, result, rows and columns of the matrix
    rms_norm: Callable[[int, int, int, int, int, float], None]  # x, gain, result, rows, columns, eps


def kernels_for(x: Tensor, weight: Tensor) -> Kernels | None:
    """The kernels if they can be given `x` and `weight`, and nothing is trained; None is for torch's operators."""
    if not torch.is_inference_mode_enabled() or type(x) is not Tensor or type(weight) not in _PLAIN:
        return None
    floats = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if not floats or not x.is_contiguous() or not weight.is_contiguous() or torch.is_autocast_enabled("cpu"):
        return None
    return load()


@lru_cache(maxsize=1)
def load() -> Kernels | None:
    """The compiled kernels; None where there is no C compiler, or what it makes cannot be loaded."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="dgsgpt-kernels-", ignore_cleanup_errors=True) as folder:
        library = Path(folder, "kernels.so")
        command = [compiler, *_FLAGS, "-", "-o", str(library), "-lm"]
        try:
            subprocess.run(command, input=_SOURCE.encode(), capture_output=True, check=True, timeout=30)
            found = ctypes.CDLL(str(library))
            kernels = Kernels(found.multiply, found.rms_norm)
        except (OSError, subprocess.SubprocessError, AttributeError):
            return None
    for function, rest in ((found.multiply, ()), (found.rms_norm, (ctypes.c_float,))):
        function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 2 + list(rest)
        function.restype = None
    return kernels


__all__ = ["Kernels", "kernels_for", "load"]
