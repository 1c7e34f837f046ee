"""Batches are a pure function of (seed, step), visit every window once an epoch, and need no replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dgsgpt.config import DataConfig, TokenizerConfig
from dgsgpt.data import prepare
from dgsgpt.data.dataset import Dataset
from dgsgpt.data.loader import IGNORED, Batches, val_windows, windows
from dgsgpt.errors import DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("sets")
    text = root / "text.txt"
    text.write_text("".join(f"{i * i} and {i}\n" for i in range(300)))
    return prepare.prepare(DataConfig(corpus=str(text), tokenizer=TokenizerConfig(kind="char")), 8, root)


def batches(dataset: Dataset, seed: int = 7, batch_size: int = 6, block_size: int = 32) -> Batches:
    return Batches(dataset, block_size=block_size, batch_size=batch_size, seed=seed)


def test_targets_follow_inputs_in_the_text(dataset: Dataset) -> None:
    text = dataset.tokenizer.decode(dataset.tokens("train").tolist())
    x, y, documents = batches(dataset).get(3)
    assert documents is None
    assert x.shape == y.shape == (6, 32)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    for row, target in zip(x, y, strict=True):
        assert dataset.tokenizer.decode([*row.tolist(), int(target[-1])]) in text


def test_restarting_mid_epoch_gives_the_same_batches_across_epochs(dataset: Dataset) -> None:
    whole = batches(dataset)
    assert whole.windows % whole.batch_size != 0
    steps = 3 * whole.windows // whole.batch_size + 5
    reference = [whole.get(step) for step in range(steps)]
    for start in (1, 57 % steps, whole.windows // whole.batch_size, steps - 1):
        resumed = batches(dataset)
        for step in range(start, steps):
            assert torch.equal(reference[step].inputs, resumed.get(step).inputs)
            assert torch.equal(reference[step].targets, resumed.get(step).targets)


def test_order_of_asking_does_not_matter(dataset: Dataset) -> None:
    a, b = batches(dataset), batches(dataset)
    later = b.get(40)
    assert torch.equal(a.get(2).inputs, b.get(2).inputs)
    assert torch.equal(a.get(40).inputs, later.inputs)


def test_every_epoch_visits_every_window_once_in_its_own_order(dataset: Dataset) -> None:
    loader = batches(dataset, batch_size=5)
    rows = [row for step in range(2 * loader.windows // 5 + 1) for row in loader.get(step).inputs.tolist()]
    tokens = dataset.tokens("train")
    expected = sorted(tokens[i * 32 : (i + 1) * 32].tolist() for i in range(loader.windows))
    first, second = rows[: loader.windows], rows[loader.windows : 2 * loader.windows]
    assert sorted(first) == sorted(second) == expected
    assert first != second


def test_seeds_differ(dataset: Dataset) -> None:
    assert not torch.equal(batches(dataset, 1).get(0).inputs, batches(dataset, 2).get(0).inputs)


def test_a_batch_larger_than_an_epoch_is_filled_from_the_next_epochs(dataset: Dataset) -> None:
    loader = batches(dataset, batch_size=1000)
    assert loader.windows < 500
    assert loader.get(0).inputs.shape == (1000, 32)
    assert loader.epoch(1) == pytest.approx(1000 / loader.windows)


def test_a_split_of_just_one_window_serves(dataset: Dataset) -> None:
    size = dataset.val_tokens - 1
    x, y, _ = Batches(dataset, "val", block_size=size, batch_size=2, seed=0).get(9)
    assert x[0].tolist() == dataset.tokens("val")[:-1].tolist()
    assert y[1].tolist() == dataset.tokens("val")[1:].tolist()
    with pytest.raises(DataError, match=f"block_size={size + 1} needs {size + 2}"):
        Batches(dataset, "val", block_size=size + 1, batch_size=2, seed=0)


def test_a_dataset_is_opened_by_path(dataset: Dataset) -> None:
    assert torch.equal(
        Batches(dataset.path, block_size=8, batch_size=2, seed=0).get(0).inputs,
        Batches(str(dataset.path), block_size=8, batch_size=2, seed=0).get(0).inputs,
    )
    with pytest.raises(DataError, match="not a prepared dataset"):
        Batches(Path("nowhere"), block_size=8, batch_size=2, seed=0)
    with pytest.raises(DataError, match="must be train or val"):
        Batches(dataset, "test", block_size=8, batch_size=2, seed=0)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 17, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_windows_predict_every_token_but_the_first_once(length: int, batch_size: int) -> None:
    tokens = np.arange(100, 100 + length, dtype=np.uint16)
    predicted: list[int] = []
    for (x, y, documents), count in windows(tokens, 8, batch_size=batch_size):
        assert documents is None
        real = y != IGNORED
        assert count == int(real.sum())
        assert torch.equal(x[real] + 1, y[real])
        predicted += y[real].tolist()
    assert predicted == tokens[1:].tolist()


@pytest.mark.parametrize("max_tokens", [1, 7, 8, 9, 20, 63, 98, 99, 500])
def test_a_budget_of_tokens_is_met_exactly_and_spread_over_the_text(max_tokens: int) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    predicted = [
        token
        for batch, _ in windows(tokens, 8, max_tokens, batch_size=2)
        for token in batch.targets[batch.targets != IGNORED].tolist()
    ]
    assert len(predicted) == len(set(predicted)) == min(max_tokens, 99)
    assert predicted == sorted(predicted)
    if max_tokens == 20:
        assert max(predicted) > 60


def test_val_windows_cover_the_validation_split(dataset: Dataset) -> None:
    total = sum(count for _, count in val_windows(dataset, 16, None))
    assert total == dataset.val_tokens - 1
    assert list(windows(np.zeros(1, np.uint16), 8)) == []
