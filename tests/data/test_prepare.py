"""Preparing: the token files hold exactly the text, are made once, whole or not at all, and errors are one line."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dgsgpt.config import DataConfig, RunConfig, TokenizerConfig, build_config
from dgsgpt.data import corpora, prepare
from dgsgpt.data.dataset import Dataset, token_dtype
from dgsgpt.errors import ConfigError, DataError

TEXT = "".join(f"Line {i}: the quick brown fox, naïve and 日本, jumps over {i * 7}.\n" for i in range(400))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "my text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def data(path: Path | str, kind: str = "bpe", vocab_size: int = 300, val_fraction: float = 0.1) -> DataConfig:
    tokenizer = TokenizerConfig(kind=kind, vocab_size=vocab_size)  # type: ignore[arg-type]
    return DataConfig(corpus=str(path), tokenizer=tokenizer, val_fraction=val_fraction)


def config(path: Path | str, kind: str, block_size: int = 32, vocab_size: int | None = None) -> RunConfig:
    return build_config(
        {
            "data": {"corpus": str(path), "tokenizer": {"kind": kind}},
            "model": {"block_size": block_size, "vocab_size": vocab_size},
        }
    )


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(dataset.path.iterdir())}


@pytest.mark.parametrize("kind", ["bpe", "char", "byte", "gpt2"])
def test_the_bins_decode_to_exactly_the_text(kind: str, text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text, kind), 16, tmp_path / "sets")
    train, val = (dataset.tokenizer.decode(dataset.tokens(s).tolist()) for s in ("train", "val"))
    assert train + val == TEXT
    assert train.endswith("\n")
    assert 0.08 < len(val) / len(TEXT) < 0.12
    assert (dataset.train_bytes, dataset.val_bytes) == (len(train.encode()), len(val.encode()))
    assert (dataset.train_tokens, dataset.val_tokens) == (len(dataset.tokens("train")), len(dataset.tokens("val")))
    assert dataset.meta["train_characters"] + dataset.meta["val_characters"] == len(TEXT)
    assert dataset.vocab_size == dataset.tokenizer.vocab_size
    assert dataset.tokenizer_kind == kind


def test_meta_names_what_it_was_made_from(text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text), 16, tmp_path / "sets")
    meta = json.loads((dataset.path / "meta.json").read_text())
    assert meta["source_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert meta["tokenizer_sha256"] == dataset.tokenizer.sha256
    for split in ("train", "val"):
        assert meta[f"{split}_sha256"] == hashlib.sha256((dataset.path / f"{split}.bin").read_bytes()).hexdigest()
    assert dataset.id.startswith("my-text-bpe300-")
    assert dataset.id.endswith(dataset.fingerprint[:12])
    assert meta["dtype"] == "uint16"
    dataset.verify()


def test_the_vocabulary_decides_how_wide_an_id_is() -> None:
    assert (token_dtype(65_536).name, token_dtype(65_537).name) == ("uint16", "uint32")


def test_bpe_learns_from_the_training_split_only(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("plain words here\n" * 200 + "zyzzyva zyzzyva\n" * 10)
    dataset = prepare.prepare(data(path), 16, tmp_path / "sets")
    learned = {dataset.tokenizer.token_bytes(i) for i in range(256, dataset.vocab_size)}
    assert not any(b"zy" in token for token in learned)


def test_a_second_call_finds_the_first_dataset(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare.prepare(data(text), 16, tmp_path / "sets")
    monkeypatch.setattr(prepare, "_build", lambda *a: pytest.fail("prepared twice"))
    assert prepare.prepare(data(text), 16, tmp_path / "sets").meta == first.meta
    assert [d.id for d in prepare.list_datasets(tmp_path / "sets")] == [first.id]


def test_preparing_again_elsewhere_gives_the_same_bytes(text: Path, tmp_path: Path) -> None:
    a, b = (contents(prepare.prepare(data(text), 16, tmp_path / name)) for name in ("a", "b"))
    assert {k: v for k, v in a.items() if k != "meta.json"} == {k: v for k, v in b.items() if k != "meta.json"}


def test_the_fingerprint_follows_text_tokenizer_and_split(text: Path, tmp_path: Path) -> None:
    root = tmp_path / "sets"
    made = [
        prepare.prepare(d, 16, root)
        for d in (data(text), data(text, "char"), data(text, vocab_size=310), data(text, val_fraction=0.2))
    ]
    text.write_text(TEXT + "One more line.\n", encoding="utf-8")
    made.append(prepare.prepare(data(text), 16, root))
    assert len({d.fingerprint for d in made}) == len({d.id for d in made}) == 5


def test_progress_rises_to_one(text: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    prepare.prepare(data(text), 16, tmp_path / "sets", lambda stage, share: seen.append((stage, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {"reading", "learning the vocabulary", "encoding"} <= {stage for stage, _ in seen}


def test_blocks_joined_from_chunks_change_no_id(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare.prepare(data(text, vocab_size=500), 16, tmp_path / "a")
    monkeypatch.setattr("dgsgpt.data.dataset._BLOCK_CHARACTERS", 500)
    pieces = prepare.prepare(data(text, vocab_size=500), 16, tmp_path / "b")
    assert np.array_equal(whole.tokens("train"), pieces.tokens("train"))
    assert np.array_equal(whole.tokens("val"), pieces.tokens("val"))


@pytest.mark.parametrize(("block_size", "split"), [(4000, "validation"), (100_000, "training")])
def test_a_split_shorter_than_the_context_is_refused_with_counts(
    block_size: int, split: str, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"{split} split has [\d,]+ tokens.*block_size={block_size}.*lower") as e:
        prepare.prepare(data(text, "byte"), block_size, tmp_path / "sets")
    assert "\n" not in str(e.value)
    with pytest.raises(DataError, match=f"{split} split"):
        prepare.resolve(config(text, "byte", block_size), tmp_path / "sets")


def test_the_context_may_be_one_less_than_the_split(text: Path, tmp_path: Path) -> None:
    tokens = prepare.prepare(data(text, "char"), 16, tmp_path / "sets").val_tokens
    assert prepare.prepare(data(text, "char"), tokens - 1, tmp_path / "sets").val_tokens == tokens
    assert prepare.resolve(config(text, "char", tokens - 1)).model.block_size == tokens - 1
    for call in (
        lambda: prepare.prepare(data(text, "char"), tokens, tmp_path / "sets"),
        lambda: prepare.resolve(config(text, "char", tokens)),
    ):
        with pytest.raises(DataError, match=f"lower model.block_size to {tokens - 1} or less"):
            call()


def test_resolve_fills_the_char_vocabulary_with_the_prepared_size(text: Path, tmp_path: Path) -> None:
    resolved = prepare.resolve(config(text, "char"))
    assert resolved.model.vocab_size == len(set(TEXT)) == prepare.prepare(data(text, "char"), 16, tmp_path).vocab_size
    given = config(text, "bpe")
    assert prepare.resolve(given) is given
    assert prepare.resolve(config(text, "char", vocab_size=500)).model.vocab_size == 500
    with pytest.raises(ConfigError, match=r"model\.vocab_size=5 is smaller"):
        prepare.resolve(config(text, "char", vocab_size=5))


def test_resolve_refuses_an_unusable_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a\0b")
    for name, expected in (("binary", "binary"), ("nowhere.txt", "no such text")):
        with pytest.raises(DataError, match=expected):
            prepare.resolve(config(tmp_path / name, "bpe"))


def test_a_prepared_dataset_can_be_named_by_id(text: Path, tmp_path: Path) -> None:
    made = prepare.prepare(data(text), 16, tmp_path)
    text.unlink()
    assert prepare.prepare(data(made.id), 16, tmp_path).meta == made.meta
    with pytest.raises(DataError, match=r"data\.tokenizer\.kind=bpe, not char"):
        prepare.prepare(data(made.id, "char"), 16, tmp_path)
    with pytest.raises(DataError, match=r"data\.tokenizer\.vocab_size=300, not 400"):
        prepare.prepare(data(made.id, vocab_size=400), 16, tmp_path)
    with pytest.raises(DataError, match=r"data\.val_fraction=0\.1, not 0\.2"):
        prepare.prepare(data(made.id, val_fraction=0.2), 16, tmp_path)


def test_damage_is_found_and_mended_from_the_text(text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text), 16, tmp_path)
    before = dataset.tokens("train").tolist()
    raw = bytearray((dataset.path / "train.bin").read_bytes())
    raw[10] ^= 1
    (dataset.path / "train.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"train\.bin.*sha256"):
        dataset.verify()
    (dataset.path / "train.bin").write_bytes(raw[:-2])
    with pytest.raises(DataError, match=r"train\.bin.*bytes, not"):
        prepare.open_dataset(dataset.path)
    assert prepare.list_datasets(tmp_path) == []
    assert prepare.prepare(data(text), 16, tmp_path).tokens("train").tolist() == before
    (dataset.path / "meta.json").write_text("{")
    assert prepare.prepare(data(text), 16, tmp_path).tokens("train").tolist() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp")] == []


def test_another_tokenizer_in_the_folder_is_refused(text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text), 16, tmp_path / "sets")
    prepare.prepare(data(text, "byte"), 16, tmp_path / "sets").tokenizer.save(dataset.path / "tokenizer.json")
    with pytest.raises(DataError, match="not the tokenizer of this dataset"):
        _ = prepare.open_dataset(dataset.path).tokenizer


@pytest.mark.parametrize("failing", ["os.fsync", "dgsgpt.data.prepare.write_json"])
def test_a_disk_error_leaves_no_half_dataset(
    failing: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = tmp_path / "sets"
    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises(
            DataError, match=r"sets: the dataset cannot be written: No space left on device; free space"
        ):
            prepare.prepare(data(text), 16, root)
    assert [p for p in root.iterdir() if p.is_dir()] == []
    assert prepare.prepare(data(text), 16, root).train_tokens > 0


def test_a_real_file_size_limit_is_reported(text: Path, tmp_path: Path) -> None:
    program = """
