import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dgsgpt.config import ModelConfig, RunConfig, build_config, layer_windows
from dgsgpt.costs import RUNTIME_BYTES, count_buffers, count_flops_per_token, count_params
from dgsgpt.model import GPT
from dgsgpt.planner import plan, remedies, verdict
from tests.tracker import GPT2, MEASURED, live_peak, track

GB = 10**9


def run_config(*, train: dict[str, Any] | None = None, kind: str = "byte", **model: Any) -> RunConfig:
    small = {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "block_size": 128}
    return build_config(
        {
            "data": {"tokenizer": {"kind": kind}},
            "model": {**small, **model},
            "train": {"micro_batch_size": 8, **(train or {})},
        }
    )


# ---------------------------------------------------------------- parameters
@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    kv, group, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 8]))
    layers, experts = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    moe = {
        "n_expert": experts,
        "n_expert_per_token": draw(st.integers(1, experts)),
        "n_shared_expert": draw(st.integers(0, 2)),
        "every": draw(st.integers(1, layers)),
        "expert_hidden": draw(st.sampled_from([None, 7, 16])),
        "capacity_factor": draw(st.sampled_from([None, 1.0])),
        "dense_residual": draw(st.booleans()),
        "balance": draw(st.sampled_from(["aux_loss", "bias"])),
    }
    return ModelConfig.model_validate(
        {
            "n_layer": layers,
            "n_head": kv * group,
            "n_kv_head": kv,
            "n_embd": kv * group * width,
            "block_size": draw(st.integers(1, 64)),
            "vocab_size": draw(st.integers(2, 300)),
            "bias": draw(st.booleans()),
            "norm": draw(st.sampled_from(["rmsnorm", "layernorm"])),
            "mlp": draw(st.sampled_from(["gelu", "relu", "relu2", "swiglu"])),
            "mlp_hidden": draw(st.sampled_from([None, 11, 24])),
            "qk_norm": draw(st.booleans()),
            "tie_embeddings": draw(st.booleans()),
            "rope": draw(st.sampled_from([None, {"theta": 10_000.0}])),
            "positions": draw(st.sampled_from(["learned", "none"])),
            "value_residual": draw(st.booleans()),
            "x0_shortcut": draw(st.booleans()),
            "moe": draw(st.sampled_from([None, moe])),
        }
    )


@given(config=model_configs())
@settings(max_examples=150, deadline=None)
def test_parameters_equal_those_of_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = GPT(config)
    assert count_params(config) == sum(p.numel() for p in model.parameters())
    assert count_buffers(config) == sum(b.numel() for b in model.buffers())
    idle = 0
    if config.moe:
        share = config.moe.n_expert - config.moe.n_expert_per_token
        idle = sum(p.numel() // config.moe.n_expert * share for n, p in model.named_parameters() if "experts." in n)
    assert count_params(config, active=True) == count_params(config) - idle


def test_an_unread_char_vocabulary_counts_as_128() -> None:
    unread = run_config(kind="char")
    assert unread.model.vocab_size is None
    assert plan(unread).params == plan(run_config(kind="char", vocab_size=128)).params


# ---------------------------------------------------------------- arithmetic
def counted_flops(config: ModelConfig) -> int:
    """Forward and backward FLOPs per token as torch counts them, its attention apart."""
    model = GPT(config)
    tokens = torch.zeros(1, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    matrix = {"mm", "addmm", "bmm"}
    total = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op).split(".")[-1] in matrix)
    return total // config.block_size


def test_matrix_flops_equal_those_torch_counts() -> None:
    for changes in ({}, {"mlp": "gelu"}, {"tie_embeddings": False, "n_kv_head": 1}):
        config = run_config(**changes).model
        attention = 12 * config.n_embd * config.block_size * config.n_layer
        assert count_flops_per_token(config) - attention == counted_flops(config)


def test_a_sliding_layer_costs_its_window_and_an_expert_only_where_it_is_used() -> None:
    full, sliding = run_config().model, run_config(window={"size": 32, "pattern": "SL"}).model
    assert layer_windows(sliding) == [(32,), (None,), (32,), (None,)]
    assert count_flops_per_token(full) - count_flops_per_token(sliding) == 2 * 12 * 64 * (128 - 32)
    both = run_config(window={"size": 32, "pattern": "B"}).model  # half of the heads of each layer, not all of half
    assert count_flops_per_token(both) == count_flops_per_token(sliding)
    few = run_config(moe={"n_expert": 4, "n_expert_per_token": 2}).model
    many = run_config(moe={"n_expert": 8, "n_expert_per_token": 2}).model
    assert count_flops_per_token(many) - count_flops_per_token(few) == 6 * 4 * (4 * 64)  # the wider router alone


