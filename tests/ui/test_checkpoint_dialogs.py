"""What the dialogs of the checkpoints page decide before anything is read or written."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dgsgpt.annotations import Annotation
from dgsgpt.errors import CheckpointError
from dgsgpt.ui import import_view, words_view


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["old.pth", "vocab.txt"], ("old.pth", "vocab.txt")),
        (["old.pth"], ("old.pth", None)),
        (["m.gguf"], ("m.gguf", None)),
        (["config.json", "model.safetensors", "tokenizer.json", "merges.txt"], (None, None)),
        (["config.json", "pytorch_model.bin"], (None, None)),
        (["deep\\folder/old.PTH", "deep/vocab.txt"], ("old.PTH", "vocab.txt")),
    ],
)
def test_the_model_among_uploaded_files(names: list[str], found: tuple[str | None, str | None]) -> None:
    assert import_view.source_among(names) == found


@pytest.mark.parametrize(
    "names",
    [[], ["vocab.txt"], ["a.pth", "b.pth"], ["a.pth", "a.pth"], ["a.pth", "x.txt", "y.txt"], ["model.safetensors"],
     ["x/a.pth", "y/a.pth"], ["..", "a.pth"], ["", "a.pth"]],
)  # fmt: skip
def test_files_that_are_not_one_model_are_refused(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"choose a \.pth file"):
        import_view.source_among(names)


def test_uploads_stay_inside_their_folder(tmp_path: Path) -> None:
    def upload(name: str, data: bytes) -> Any:
        return SimpleNamespace(name=name, getbuffer=lambda: data)

    folder = tmp_path / "in"
    folder.mkdir()
    found = import_view.keep_uploads([upload("../../up.pth", b"model"), upload("/etc/vocab.txt", b"abc")], folder)
    assert found == (folder / "up.pth", folder / "vocab.txt")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["up.pth", "vocab.txt"]
    assert (folder / "up.pth").read_bytes() == b"model"


def test_what_an_error_asks_for_is_a_field() -> None:
    assert import_view.asked_for("x.pth: give --set n_head=4 and --set moe_k=1") == ["n_head", "moe_k"]
    assert import_view.asked_for("x.pth: n_heads and no such thing") == []


def test_commands_are_one_word_a_value() -> None:
    given = import_view.command("/a b/old.pth", "mine", "/v.txt", {"n_head": 4})
    assert shlex.split(given) == [
        "dgsgpt", "import", "/a b/old.pth", "mine", "--vocab", "/v.txt", "--set", "n_head=4"
    ]  # fmt: skip
    said = words_view.command("r@1", Annotation(star=True, tags=("a b", "c"), note="x\ny", name="$(rm -rf)"))
    assert shlex.split(said) == [
        "dgsgpt", "annotate", "r@1", "--star", "--name", "$(rm -rf)", "--tag", "a b", "--tag", "c", "--note", "x\ny"
    ]  # fmt: skip


def test_tags_change_by_what_came_and_what_went() -> None:
    assert words_view.tag_changes(("a", "b"), ["b", "c"]) == {"add_tags": ["c"], "remove_tags": ["a"]}
    assert words_view.tag_changes(("a",), ["a"]) == {}
