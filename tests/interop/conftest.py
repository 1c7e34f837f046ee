"""Shared by the tests of other programs' models: the samples, and torch files that mean harm."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LEGACY = Path(__file__).parent / "data" / "legacy"


@pytest.fixture
def legacy_samples() -> Path:
    """The folder with files of the original DGS-GPT and the logits it computes."""
    return LEGACY


@pytest.fixture
def save_torch(tmp_path: Path) -> Callable[..., Path]:
    """Write `content` as torch does: `save_torch(content, "name.pth", old=True)` in its format before 1.6."""

    def save(content: Any, name: str = "model.pth", old: bool = False) -> Path:
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        return path

    return save


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """A zip archive as torch writes it, around a pickle of one's own."""

    def write(pickled: bytes, name: str = "packed.pth", **members: bytes) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/byteorder", b"little")
            archive.writestr("archive/version", b"3\n")
            for member, content in members.items():
                archive.writestr(f"archive/{member}", content)
        return path

    return write


@pytest.fixture
def repack(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a torch archive with its members compressed."""

    def write(source: Path, name: str = "repacked.pth") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.namelist():
                new.writestr(member, old.read(member))
        return path

    return write


def as_bytes(content: Any, old: bool = False) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()
