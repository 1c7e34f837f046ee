from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import ModelConfig, RunConfig, build_config, layer_is_moe, layer_windows, load_config, parse_config
from dgsgpt.errors import ConfigError
from dgsgpt.profiles import configs_dir
from dgsgpt.rules import differences, list_settings, put

CONFIGS = sorted(configs_dir().rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).schema_version == 1


def test_yaml_round_trip_is_identity_for_defaults() -> None:
    config = build_config({})
    assert parse_config(config.to_yaml()) == config


@given(
    n_head=st.sampled_from([1, 2, 4, 8]),
    head_dim=st.integers(1, 32).map(lambda n: 2 * n),
    lr=st.floats(1e-8, 10.0),
    dropout=st.floats(0, 0.99),
    moe=st.none() | st.fixed_dictionaries({"n_expert": st.integers(2, 16), "n_expert_per_token": st.integers(1, 2)}),
    window=st.none()
    | st.fixed_dictionaries({"size": st.integers(1, 64), "pattern": st.sampled_from(["S", "SL", "SSSL"])}),
)
def test_yaml_round_trip_is_identity(n_head, head_dim, lr, dropout, moe, window) -> None:
    model = {
        "n_head": n_head,
        "n_embd": n_head * head_dim,
        "block_size": 64,
        "dropout": dropout,
        "moe": moe,
        "window": window,
    }
    config = build_config({"model": model, "train": {"lr": lr}})
    assert parse_config(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_head=5", "model.n_head=5 must divide model.n_embd=256; try 4 or 8"),
        ("model.n_kv_head=3", "model.n_kv_head=3 must divide model.n_head=4; try 2 or 4"),
        ("model.head_bias=true", "needs an output layer of its own; set model.tie_embeddings=false"),
        ("model.head_size=7", "gives heads of odd width 7, which RoPE cannot rotate in pairs"),
        ("model.window.size=999", "model.window.size=999 must not exceed model.block_size=256"),
        ("model.moe.n_expert_per_token=9", "must not exceed model.moe.n_expert=8"),
        ("model.moe.every=9", "leaves no MoE layer"),
        ("model.n_heads=4", "did you mean model.n_head?"),
        ("train.n_layer=3", "did you mean model.n_layer?"),
        ("modl.n_layer=3", "did you mean model.n_layer?"),
        ("train.lr=-1", "train.lr=-1 must be greater than 0"),
        ("train.lr=.nan", "must be a finite number"),
        ("train.lr=.inf", "must be"),
        ("train.lr=true", "train.lr=True must be a number"),
        ("model.bias=on", "model.bias='on' must be true or false"),
        ("model.n_layer=2.5", "must be a whole number"),
        ("model.n_layer=0", "must be at least 1"),
        ("model.rope=5", "must be a section"),
        ("model.window.pattern=XY", "letters S (sliding), L (long) or B (both)"),
        ("data.tokenizer.kind=bpf", "must be 'bpe', 'char', 'byte', 'gpt2' or 'file'"),
        ("model.vocab_size=100", "smaller than the bpe tokenizer's 4096"),
        ("model.n_layer", "must look like section.key=value"),
        ("schema_version=2", "needs another version"),
    ],
)
def test_bad_values_are_one_line_with_rule_and_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_config("", "f.yaml", [override])
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_an_odd_head_width_is_refused_only_with_rope() -> None:
    with pytest.raises(ConfigError, match="odd width 3"):
        parse_config("", overrides=["model.n_embd=12", "model.n_head=4"])
    assert parse_config("", overrides=["model.n_embd=12", "model.n_head=4", "model.rope=null"]).model.head_dim == 3


def test_a_head_size_of_its_own_frees_the_width_from_the_number_of_heads() -> None:
    model = parse_config("", overrides=["model.n_embd=10", "model.n_head=4", "model.head_size=6"]).model
    assert (model.head_dim, model.attention_width) == (6, 24)
    assert ModelConfig(n_embd=32, n_head=4).attention_width == 32


@pytest.mark.parametrize(("chosen", "bias", "found"), [("same", True, True), ("same", False, False),
                                                       ("with", False, True), ("without", True, False)])  # fmt: skip
def test_biases_of_queries_keys_and_values_follow_the_others_unless_chosen(
    chosen: str, bias: bool, found: bool
) -> None:
    assert ModelConfig.model_validate({"bias": bias, "qkv_bias": chosen}).has_qkv_bias == found


