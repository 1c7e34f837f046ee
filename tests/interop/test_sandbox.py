"""Torch files of other people: what is in them comes out, and nothing else happens, whatever they are."""

from __future__ import annotations

import collections
import io
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgsgpt.errors import CheckpointError
from dgsgpt.interop import unpickle
from dgsgpt.interop.sandbox import looks_like_torch, read_torch_file
from dgsgpt.interop.unpickle import Inventory, Limits, RefusedError
from tests.interop.conftest import as_bytes

STATE = {
    "model": {"layer.weight": torch.arange(12.0).reshape(3, 4), "count": torch.ones(5, dtype=torch.int64)},
    "config": {"n_head": 4, "lr": 1e-3, "name": "x", "on": True, "none": None},
}


class Runs:
    """Pickled, it is a request to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def refusal(path: Path, **limits: Any) -> str:
    """The one line that refuses a file."""
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path, Limits(**limits))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    assert message.startswith(str(path)[:150])
    return message


# ---------------------------------------------------------------- what comes out
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_tensors_and_plain_values_come_out_as_they_went_in(
    save_torch: Callable[..., Path], temporary: Path, old: bool
) -> None:
    shared = torch.randn(4, 6)
    tensors = {
        "tied.a": shared,
        "tied.b": shared,
        "view": shared[1:3],
        "transposed": shared.t(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "double": torch.randn(3).double(),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    content = {
        "state": collections.OrderedDict(tensors),
        "config": {"n_head": 4, "betas": (0.9, 0.999), "nan": float("nan"), "text": "ä\n", 7: [None, True]},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(9)}}},
    }
    file = read_torch_file(save_torch(content, old=old), leave_out=["optimizer/*/exp_avg"])
    assert set(file.tensors) == {f"state/{name}" for name in tensors} | {"optimizer/state/0/step"}
    for name, tensor in tensors.items():
        assert torch.equal(file.tensors[f"state/{name}"], tensor)
        assert file.tensors[f"state/{name}"].dtype == tensor.dtype
    assert file.values == {
        "state": {},
        "config": {"n_head": 4, "betas": [0.9, 0.999], "nan": None, "text": "ä\n", "7": [None, True]},
        "optimizer": {"state": {"0": {}}},
    }
    assert file.left_out == 1
    assert not list(temporary.iterdir())


def test_the_beginning_of_a_file_tells_whether_torch_wrote_it(
    save_torch: Callable[..., Path], tmp_path: Path, legacy_samples: Path
) -> None:
    assert looks_like_torch(save_torch(STATE))
    assert looks_like_torch(save_torch(STATE, old=True))
    assert not looks_like_torch(legacy_samples / "vocab.txt")
    with pytest.raises(CheckpointError, match="no such file"):
        looks_like_torch(tmp_path / "missing.pth")


# ---------------------------------------------------------------- what means harm
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(
    save_torch: Callable[..., Path], tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    canary = tmp_path / "canary"
    path = save_torch({"weight": torch.zeros(2), "trap": Runs(f"touch {canary}")}, old=old)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "asks to run code (posix.system): refused" in refusal(path)
    assert not canary.exists()
    assert not list(temporary.iterdir())
    torch.load(path, weights_only=False)  # the file does what it is meant to
    assert canary.exists()


def test_compressed_members_are_refused_before_they_grow(
    save_torch: Callable[..., Path], repack: Callable[..., Path]
) -> None:
    bomb = repack(save_torch({"weight": torch.zeros(16_000_000)}))
    assert bomb.stat().st_size < 100_000
    started = time.monotonic()
    assert "compressed members" in refusal(bomb)
    assert time.monotonic() - started < 30


def test_a_tensor_larger_than_its_storage_is_refused(save_torch: Callable[..., Path]) -> None:
    path = save_torch({"weight": torch.zeros(1).expand(10**12)})
    assert path.stat().st_size < 4000
    assert "tensor 'weight' claims 4,000,000,000,000 bytes of a storage of 4: refused" in refusal(path)


def test_a_list_of_itself_many_times_over_is_refused(save_torch: Callable[..., Path]) -> None:
    nested: list[Any] = [1] * 10
    for _ in range(12):
        nested = [nested] * 10
    assert "nests or repeats values beyond 1,000,000 entries" in refusal(save_torch(nested))


def test_a_deep_pickle_is_refused(pack: Callable[..., Path]) -> None:
    depth = 200_000
    assert "32 levels: refused" in refusal(pack(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))


def test_memory_and_time_are_bounded(save_torch: Callable[..., Path], temporary: Path) -> None:
    path = save_torch({"weight": torch.zeros(16_000_000)})
    assert "needs more than" in refusal(path, memory_factor=0.5, spare_bytes=8 << 20)
    assert "took longer than 0 s to open: refused" in refusal(path, wall_s=0, bytes_per_s=1 << 40)
    assert "bytes are more than the 1,000 that are opened" in refusal(path, file_bytes=1000)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of processor time there")
def test_processor_time_is_bounded(pack: Callable[..., Path]) -> None:
    slow = b"\x80\x02" + b"]0" * 20_000_000 + b"N."  # makes a list and forgets it, again and again
    message = refusal(pack(slow), cpu_s=1, bytes_per_s=1 << 40)
    assert "the reader ended early (signal SIGXCPU)" in message


# ---------------------------------------------------------------- what is something else
def test_what_is_no_torch_file_is_named(tmp_path: Path, pack: Callable[..., Path]) -> None:
    empty, text, pipe = tmp_path / "empty.pth", tmp_path / "text.pth", tmp_path / "pipe.pth"
    empty.touch()
    text.write_text("once upon a time")
    os.mkfifo(pipe)
    assert "is empty" in refusal(empty)
    assert "is not a file torch.save wrote" in refusal(text)
    assert "is a pipe, socket or device" in refusal(pipe)
    assert "is a pipe, socket or device" in refusal(Path("/dev/zero"))
    assert "is a directory" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pth")
    assert "TorchScript" in refusal(pack(b"\x80\x02N.", **{"constants.pkl": b"x"}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file("a\0b")


def test_torchs_advice_to_open_a_file_unprotected_is_not_passed_on(pack: Callable[..., Path]) -> None:
    path = pack(b"(X\x04\x00\x00\x00trueios\nsystem\n.")
    with path.open("rb") as file, pytest.raises(RefusedError, match=r"damaged \(Unsupported operand 105\)"):
        unpickle.load(file, path.stat().st_size, Limits())


def test_archives_that_are_not_as_torch_writes_them_are_refused(pack: Callable[..., Path]) -> None:
    path = pack(b"\x80\x02N.", extra=b"x" * 1000)
    container = path.read_bytes()

    def check(data: bytes, **limits: Any) -> None:
        unpickle.check_container(io.BytesIO(data), len(data), Limits(**limits))

    check(container)
    with pytest.raises(RefusedError, match="has 4 members, more than 3"):
        check(container, members=3)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = pack(b"\x80\x02N.", version=b"3\n").read_bytes()
    with pytest.raises(RefusedError, match="two members of one name"):
        check(twice)
    with pytest.raises(RefusedError, match="holds 4 bytes of structure, more than 3"):
        check(container, pickle_bytes=3)
    with pytest.raises(RefusedError, match=r"is not a file torch\.save wrote"):
        check(container.replace(b"data.pkl", b"dato.pkl"))
    with pytest.raises(RefusedError, match=r"Bad CRC-32 for file 'archive/extra'"):
        check(container.replace(b"xxx", b"xyx", 1))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": {1, 2}}, "holds a set at 'a'"),
        ({"a": b"bytes"}, "holds a bytes at 'a'"),
        ({"a": 1 << 63}, "holds a int at 'a'"),
        ({"a": 1, 1: 1, "1": 2}, "a number and the same number as text"),
        ({(1, 2): 1}, "keys are not texts or numbers"),
        ({"../../x y": torch.zeros(1)}, "has a name with characters beyond"),
        ({"a\n": torch.zeros(1)}, "has a name with characters beyond"),
        (torch.zeros(1), "has a name with characters beyond"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "is of kind torch.complex64"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "is not a plain dense one"),
        ({"a": torch.zeros(3, device="meta")}, "is on the device meta"),
        ({"a": torch.zeros(1000)}, "claims storage beyond the file's 100 bytes"),
    ],
)
def test_only_tensors_and_plain_values_are_taken(content: Any, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        Inventory(100, Limits()).take(content)


def test_one_storage_under_many_names_does_not_grow_without_end() -> None:
    tensor = torch.zeros(250_000)
    content = {f"t{i}": tensor for i in range(10)}
    with pytest.raises(RefusedError, match="grow to more than"):
        Inventory(1_100_000, Limits()).take(content)


# ---------------------------------------------------------------- what is damaged
def test_a_cut_file_is_named_wherever_it_was_cut(save_torch: Callable[..., Path], legacy_samples: Path) -> None:
    whole = (legacy_samples / "multihead_dense.pth").read_bytes()
    for i in range(64):
        cut = whole[: len(whole) * i // 64]
        with pytest.raises(RefusedError, match="empty" if i == 0 else "is cut off or damaged"):
            unpickle.check_container(io.BytesIO(cut), len(cut), Limits())
    path = save_torch(STATE, "cut.pth")
    path.write_bytes(path.read_bytes()[:-30])
    assert "is cut off or damaged" in refusal(path)
    path.write_bytes(as_bytes(STATE, old=True)[:-10])
    assert "is cut off or damaged" in refusal(path)


def test_a_flipped_bit_in_an_archive_changes_nothing_or_is_named() -> None:
    whole = as_bytes(STATE)
    chance = random.Random(3)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file = io.BytesIO(bytes(data))
        try:
            unpickle.check_container(file, len(data), Limits())
            inventory = Inventory(len(data), Limits())
            values = inventory.take(unpickle.load(file, len(data), Limits()))
        except RefusedError:
            refused += 1
            continue
        assert values == {"model": {}, "config": STATE["config"]}  # the flip hit what torch leaves unused
        for name, tensor in STATE["model"].items():
            assert torch.equal(inventory.tensors[f"model/{name}"], tensor)
    assert refused > 100


_FLIPS = """
import io, random, sys, warnings
from collections import Counter
from dgsgpt.interop import unpickle
warnings.simplefilter("ignore")
whole, chance, outcomes = sys.stdin.buffer.read(), random.Random(5), Counter()
limits = unpickle.Limits()
unpickle.import_torch()
unpickle.limit_memory(len(whole), limits)
def attempt(data):
    file = io.BytesIO(data)
    try:
        unpickle.check_container(file, len(data), limits)
        unpickle.Inventory(len(data), limits).take(unpickle.load(file, len(data), limits))
    except unpickle.RefusedError:
        return "refused"
    except MemoryError:
        return "memory"
    return "opened"
for _ in range(1000):
    data = bytearray(whole)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    outcomes[attempt(bytes(data))] += 1
for cut in range(0, len(whole), len(whole) // 64):
    outcomes["cut " + attempt(whole[:cut])] += 1
print(*sorted(outcomes))
"""


def test_damage_of_the_old_format_never_crashes_the_reader() -> None:
    whole = as_bytes(STATE, old=True)
    # In a process of its own, because a wrong size may claim all memory: the limits are part of what is tested.
    done = subprocess.run([sys.executable, "-c", _FLIPS], input=whole, capture_output=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.decode().replace(" memory", "").split() == ["cut", "refused", "opened", "refused"]


def test_an_archive_that_torch_wrote_without_checksums_opens() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = as_bytes(STATE)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert any(member.CRC == 0 and member.file_size for member in archive.infolist())
    unpickle.check_container(io.BytesIO(data), len(data), Limits())
