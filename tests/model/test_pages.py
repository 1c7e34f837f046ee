"""Large pages: which memory they are asked for, and that what lies in it stays as it is."""

from __future__ import annotations

import torch

from dgsgpt.model import pages


def test_spans_are_whole_pages_of_tensors_that_lie_one_behind_the_other() -> None:
    page = 2**21
    memory = torch.arange(5 * page // 4, dtype=torch.int32)
    parts = [memory[: page // 2], memory[page // 2 :]]
    begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    ((first, last),) = pages.spans(reversed(parts))
    assert first % page == last % page == 0
    assert 0 <= first - begin < page
    assert 0 <= end - last < page
    assert pages.spans([memory[:1000]]) == pages.spans([]) == []


def test_tensors_far_from_each_other_are_not_joined() -> None:
    memory = torch.zeros(4 * 2**21, dtype=torch.uint8)
    edges = [memory[: 2**20], memory[3 * 2**21 :][: 2**20]]
    assert all(last - first < 2**21 for first, last in pages.spans(edges))


def test_what_lies_there_stays() -> None:
    memory = torch.randn(3 * 2**19, generator=torch.Generator().manual_seed(1))
    before = memory.clone()
    pages.gather([memory])
    assert torch.equal(memory, before)
