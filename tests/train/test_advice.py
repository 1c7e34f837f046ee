"""What is said when memory runs out: recognised wherever it comes from, and advice that can be typed and is true."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgsgpt import hardware
from dgsgpt.config import RunConfig, build_config, parse_config
from dgsgpt.errors import RunError
from dgsgpt.planner import plan
from dgsgpt.train.advice import MOST, is_out_of_memory, out_of_memory_advice, usable_memory

GIB = 2**30
GROUP = re.compile(r"((?:(?:train|model)\.\S+=\S+(?: with | and |))+) saves ([\d.]+)\s(\w+)")


def config(**train: Any) -> RunConfig:
    """A model of GPT-2's shape."""
    return build_config(
        {
            "data": {"tokenizer": {"kind": "gpt2"}},
            "model": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024},
            "train": {"micro_batch_size": 16, **train},
        }
    )


def offers(text: str) -> list[tuple[list[str], float]]:
    """The changes offered, as settings, and the GiB each saves."""
    units = {"GiB": 1.0, "MiB": 2**-10}
    found = [(re.split(" with | and ", s), float(n) * units[unit]) for s, n, unit in GROUP.findall(text)]
    assert found, text
    return found


# ---------------------------------------------------------------- recognising it
class OutOfMemoryError(RuntimeError):
    """As older versions of torch name theirs."""


RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.12 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OutOfMemoryError(),
]
SOMETHING_ELSE = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    OSError(errno.ENOSPC, "No space left on device"),
    RunError("text.txt says 'out of memory' in its first line"),
    ValueError("out of memory"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", RAN_OUT, ids=repr)
def test_running_out_of_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)
    wrapped = RuntimeError("backend='inductor' raised")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize("error", SOMETHING_ELSE, ids=repr)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_errors_that_cause_each_other_end() -> None:
    a, b = RuntimeError("a"), RuntimeError("b")
    a.__cause__, b.__cause__ = b, a
    assert not is_out_of_memory(a)


def test_what_torch_really_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# ---------------------------------------------------------------- the advice
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("share", [None, 0.3, 0.6, 0.9, 2.0])
def test_the_changes_can_be_typed_and_save_what_is_said(device: str, share: float | None) -> None:
    given = config()
    need = plan(given, device).total_bytes
    text = out_of_memory_advice(given, device, None if share is None else int(share * need))
    assert text.startswith(f"out of memory: the plan says this config needs about {need / GIB:.1f}")
    assert "\n" not in text
    found = offers(text)
    assert 1 <= len(found) <= MOST
    for settings, gib in found:
        eased = parse_config(given.to_yaml(), overrides=settings)
        assert (need - plan(eased, device).total_bytes) / GIB == pytest.approx(gib, abs=0.06)


def test_each_change_is_enough_where_one_is() -> None:
    given = config()
    need = plan(given, "cpu").total_bytes
    text = out_of_memory_advice(given, "cpu", need // 2)
    for settings, _ in offers(text):
        assert plan(parse_config(given.to_yaml(), overrides=settings), "cpu").total_bytes < need // 2
    assert "; set one of train.micro_batch_size=" in text
    assert "none of these is enough" not in text


def test_where_the_plan_fits_it_still_says_what_helps() -> None:
    given = config()
    text = out_of_memory_advice(given, "cpu", 4 * plan(given, "cpu").total_bytes)
    assert "other programs took some" in text
    assert offers(text)[0][1] > 0.2 * plan(given, "cpu").total_bytes / GIB


def test_too_large_a_model_is_told_so() -> None:
    lean = config(
        micro_batch_size=1,
        gradient_checkpointing="full",
        optimizer="adafactor",
        weight_precision="bf16",
        optimizer_in_backward=True,
        grad_clip=None,
    )
    text = out_of_memory_advice(lean, "cuda", 1 << 20)
    assert "take a smaller model.n_embd or model.n_layer" in text
    assert "may use 1.0" in text


def test_what_this_process_holds_counts_as_usable(make_config: Callable[..., RunConfig]) -> None:
    machine = hardware.detect()
    device, usable = usable_memory(make_config(), machine)
    assert device == "cpu"
    assert machine.ram_available_bytes < usable <= machine.ram_total_bytes


def test_the_module_needs_no_torch() -> None:
    code = "import sys, dgsgpt.train.advice, dgsgpt.train.health; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
