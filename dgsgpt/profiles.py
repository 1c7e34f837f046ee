"""Ready-made shapes for the memory at hand: cpu, low, medium and high.

low (15 GB), medium (40 GB) and high (100 GB and up) are chosen by the GPU's memory: below 20 GB, below 50 GB, else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import ConfigError
from dgsgpt.hardware import Hardware

_TITLES = {
    "cpu": ("CPU", "2 cores and up"),
    "low": ("Low", "15 GB"),
    "medium": ("Medium", "40 GB"),
    "high": ("High", "100 GB and up"),
}
PROFILE_NAMES = tuple(_TITLES)


@dataclass(frozen=True)
class Profile:
    """A named config and the memory it is meant for."""

    name: str
    title: str
    need: str
    config: RunConfig


def configs_dir() -> Path:
    """The folder of shipped YAML files: inside a wheel it lies in the package, in a checkout beside it."""
    package = Path(__file__).parent
    packed = package / "_app" / "configs"
    return packed if packed.is_dir() else package.parent / "configs"


def profile_path(name: str) -> Path:
    """The file of a profile.

    Raises:
        ConfigError: no such profile.
    """
    if name not in _TITLES:
        raise ConfigError(f"profile {name!r} does not exist; choose one of {', '.join(PROFILE_NAMES)}")
    return configs_dir() / "profiles" / f"{name}.yaml"


@cache
def load_profile(name: str) -> Profile:
    """One profile.

    Raises:
        ConfigError: no such profile, or its file is damaged.
    """
    path = profile_path(name)
    return Profile(name, *_TITLES[name], load_config(path))


def choose_profile(hardware: Hardware) -> str:
    """The profile for this machine, by the memory of its first GPU; `cpu` without one."""
    if not hardware.gpus:
        return "cpu"
    gigabytes = hardware.gpus[0].total_bytes / 1e9
    return "low" if gigabytes < 20 else "medium" if gigabytes < 50 else "high"