def test_the_runs_arithmetic_is_per_token_times_tokens() -> None:
    priced = plan(run_config(train={"steps": 200, "micro_batch_size": 3, "grad_accum_steps": 2}))
    assert priced.total_tokens == 200 * 3 * 2 * 128
    assert priced.train_flops == priced.flops_per_token * priced.total_tokens


@pytest.mark.parametrize("pattern", [None, "S", "SL", "B", "SSB"])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("size", [1, 32, 128])
def test_cache_bytes_equal_the_caches(pattern: str | None, n_kv_head: int, size: int) -> None:
    window = {"size": size, "pattern": pattern} if pattern else None
    config = run_config(n_kv_head=n_kv_head, window=window)
    cache = GPT(config.model).make_cache(1, 128)
    assert plan(config).kv_bytes_per_token == round(cache.n_bytes / 128)


# ---------------------------------------------------------------- memory
COMBINATIONS = [(mode, precision) for precision in ("fp32", "bf16") for mode in ("none", "full", "selective")]


def measured_config(model: dict[str, Any], mode: str, precision: str) -> RunConfig:
    settings = {"micro_batch_size": 24, "precision": precision, "gradient_checkpointing": mode}
    model = {"n_layer": 2, **model}
    return run_config(kind="char", **{"vocab_size": 256, **model, "train": {**settings, **model.get("train", {})}})


def cases() -> list[Any]:
    """The six combinations of mode and precision in turn: every other config in two of them, the large one in one."""
    chosen = [(name, COMBINATIONS[(i + 3 * j) % 6]) for i, name in enumerate(MEASURED) for j in range(2 - i % 2)]
    chosen.append(("gpt2", ("none", "fp32")))
    return [pytest.param(name, *combination, id="-".join((name, *combination))) for name, combination in chosen]


@pytest.mark.parametrize(("name", "mode", "precision"), cases())
def test_planned_memory_is_that_of_the_memory_tracker(name: str, mode: str, precision: str) -> None:
    """Within 5 % of torch's tracker.

    The largest deviation seen among these configs, each in all six combinations, was 1.9 % (the median 0.001 %);
    among 320 random ones, most of them tiny, 5.0 %.
    """
    config = measured_config(GPT2 if name == "gpt2" else MEASURED[name], mode, precision)
    priced, tracked = plan(config, "cpu"), track(config)
    memory = priced.memory
    assert priced.total_bytes - RUNTIME_BYTES == pytest.approx(tracked["Total"], rel=0.05)
    assert memory["weights"] == tracked["Parameter"] + tracked["Buffer"]
    assert memory["optimizer"] == pytest.approx(tracked["Optstate"], rel=0.001)  # it also counts its steps
    # The tracker calls a gradient one when it has arrived, and all that comes from a forward pass an activation.
    passing = sum(tracked[kind] for kind in ("Gradient", "Activation", "Temp"))
    planned = sum(memory[part] for part in ("gradients", "activations", "logits", "workspace")) - RUNTIME_BYTES
    assert planned == pytest.approx(passing, rel=0.1)
    assert memory["activations"] <= 1.05 * tracked["Activation"]


@pytest.mark.parametrize("name", ["llama", "both", "shared", "experts", "accumulated"])
def test_the_tracker_sees_with_fake_tensors_what_real_ones_take(name: str) -> None:
    config = measured_config({**MEASURED[name], "block_size": 96}, "selective", "fp32")
    assert track(config)["Total"] == live_peak(config)


def test_checkpointing_and_accumulation_show_in_the_plan() -> None:
    none, selective, full = (
        plan(run_config(train={"gradient_checkpointing": mode, "micro_batch_size": 32})).memory["activations"]
        for mode in ("none", "selective", "full")
    )
    assert full < selective < none
    once, twice = (plan(run_config(train={"grad_accum_steps": n, "micro_batch_size": 32})) for n in (1, 2))
    # At the loss, the highest moment of both, gradients are there only from micro-batches before.
    assert once.memory["gradients"] == 0
    assert twice.memory["gradients"] == 4 * twice.params


