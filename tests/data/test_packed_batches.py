"""Windows over many documents say which document each token is of, and copy nothing of the data."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.config import RunConfig, build_config
from dgsgpt.data import prepare
from dgsgpt.data.dataset import Dataset
from dgsgpt.data.loader import IGNORED, Batch, Batches, val_windows
from dgsgpt.model import GPT

UNREAD = {  # of meta.json, where only the training split is used
    "val_tokens": 0,
    "val_documents": 0,
    **{f"{split}_{kind}sha256": "" for split in ("train", "val") for kind in ("", "docs_")},
}


def written(folder: Path, tokens: list[int], lengths: list[int]) -> Dataset:
    """A dataset whose training split is `tokens`, in documents of these `lengths`."""
    np.array(tokens, "<u2").tofile(folder / "train.bin")
    np.array([0, *np.cumsum(lengths)[:-1]], "<u8").tofile(folder / "train.docs.bin")
    meta = {"dtype": "uint16", "document_separator": "x", "train_tokens": len(tokens), "train_documents": len(lengths)}
    return Dataset(folder, meta | UNREAD)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20).filter(lambda lengths: sum(lengths) > 8),
    block_size=st.integers(1, 8),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
    step=st.integers(0, 50),
)
def test_each_token_is_given_its_document_and_seed_and_step_decide_all(
    lengths: list[int], block_size: int, batch_size: int, seed: int, step: int
) -> None:
    number = np.repeat(np.arange(len(lengths)), lengths)
    with tempfile.TemporaryDirectory() as folder:
        dataset = written(Path(folder), list(range(len(number))), lengths)  # a token's id is its place
        again, batches = (Batches(dataset, block_size=block_size, batch_size=batch_size, seed=seed) for _ in range(2))
        again.get(step + 7)
        batch, same = batches.get(step), again.get(step)
    x, y, documents = batch
    assert documents is not None
    assert documents.dtype == torch.int64
    assert documents.shape == x.shape == y.shape == (batch_size, block_size)
    assert documents.tolist() == number[x.numpy()].tolist()
    assert torch.equal(y, x + 1)
    assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("max_tokens", [None, 25])
def test_windows_for_judging_carry_documents_too(tmp_path: Path, max_tokens: int | None) -> None:
    lengths = [3, 1, 20, 8, 9, 2]
    number = np.repeat(np.arange(len(lengths)), lengths)
    dataset = written(tmp_path, list(range(len(number))), lengths)
    predicted = 0
    for (x, y, documents), count in val_windows(dataset, 8, max_tokens, batch_size=2, split="train"):
        assert documents is not None
        real = y != IGNORED
        assert documents[real].tolist() == number[x[real].numpy()].tolist()
        assert (documents >= 0).all()
        predicted += count
    assert predicted == (max_tokens or len(number) - 1)


def pieces(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets [1, t] of each document's part of each row."""
    assert batch.documents is not None
    cut = []
    for x, y, documents in zip(batch.inputs, batch.targets, batch.documents, strict=True):
        sizes = torch.unique_consecutive(documents, return_counts=True)[1].tolist()
        cut += [(a[None], b[None]) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]
    return cut


def tiny(config: RunConfig, dataset: Dataset) -> GPT:
    torch.manual_seed(3)
    model = GPT(config.model.model_copy(update={"vocab_size": dataset.vocab_size}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.mark.parametrize("window", [None, {"size": 5, "pattern": "SL"}])
def test_the_loss_of_packed_windows_is_the_mean_over_their_documents_alone(
    window: dict[str, Any] | None, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("".join(f"A story, the {i}th.|{i * i} of {i}.|" for i in range(200)))
    data = {"corpus": str(tmp_path / "text.txt"), "tokenizer": {"kind": "char"}, "document_separator": "|"}
    model_values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "window": window}
    config = build_config({"data": data, "model": model_values})
    dataset = prepare.prepare(config.data, 32, tmp_path)
    model = tiny(config, dataset)
    batch = Batches(dataset, block_size=32, batch_size=6, seed=0).get(2)
    assert len(pieces(batch)) > 10
    losses = [(model(x, y).loss, y.numel()) for x, y in pieces(batch)]
    alone = sum(loss * n for loss, n in losses) / batch.targets.numel()
    packed = model(batch.inputs, batch.targets, documents=batch.documents).loss
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(batch.inputs, batch.targets).loss, packed, rtol=1e-3)
    weights = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(packed, weights), torch.autograd.grad(alone, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_batches_of_a_huge_dataset_copy_none_of_it(tmp_path: Path) -> None:
    tokens, documents = 5_000_000_000, 250_000_000  # 10 GB and 2 GB, both sparse: zeros that take no room on the disk
    with (tmp_path / "train.bin").open("wb") as f:
        f.truncate(2 * tokens)
    with (tmp_path / "train.docs.bin").open("wb") as f:
        f.truncate(8 * documents)
    program = f"""
import sys, tracemalloc
from pathlib import Path
from dgsgpt.data.dataset import Dataset
from dgsgpt.data.loader import Batches, val_windows
meta = {{"dtype": "uint16", "document_separator": "x", "train_tokens": {tokens}, "train_documents": {documents}}}
dataset = Dataset(Path(sys.argv[1]), meta | {UNREAD!r})
tracemalloc.start()
batches = Batches(dataset, block_size=16384, batch_size=4, seed=0)
assert all(batches.get(step).documents is not None for step in (0, 70_000, 10**9))
del batches
assert next(val_windows(dataset, 16384, 10**6, batch_size=4, split="train"))[1] == 4 * 16384
print(tracemalloc.get_traced_memory()[1])
"""
    limit = 20 << 30  # of address space: room for the maps, not for a copy of the ids

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=confine,
        timeout=120,
    )
    windows = tokens // 16384
    assert int(done.stdout) < 2 * 8 * windows + 16e6  # two epochs' orders and a few batches
