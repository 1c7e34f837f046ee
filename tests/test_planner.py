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
from dgsgpt.fitting import override
from dgsgpt.model import GPT
from dgsgpt.planner import CHECKPOINT_EXTRA_BYTES, fit, largest_micro_batch, naive, plan, remedies, verdict
from dgsgpt.train.optim import build_updates
from dgsgpt.train.update_rules import state_parts
from dgsgpt.train.weights import store_weights
from dgsgpt.update_groups import list_weights, state_bytes, update_groups, weight_bytes
from tests.tracker import GPT2, MEASURED, fake_peak, live_peak, track

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
        "bias": draw(st.booleans()),
    }
    moe["after_dense"] = not moe["dense_residual"] and draw(st.booleans())
    tied = draw(st.booleans())
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
            "tie_embeddings": tied,
            "head_size": draw(st.sampled_from([None, 2, 6])),
            "qkv_bias": draw(st.sampled_from(["same", "with", "without"])),
            "head_bias": not tied and draw(st.booleans()),
            "rope": draw(st.sampled_from([None, {"theta": 10_000.0}])),
            "positions": draw(st.sampled_from(["learned", "none"])),
            "value_residual": draw(st.booleans()),
            "x0_shortcut": draw(st.booleans()),
            "moe": draw(st.sampled_from([None, moe])),
            "ngram": draw(st.sampled_from([None, {"max_order": 4, "rows": 300}])),
        }
    )


