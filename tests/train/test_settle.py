"""What `auto` becomes: decided by measurements, which are given here, and never at the cost of what trying touches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dgsgpt.config import RunConfig
from dgsgpt.data.loader import Batches
from dgsgpt.data.prepare import prepare
from dgsgpt.model import GPT
from dgsgpt.train import settle as module
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.settle import Settled, recall, settle

Make = Callable[..., RunConfig]
CPU = torch.device("cpu")


def decide(config: RunConfig, free_bytes: int = 2**33) -> tuple[Settled, GPT]:
    torch.manual_seed(3)
    model = GPT(config.model)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)
    dataset = prepare(config.data, config.model.block_size)

    def batches(size: int) -> Batches:
        return Batches(dataset, "train", block_size=config.model.block_size, batch_size=size, seed=1)

    return settle(config, model, batches, CPU, free_bytes), model


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of a pass in each precision, eager and compiled, in place of the clock; compiling is only noted."""
    times = {"fp32": 1.0, "bf16": 0.5, "compiled": 0.4, "passes": 0}
    state = {"compiled": False}

    def once(self: object, precision: str) -> float:
        times["passes"] += 1
        return times["compiled" if state["compiled"] else precision]

    def compile_blocks(model: GPT) -> str | None:
        state["compiled"] = True
        return None

    def uncompile_blocks(model: GPT) -> None:
        state["compiled"] = False

    monkeypatch.setattr(module._Probe, "once", once)
    monkeypatch.setattr(module, "compile_blocks", compile_blocks)
    monkeypatch.setattr(module, "uncompile_blocks", uncompile_blocks)
    monkeypatch.setattr(module, "has_native_bf16", lambda device: True)
    monkeypatch.setattr(module, "SHORT_RUN_FLOPS", 0.0)
    return times


def test_a_short_run_tries_nothing(make_config: Make) -> None:
    settled, _ = decide(make_config())
    assert (settled.precision, settled.compile) == ("fp32", "off")
    assert settled.why[-1] == "compile off: the run is too short to win it back"


def test_bf16_is_taken_where_it_is_faster(make_config: Make, measured: dict[str, float]) -> None:
    settled, _ = decide(make_config())
    assert settled.precision == "bf16"
    assert settled.why[0] == "bf16: 2.00 times as fast as fp32 in a trial"
    measured["bf16"] = 0.99
    settled, _ = decide(make_config())
    assert settled.precision == "fp32"
    assert settled.why[0] == "fp32: bf16 was 1.01 times as fast in a trial"


def test_emulated_bf16_is_never_tried(
    make_config: Make, measured: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_native_bf16", lambda device: False)
    settled, _ = decide(make_config(**{"train.compile": "off"}))
    assert settled.precision == "fp32"
    assert measured["passes"] == 0


def test_compiling_is_for_runs_that_win_it_back(make_config: Make, measured: dict[str, float]) -> None:
    long = make_config(**{"train.steps": 1000})
    settled, _ = decide(long)
    assert settled.compile == "on"
    assert settled.why[-1] == "compile on: 1.25 times as fast in a trial"
    measured["compiled"] = 0.5
    assert decide(long)[0].compile == "off"
    measured["compiled"] = 0.4
    settled, _ = decide(make_config(**{"train.steps": 20}))
    assert settled.compile == "off"
    assert "would not win it back" in settled.why[-1]


def test_without_a_compiler_blocks_stay_eager_and_one_line_says_so(
    make_config: Make, measured: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compile_blocks", lambda model: "torch.compile does not work on this cpu: no compiler")
    settled, _ = decide(make_config(**{"train.steps": 1000}))
    assert settled.compile == "off"
    assert settled.why[-1] == "compile off: torch.compile does not work on this cpu: no compiler"


def test_what_is_set_is_kept(make_config: Make, measured: dict[str, float]) -> None:
    settled, _ = decide(make_config(**{"train.precision": "fp16", "train.compile": "off"}))
    assert (settled.precision, settled.compile, settled.why) == ("fp16", "off", ())
    assert measured["passes"] == 0
    assert decide(make_config(**{"train.weight_precision": "bf16"}))[0].precision == "bf16"


def test_trying_leaves_weights_gradients_and_randomness_as_they_were(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT_RUN_FLOPS", 0.0)
    monkeypatch.setattr(module, "has_native_bf16", lambda device: True)
    monkeypatch.setattr(module, "PROBE_S", 0.0)
    config = make_config(**{"model.dropout": 0.2, "model.moe": {"n_expert": 4, "balance": "bias"}})
    torch.manual_seed(3)
    fresh = GPT(config.model)
    expected, random = fresh.state_dict(), torch.get_rng_state()
    settled, model = decide(config)
    assert "trial" in settled.why[0]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_trying_to_compile_leaves_the_blocks_as_they_were(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_RUN_FLOPS", 0.0)
    monkeypatch.setattr(module, "LONG_RUN_S", 0.0)
    monkeypatch.setattr(module, "PROBE_S", 0.0)
    changes = {"train.precision": "fp32", "model.moe": {"n_expert": 4}, "train.gradient_checkpointing": "full"}
    config = make_config(**changes)
    settled, model = decide(config)
    assert "trial" in settled.why[-1]
    x = torch.randint(256, (2, 32))
    torch.manual_seed(3)
    fresh = GPT(config.model)
    apply_gradient_checkpointing(fresh, "full")
    model(x, x).loss.backward()
    fresh(x, x).loss.backward()
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_the_largest_micro_batch_that_fits_keeps_the_batch(make_config: Make) -> None:
    config = make_config(**{"train.micro_batch_size": 2, "train.grad_accum_steps": 12, "train.fit_micro_batch": True})
    settled, _ = decide(config)
    assert (settled.micro_batch_size, settled.grad_accum_steps) == (24, 1)
    assert "micro-batch 24 of 24: the largest that fits 8.0 GiB free" in settled.why[0]
    tight, _ = decide(config, free_bytes=1)
    assert (tight.micro_batch_size, tight.grad_accum_steps) == (1, 24)


def test_a_gpu_that_runs_out_of_memory_tries_less(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**{"train.micro_batch_size": 12, "train.fit_micro_batch": True})
    sizes: list[int] = []

    class Tight:
        def __init__(self, model: GPT, size: int, device: torch.device) -> None:
            self.size = size

        def once(self, precision: str) -> float:
            sizes.append(self.size)
            if self.size > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 1.0

    monkeypatch.setattr(module, "_Probe", Tight)
    monkeypatch.setattr(module, "largest_micro_batch", lambda *_: 12)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    kept: list[torch.device] = []

    @contextmanager
    def unchanged_random(device: torch.device) -> Iterator[None]:
        kept.append(device)
        yield

    monkeypatch.setattr(module, "_unchanged_random", unchanged_random)
    start = Settled("bf16", "off", 12, 1)
    settled = module._fit_micro_batch(start, config, None, lambda size: size, torch.device("cuda"), 2**30)  # type: ignore[arg-type]
    assert sizes == [12, 6, 4]
    assert len(kept) == 3
    assert (settled.micro_batch_size, settled.grad_accum_steps) == (4, 3)
    assert settled.why[0].endswith("(tried in vain: 12, 6)")


def test_a_run_recalls_what_it_settled(tmp_path: Path) -> None:
    settled = Settled("bf16", "on", 4, 3, ("bf16: because",))
    assert recall({"settled": settled.to_dict()}) == settled
    assert recall({}) is None