def test_weights_and_optimizer_are_twelve_bytes_to_a_parameter() -> None:
    priced = plan(run_config())
    assert priced.memory["weights"] + priced.memory["optimizer"] == 12 * priced.params
    assert set(priced.memory) == {"weights", "gradients", "optimizer", "activations", "logits", "workspace"}
    assert priced.total_bytes == sum(priced.memory.values())
    assert all(isinstance(n, int) for n in priced.memory.values())
    balanced = plan(run_config(moe={"n_expert": 4, "balance": "bias"}))
    assert balanced.memory["weights"] == 4 * balanced.params + 4 * 4 * 4  # a bias for each expert of each layer


def test_the_device_settles_automatic_precision() -> None:
    automatic = run_config()
    assert plan(automatic, "cuda").memory == plan(run_config(train={"precision": "bf16"}), "cuda").memory
    assert plan(automatic, "cpu").memory == plan(run_config(train={"precision": "fp32"})).memory


# ---------------------------------------------------------------- remedies
@pytest.mark.parametrize(
    ("need", "expected"), [(94, "fits"), (95, "fits"), (96, "tight"), (100, "tight"), (101, "over")]
)
def test_verdict_is_tight_with_less_than_five_percent_to_spare(need: int, expected: str) -> None:
    assert verdict(need, 100) == expected


LARGE: dict[str, Any] = {"n_layer": 12, "n_head": 12, "n_kv_head": 12, "n_embd": 768, "block_size": 1024}


@given(
    share=st.floats(0.01, 1.0),
    micro_batch=st.integers(1, 48),
    mode=st.sampled_from(["none", "full", "selective"]),
    changes=st.sampled_from([{}, {"window": {"size": 512, "pattern": "SL"}}, {"moe": {"n_expert": 4}}]),
)
@settings(max_examples=40, deadline=None)
def test_every_remedy_saves_what_it_says(share: float, micro_batch: int, mode: str, changes: dict[str, Any]) -> None:
    config = run_config(**{**LARGE, **changes}, train={"micro_batch_size": micro_batch, "gradient_checkpointing": mode})
    need = plan(config, "cuda").total_bytes
    free = int(share * need)
    for remedy in remedies(config, free, "cuda"):
        overrides = [f"{k}={v}" for k, v in remedy.overrides.items()]
        values = config.to_dict()
        for path, value in remedy.overrides.items():
            *sections, leaf = path.split(".")
            target = values
            for section in sections:
                target = target[section]
            assert target[leaf] != value, overrides
            target[leaf] = value
        eased = build_config(values)
        assert remedy.saved_bytes == need - plan(eased, "cuda").total_bytes > 0
        if "model.block_size" not in remedy.overrides:
            assert eased.tokens_per_step == config.tokens_per_step


def test_a_config_that_fits_needs_no_remedy() -> None:
    assert remedies(run_config(), 100 * GB) == []


def test_remedies_that_suffice_come_first_and_the_context_last_of_them() -> None:
    config = run_config(**LARGE, train={"micro_batch_size": 32})
    need = plan(config).total_bytes
    free = need // 3
    offered = remedies(config, free)
    enough = [verdict(need - r.saved_bytes, free) == "fits" for r in offered]
    assert enough == sorted(enough, reverse=True)
    context = [("model.block_size" in r.overrides) for r, fits in zip(offered, enough, strict=True) if fits]
    assert context == sorted(context)
    assert len(context) >= 2


def test_full_recomputing_costs_less_than_a_third_more() -> None:
    offered = remedies(run_config(**LARGE, train={"micro_batch_size": 32}), 10 * GB)
    full = next(r for r in offered if r.overrides == {"train.gradient_checkpointing": "full"})
    assert full.time_ratio is not None
    assert 1.2 < full.time_ratio < 4 / 3


def test_remedies_are_joined_where_none_suffices_alone() -> None:
    config = run_config(**LARGE, vocab_size=50_304, train={"micro_batch_size": 32})
    free = int(1.02 * (plan(run_config(**LARGE, vocab_size=50_304, train={
        "micro_batch_size": 1, "gradient_checkpointing": "full"})).total_bytes / 0.95))  # fmt: skip
    best = remedies(config, free)[0]
    assert set(best.overrides) == {
        "train.gradient_checkpointing",
        "train.micro_batch_size",
        "train.grad_accum_steps",
    }
    assert best.label == "Full gradient checkpointing and micro-batch 1 with 32 accumulation steps"


def test_planning_does_not_import_torch() -> None:
    code = "import sys, dgsgpt.planner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