@given(config=model_configs())
@settings(max_examples=150, deadline=None)
def test_parameters_equal_those_of_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = GPT(config)
    assert count_params(config) == sum(p.numel() for p in model.parameters())
    assert dict(list_weights(config)) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert count_buffers(config) == sum(b.numel() for b in model.buffers())
    idle = 0
    if config.moe:
        share = config.moe.n_expert - config.moe.n_expert_per_token
        idle = sum(p.numel() // config.moe.n_expert * share for n, p in model.named_parameters() if "experts." in n)
    idle += sum(p.numel() - config.n_embd for n, p in model.named_parameters() if n.startswith("ngram."))
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
    for changes in ({}, {"mlp": "gelu"}, {"tie_embeddings": False, "n_kv_head": 1}, {"head_size": 24}):
        config = run_config(**changes).model
        attention = 12 * config.n_head * config.head_dim * config.block_size * config.n_layer
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
    if model.get("train", {}).get("weight_precision") == "bf16":
        settings["precision"] = "bf16"  # the only one that goes with it
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

    The largest deviation seen among these configs, each in all its combinations (267 cases), was 3.8 %, the median
    0.001 %: in full mode, where the tracker holds on to what real steps let go (see `fake_peak`). Of the 188 with
    AdamW in float32 alone it was 2.4 %; among 320 random ones of that kind, most of them tiny, 5.0 %. The eight with
    biases, experts after a dense network or heads of a width of their own came later: 3.1 % in all their combinations.
    """
    config = measured_config(GPT2 if name == "gpt2" else MEASURED[name], mode, precision)
    priced, tracked = plan(config, "cpu"), track(config)
    memory = priced.memory
    assert priced.total_bytes - RUNTIME_BYTES == pytest.approx(tracked["Total"], rel=0.05)
    assert memory["weights"] == tracked["Parameter"] + tracked["Buffer"]
    # What an optimizer uses while it works, and its steps, are state to the tracker, too.
    assert memory["optimizer"] <= tracked["Optstate"] + tracked["Other"]
    # The tracker calls a gradient one when it has arrived, and all that comes from a forward pass an activation.
    passing = tracked["Total"] - memory["weights"] - memory["optimizer"]
    planned = sum(memory[part] for part in ("gradients", "activations", "logits", "workspace")) - RUNTIME_BYTES
    assert planned == pytest.approx(passing, rel=0.1)
    assert memory["activations"] <= 1.05 * tracked["Activation"]


@pytest.mark.parametrize("name", ["llama", "both", "shared", "experts", "accumulated"])
def test_the_tracker_sees_with_fake_tensors_what_real_ones_take(name: str) -> None:
    config = measured_config({**MEASURED[name], "block_size": 96}, "selective", "fp32")
    assert track(config)["Total"] == live_peak(config)


@pytest.mark.parametrize("train", [{}, {"weight_precision": "bf16", "optimizer": "adafactor", "grad_accum_steps": 2}])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_planned_memory_of_deep_models_is_what_real_tensors_take(mode: str, train: dict[str, Any]) -> None:
    config = measured_config({"n_layer": 8, "block_size": 256, "train": {"micro_batch_size": 2, **train}}, mode, "bf16")
    peak = live_peak(config)
    assert fake_peak(config) == peak
    assert plan(config, "cpu").total_bytes - RUNTIME_BYTES == pytest.approx(peak, rel=0.01)


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


def test_weights_in_bf16_take_half_but_for_vectors_and_routers() -> None:
    config = run_config(moe={"n_expert": 4}, train={"weight_precision": "bf16"})
    model = GPT(config.model.model_copy(update={"vocab_size": 256}))
    store_weights(model, "bf16")
    assert plan(config).memory["weights"] == sum(p.nbytes for p in model.parameters())
    assert plan(config, "cpu").memory == plan(run_config(moe={"n_expert": 4}, train={
        "weight_precision": "bf16", "precision": "bf16"}), "cpu").memory  # fmt: skip


def test_half_precision_of_either_kind_takes_the_same() -> None:
    fp16, bf16 = (plan(run_config(train={"precision": kind})) for kind in ("fp16", "bf16"))
    assert fp16.memory == bf16.memory


UPDATES: list[dict[str, Any]] = [
    {},
    {"optimizer": "muon", "lr": 2e-3, "muon_lr": 0.03},
    {"optimizer": "adafactor", "weight_decay": 0.2},
    {"weight_precision": "bf16"},
    {"weight_precision": "bf16", "optimizer": "muon"},
    {"weight_precision": "bf16", "optimizer": "adafactor"},
    {"optimizer": "adafactor", "optimizer_in_backward": True, "grad_clip": None},
]


@pytest.mark.parametrize("train", UPDATES, ids=lambda train: "-".join(str(v) for v in train.values()) or "adamw")
@pytest.mark.parametrize(
    "changes",
    [
        {"bias": True, "norm": "layernorm", "rope": None, "tie_embeddings": False},
        {"moe": {"n_expert": 4, "n_shared_expert": 1, "every": 2}, "qk_norm": True, "x0_shortcut": True},
        {"ngram": {"max_order": 3, "rows": 512}, "n_kv_head": 1},
        {
            "moe": {"n_expert": 4, "bias": True, "after_dense": True},
            "head_size": 24,
            "qkv_bias": "with",
            "tie_embeddings": False,
            "head_bias": True,
        },
    ],
    ids=["plain", "experts", "ngram", "biases"],
)
def test_groups_and_states_are_those_the_trainer_builds(train: dict[str, Any], changes: dict[str, Any]) -> None:
    config = run_config(**changes, vocab_size=256, train=train)
    model = GPT(config.model)
    store_weights(model, config.train.weight_precision)
    updates = build_updates(model, config.train)
    real = [(g.name, g.rule, g.lr, g.weight_decay, g.numbers) for g in updates.groups]
    assert [tuple(group) for group in update_groups(config)] == real
    state = {name: t.nbytes for name, t in updates.tensors().items() if not name.startswith(("step.", "rounding."))}
    assert state_bytes(config) == sum(state.values())
    assert weight_bytes(config) == sum(p.nbytes for p in model.parameters())
    stored = plan(config).checkpoint_bytes - CHECKPOINT_EXTRA_BYTES
    assert stored == sum(state.values()) + sum(t.nbytes for t in model.state_dict().values())


def test_eight_bit_states_are_those_of_torchao() -> None:
    optim = pytest.importorskip("torchao.optim")
    config = run_config(vocab_size=256, train={"optimizer": "adamw8bit"})
    total = 0
    for weight in list_weights(config.model):
        parameter = torch.nn.Parameter(torch.zeros(weight.shape))
        optimizer = optim.AdamW8bit([parameter])
        for moment in (optimizer._new_buffer(parameter, True), optimizer._new_buffer(parameter, False)):
            total += sum(part.nbytes for _, part in state_parts("", moment))
    assert state_bytes(config) == total


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
        if not {"model.block_size", "train.optimizer_in_backward"} & set(remedy.overrides):
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
    smallest = {"micro_batch_size": 1, "grad_accum_steps": 32, "gradient_checkpointing": "full"}
    free = int(1.001 * plan(run_config(**LARGE, vocab_size=50_304, train=smallest)).total_bytes / 0.95)
    best = remedies(config, free)[0]
    assert set(best.overrides) == {
        "train.gradient_checkpointing",
        "train.micro_batch_size",
        "train.grad_accum_steps",
    }
    size = best.overrides["train.micro_batch_size"]
    assert size <= 2
    assert best.label == f"Full gradient checkpointing and micro-batch {size} with {32 // size} accumulation steps"


def test_other_updates_and_narrow_weights_are_offered_behind_what_changes_nothing_learned() -> None:
    config = run_config(**LARGE, train={"micro_batch_size": 1, "gradient_checkpointing": "full"})
    need = plan(config, "cuda").total_bytes
    labels = [remedy.label for remedy in remedies(config, int(0.97 * need), "cuda")]
    assert labels[:2] == ["Bf16 weights", "Adafactor"]
    assert "Updates in the backward pass, batch 1, no clipping" in labels
    assert "Context of 64 tokens" in labels[2:]


# ---------------------------------------------------------------- fitting
@given(
    share=st.floats(0.02, 1.2),
    micro_batch=st.sampled_from([1, 6, 16, 48]),
    accumulated=st.sampled_from([1, 4]),
    mode=st.sampled_from(["none", "full", "selective"]),
    changes=st.sampled_from([{}, {"window": {"size": 512, "pattern": "SL"}}, {"moe": {"n_expert": 4}}]),
    device=st.sampled_from(["cuda", "cpu"]),
)
@settings(max_examples=30, deadline=None)
def test_a_fitted_config_fits_and_says_how_it_differs(
    share: float, micro_batch: int, accumulated: int, mode: str, changes: dict[str, Any], device: str
) -> None:
    train = {"micro_batch_size": micro_batch, "grad_accum_steps": accumulated, "gradient_checkpointing": mode}
    config = run_config(**{**LARGE, **changes}, train=train)
    free = int(share * plan(config, device).total_bytes)
    fitted = fit(config, free, device)
    if fitted is None:
        # Nothing is left out that would have done.
        smallest = {"micro_batch_size": 1, "weight_precision": "bf16", "optimizer": "adafactor", "grad_clip": None}
        lean = {**smallest, "optimizer_in_backward": True, "gradient_checkpointing": "full"}
        short = {"block_size": 64, **({"window": {"size": 64, "pattern": "SL"}} if "window" in changes else {})}
        need = plan(run_config(**{**LARGE, **changes, **short}, train=lean), device).total_bytes
        assert verdict(need, free) != "fits"
        return
    assert plan(fitted.config, device).total_bytes == fitted.total_bytes
    assert verdict(fitted.total_bytes, free) == "fits"
    assert override(config, fitted.overrides) == fitted.config
    assert bool(fitted.changes) == bool(fitted.overrides) == (fitted.config != config)
    assert plan(fitted.config).params == plan(config).params
    if not {"model.block_size", "train.optimizer_in_backward"} & set(fitted.overrides):
        assert fitted.config.tokens_per_step == config.tokens_per_step


def test_fitting_takes_the_least_harmful_change_that_will_do() -> None:
    config = run_config(**LARGE, train={"micro_batch_size": 32})
    kinds = []
    for free in (100, 6.3, 3.3, 2.8, 2.1, 1.87):
        fitted = fit(config, int(free * GB), "cuda")
        assert fitted is not None
        kinds.append(set(fitted.overrides))
    batch = {"train.micro_batch_size", "train.grad_accum_steps"}
    half = {"train.weight_precision"}
    assert kinds[0] == set()
    assert kinds[1] == batch
    assert kinds[2] - batch <= {"train.gradient_checkpointing"} | half
    assert kinds[3] >= half
    assert kinds[4] >= half | {"train.optimizer"}
    assert kinds[5] >= {"train.optimizer_in_backward", "train.grad_clip"}
    assert fit(config, 1 * GB, "cuda") is None  # not even CUDA itself


def test_the_largest_micro_batch_divides_the_batch_and_fits() -> None:
    config = run_config(**LARGE, train={"micro_batch_size": 4, "grad_accum_steps": 9, "gradient_checkpointing": "full"})
    fits = [
        [verdict(plan(override(config, {"train.micro_batch_size": size, "train.grad_accum_steps": 36 // size}),
                      "cuda").total_bytes, int(free * GB)) == "fits" for size in (1, 2, 3, 4, 6, 9, 12, 18, 36)]
        for free in (2.5, 3.5, 5, 200)
    ]  # fmt: skip
    assert [largest_micro_batch(config, int(free * GB), "cuda") for free in (2.5, 3.5, 5, 200)] == [
        max((size for size, good in zip((1, 2, 3, 4, 6, 9, 12, 18, 36), row, strict=True) if good), default=0)
        for row in fits
    ]
    assert len({sum(row) for row in fits}) > 2
    assert largest_micro_batch(config, GB, "cuda") == 0


def test_the_naive_recipe_has_the_shapes_and_none_of_the_savings() -> None:
    lean = {"weight_precision": "bf16", "optimizer": "adafactor", "gradient_checkpointing": "full"}
    config = run_config(train={"micro_batch_size": 2, "grad_accum_steps": 4, **lean})
    plain = naive(config)
    assert (plain.model, plain.tokens_per_step) == (config.model, config.tokens_per_step)
    memory = plan(plain).memory
    assert memory["weights"] + memory["optimizer"] == 12 * plan(config).params
    assert plan(plain).total_bytes > plan(config).total_bytes


def test_planning_does_not_import_torch() -> None:
    code = "import sys, dgsgpt.planner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
