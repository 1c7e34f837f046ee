"""Reading configs: YAML files, overrides and plain values become the typed schema of `dgsgpt.schema`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dgsgpt import strict_yaml
from dgsgpt.architecture import (
    ModelConfig,
    MoEConfig,
    NgramConfig,
    RopeConfig,
    RopeScalingConfig,
    WindowConfig,
    layer_is_moe,
    layer_windows,
)
from dgsgpt.errors import ConfigError
from dgsgpt.rules import explain, nest_override
from dgsgpt.schema import (
    SCHEMA_VERSION,
    DataConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "SCHEMA_VERSION",
    "DataConfig",
    "MoEConfig",
    "ModelConfig",
    "NgramConfig",
    "RopeConfig",
    "RopeScalingConfig",
    "RunConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "WindowConfig",
    "build_config",
    "layer_is_moe",
    "layer_windows",
    "load_config",
    "parse_config",
]


def build_config(values: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate nested plain values.

    Raises:
        ConfigError: one line with the first problem; `.problems` has them all by dotted field.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as e:
        raise explain(e, RunConfig, source) from None
    return _with_vocab_size(config, source)


def _with_vocab_size(config: RunConfig, source: str) -> RunConfig:
    """Fill `model.vocab_size` from the tokenizer; a char vocabulary is only known once the text is read."""
    tokenizer = config.data.tokenizer
    needed = {"bpe": tokenizer.vocab_size, "byte": 256, "gpt2": 50_257}.get(tokenizer.kind)
    given = config.model.vocab_size
    if needed is None or given == needed:
        return config
    if given is None:
        return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": needed})})
    if given < needed:
        message = f"model.vocab_size={given} is smaller than the {tokenizer.kind} tokenizer's {needed}; set it to null"
        raise ConfigError(f"{source}: {message}", {"model.vocab_size": message})
    return config


def parse_config(text: str, source: str = "config", overrides: Iterable[str] = ()) -> RunConfig:
    """A config from YAML text; `overrides` are `section.key=value` strings applied on top.

    Raises:
        ConfigError: the text is not strict YAML, or a value is unknown or breaks a rule.
    """
    values = strict_yaml.parse(text, source)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source}: holds {type(values).__name__}, not settings; begin with a section such as 'model:'"
        )
    for override in overrides:
        values = nest_override(values, override, RunConfig)
    return build_config(values, source)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML config, e.g. `load_config("configs/demo.yaml", ["model.n_layer=2"])`.

    Raises:
        ConfigError: the file is missing, unreadable, not strict YAML, or breaks a rule.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such config file; see configs/ for examples")
        if path.stat().st_size > strict_yaml.MAX_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes is too large for a config")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text (byte {e.start}); is it a config file?") from None
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror or e}") from None
    return parse_config(text, str(path), overrides)