import resource, sys
from dgsgpt.config import DataConfig, TokenizerConfig
from dgsgpt.data import prepare
from dgsgpt.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    prepare.prepare(DataConfig(corpus=sys.argv[1], tokenizer=TokenizerConfig(kind="byte")), 16, sys.argv[2])
except DataError as e:
    print(e)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(text), str(tmp_path / "sets")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "the dataset cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [p for p in (tmp_path / "sets").iterdir() if p.is_dir()] == []


def test_what_a_killed_process_left_is_cleared(text: Path, tmp_path: Path) -> None:
    dataset = prepare.prepare(data(text), 16, tmp_path)
    for name in ("train.bin", "val.bin", "meta.json", "tokenizer.json"):
        (dataset.path / name).unlink()
    stale = tmp_path / f".tmp-{dataset.id}-dead"
    stale.mkdir()
    (stale / "train.bin").write_bytes(b"half")
    assert prepare.prepare(data(text), 16, tmp_path).id == dataset.id
    assert not stale.exists()


def _prepare_in_child(path: str, root: str) -> str:
    return prepare.prepare(data(path), 16, root).meta["created_at"]


def test_processes_that_prepare_at_once_make_it_once(text: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        made = pool.starmap(_prepare_in_child, [(str(text), str(tmp_path / "sets"))] * 3)
    assert len(set(made)) == 1


def test_the_folder_of_datasets_is_argument_then_variable_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGSGPT_DATASETS", "/from/variable")
    assert prepare.datasets_root("/given") == Path("/given")
    assert prepare.datasets_root() == Path("/from/variable")
    monkeypatch.delenv("DGSGPT_DATASETS")
    assert prepare.datasets_root() == Path("datasets")
    assert prepare.list_datasets("/nowhere") == []


def test_austen_has_its_documented_size(tmp_path: Path) -> None:
    dataset = prepare.prepare(DataConfig(), 256, tmp_path)
    assert dataset.vocab_size == 4096
    assert dataset.train_bytes + dataset.val_bytes == corpora.list_corpora()[0].bytes
    assert dataset.val_bytes / (dataset.train_bytes + dataset.val_bytes) == pytest.approx(0.1, abs=1e-3)