def test_a_dense_network_stands_before_experts_or_beside_them() -> None:
    with pytest.raises(ConfigError, match="set one of them to false"):
        parse_config("", overrides=["model.moe.after_dense=true", "model.moe.dense_residual=true"])


def test_all_problems_are_reported_by_field() -> None:
    with pytest.raises(ConfigError, match="and 1 more") as e:
        build_config({"train": {"lr": -1, "steps": 0}})
    assert set(e.value.problems) == {"train.lr", "train.steps"}


def test_a_scientific_number_is_a_number() -> None:
    assert parse_config("train: {lr: 3e-4}").train.lr == 3e-4


def test_kv_heads_follow_heads_unless_given() -> None:
    assert parse_config("", overrides=["model.n_head=8"]).model.n_kv_head == 8
    assert parse_config("", overrides=["model.n_head=8", "model.n_kv_head=2"]).model.n_kv_head == 2


def test_overrides_switch_sections_on_and_off() -> None:
    on = parse_config("", overrides=["model.moe.n_expert=4"])
    assert on.model.moe is not None
    assert on.model.moe.n_expert == 4
    assert parse_config(on.to_yaml(), overrides=["model.moe=null"]).model.moe is None


@pytest.mark.parametrize(("kind", "size"), [("bpe", 4096), ("byte", 256), ("gpt2", 50257), ("char", None)])
def test_vocabulary_follows_the_tokenizer(kind: str, size: int | None) -> None:
    assert parse_config("", overrides=[f"data.tokenizer.kind={kind}"]).model.vocab_size == size


def test_window_pattern_is_tiled_over_the_layers() -> None:
    model = parse_config("", overrides=["model.n_layer=6", "model.window.size=16", "model.window.pattern=SSL"]).model
    assert layer_windows(model) == [(16,), (16,), (None,), (16,), (16,), (None,)]
    assert layer_windows(build_config({}).model) == [(None,)] * 4
    both = parse_config("", overrides=["model.n_layer=3", "model.window.size=16", "model.window.pattern=SB"]).model
    assert layer_windows(both) == [(16,), (16, None), (16,)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_head=1", "model.window.pattern=B"], "model.n_head=1 must be even for layers of kind B"),
        (
            ["model.n_embd=192", "model.n_head=6", "model.n_kv_head=3", "model.window.pattern=SB"],
            "model.n_kv_head=3 must be even, or 1, for layers of kind B in model.window.pattern=SB",
        ),
        (
            ["model.rope.scaling.kind=yarn", "model.rope.scaling.original_block_size=512"],
            "original_block_size=512 must not exceed model.block_size=256",
        ),
        (["model.rope.scaling.beta_fast=0.5"], "beta_slow=1 must be below model.rope.scaling.beta_fast=0.5"),
        (["model.rope.scaling.low_freq_factor=8"], "low_freq_factor=8 must be below"),
        (["model.logit_softcap=0"], "model.logit_softcap=0 must be greater than 0"),
        (["model.norm_eps=0"], "model.norm_eps=0 must be at least 1e-12"),
        (["model.positions=sinusoid"], "model.positions='sinusoid' must be 'learned' or 'none'"),
        (["model.moe.balance=loss"], "model.moe.balance='loss' must be 'aux_loss' or 'bias'"),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_config("", "f.yaml", overrides)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_layer_of_kind_b_beyond_the_last_layer_asks_nothing() -> None:
    model = parse_config("", overrides=["model.n_head=1", "model.n_layer=2", "model.window.pattern=SLB"]).model
    assert layer_windows(model) == [(128,), (None,)]


def test_every_nth_layer_holds_experts() -> None:
    model = parse_config("", overrides=["model.n_layer=5", "model.moe.every=2"]).model
    assert layer_is_moe(model) == [False, True, False, True, False]


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "b.yaml")


def test_every_setting_has_help_and_its_default_obeys_its_bounds() -> None:
    for setting in list_settings(RunConfig):
        assert setting.help.endswith("."), setting.path
        if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
            assert setting.minimum is None or setting.default >= setting.minimum, setting.path
            assert setting.maximum is None or setting.default <= setting.maximum, setting.path


def test_differences_name_changed_settings_only() -> None:
    a = build_config({}).to_dict()
    b = put(put(a, "model.n_layer", 6), "model.rope", None)
    assert differences(a, b) == {
        "model.n_layer": (4, 6),
        "model.rope.theta": (10000.0, None),
    }


def test_put_leaves_the_original_alone() -> None:
    values = {"model": {"n_layer": 4}}
    put(values, "model.moe.n_expert", 2)
    assert values == {"model": {"n_layer": 4}}
