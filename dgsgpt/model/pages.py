"""Large pages for weights that are read from end to end for every token.

With pages of 4 KiB the processor looks up thousands of addresses a token; with 2 MiB reading is a quarter faster.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import Tensor

_PAGE = 2**21
_BETWEEN = 4096  # what an allocator may keep beside each of its parts
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1: gather what is there into large pages, now


def spans(weights: Iterable[Tensor]) -> list[tuple[int, int]]:
    """From where to where whole large pages of memory hold `weights` that lie one behind the other."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in weights):
        if joined and begin - joined[-1][1] <= _BETWEEN:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    whole = [(-(-begin // _PAGE) * _PAGE, end // _PAGE * _PAGE) for begin, end in joined]
    return [(begin, end) for begin, end in whole if begin < end]


def gather(weights: Iterable[Tensor]) -> None:
    """Ask for large pages under `weights`, about half a millisecond a MiB; where there are none all stays as it is."""
    advise = _madvise()
    if advise is not None:
        for begin, end in spans(weights):
            advise(begin, end - begin, _COLLAPSE)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


__all__ = ["gather", "spans"]
