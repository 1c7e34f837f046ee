"""A draft against this machine: what it will need and take, its name, how it differs; nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgsgpt.config import RunConfig, TrainConfig
from dgsgpt.errors import RunError
from dgsgpt.format import MINUS, duration, size
from dgsgpt.hardware import Hardware
from dgsgpt.pace import Duration, Speed, arithmetic_per_token, duration_of
from dgsgpt.planner import Plan, naive, plan, verdict
from dgsgpt.runs import check_run_id, name_for, suggest_run_id
from dgsgpt.ui.atoms import Role
from dgsgpt.ui.labels import name_of

# What one well-fed H100 does, for runs nobody here has measured: 40 % of its 989 TFLOPS in half precision.
H100_FLOPS_PER_S = 0.4 * 989e12


@dataclass(frozen=True)
class Outlook:
    """A valid draft against this machine: its plan, the memory that is free for it, and how fast it will go."""

    config: RunConfig
    plan: Plan
    free_bytes: int
    total_bytes: int
    speed: Speed | None  # None where nothing was measured
    device: str  # cpu or cuda: where the plan is for

    @property
    def time(self) -> Duration | None:
        """How long the run may take, by what was measured here."""
        return duration_of(self.config, self.speed) if self.speed else None

    @property
    def seconds(self) -> float | None:
        """The likely one, in seconds."""
        return self.time.seconds if self.time else None

    @property
    def h100_seconds(self) -> float:
        """What the run would take on one H100 at 40 % of its peak: computed, never measured."""
        return arithmetic_per_token(self.config) * self.plan.total_tokens / H100_FLOPS_PER_S

    @property
    def verdict(self) -> str:
        """`fits`, `tight` or `over`."""
        return verdict(self.plan.total_bytes, self.free_bytes)

    @property
    def impossible(self) -> bool:
        """Whether it needs more memory than the device has, free or not."""
        return self.plan.total_bytes > self.total_bytes

    @property
    def checkpoints(self) -> int:
        """How many checkpoints will be kept: the last ones and the best one."""
        every, steps = self.config.train.checkpoint_every, self.config.train.steps
        return min(-(-steps // every) if every else 1, self.config.train.keep_last + 1)

    @property
    def disk_bytes(self) -> int:
        """What the kept checkpoints come to."""
        return self.plan.checkpoint_bytes * self.checkpoints


def look_ahead(config: RunConfig, machine: Hardware, speed: Speed | None) -> Outlook:
    """The outlook of a config; without a measured speed there is no time."""
    device = machine.device if config.train.device == "auto" else config.train.device
    cost, on_cpu = plan(config, device), device == "cpu" or not machine.gpus
    free = machine.ram_available_bytes if on_cpu else machine.free_bytes
    total = machine.ram_total_bytes if on_cpu else machine.total_bytes
    return Outlook(config, cost, free, total, speed, "cpu" if on_cpu else "cuda")


def verdict_words(outlook: Outlook) -> tuple[str, Role]:
    """The verdict as glyph and words, and its role."""
    spare = outlook.free_bytes - outlook.plan.total_bytes
    words: dict[str, tuple[str, Role]] = {
        "fits": (f"✓ Fits, {size(spare)} to spare", "good"),
        "tight": (f"▲ Tight, {size(max(0, spare))} to spare", "warn"),
        "over": (f"✕ Does not fit, {size(-spare)} over", "bad"),
    }
    return words[outlook.verdict]


def run_time(outlook: Outlook) -> tuple[float | None, str]:
    """Seconds the run may take, and where that is from; on a CPU that nothing was measured on, none are claimed."""
    if outlook.time is not None and outlook.speed is not None:
        low, high = duration(outlook.time.low), duration(outlook.time.high)
        band = f"{low} to {high}, " if low != high else ""
        by = "at the speed of" if outlook.speed.kind == "run" else "by"
        return outlook.time.seconds, f"{band}{by} {outlook.speed.source}"
    if outlook.device == "cpu":
        return None, "measured after the first run"
    return outlook.h100_seconds, "computed for an H100 at 40 % of its peak, not measured here"


def plain_recipe(outlook: Outlook) -> str:
    """What the same model needs by the recipe most would begin with, in one sentence; empty where that is no more."""
    need = plan(naive(outlook.config), outlook.device).total_bytes
    if need <= 1.02 * outlook.plan.total_bytes:
        return ""
    fits = f"{need / outlook.free_bytes:.1f} times what is free" if need > outlook.free_bytes else "which would fit too"
    return f"By the plain recipe (AdamW in fp32, all sequences at once, nothing recomputed) {size(need)}: {fits}."


def recipe_words(train: TrainConfig) -> str:
    """The recipe in a few words, e.g. `Adafactor, bf16 weights`."""
    return name_of(train.optimizer) + (", bf16 weights" if train.weight_precision == "bf16" else "")


# ---------------------------------------------------------------- name
@dataclass(frozen=True)
class RunName:
    """The name the run will have, and what is wrong with the one that was typed."""

    name: str
    problem: str = ""
    warning: str = ""


def choose_name(typed: str, config: RunConfig | None, root: Path, stem: str = "") -> RunName:
    """A free, valid name: the typed one if it is, else the nearest free one; suggested when nothing was typed.

    The suggestion begins with `stem`, or tells what the config is of.
    """
    if not typed:
        return RunName(suggest_run_id(root, stem or (name_for(config) if config else "run")))
    try:
        check_run_id(typed)
    except RunError as e:
        return RunName(suggest_run_id(root, typed), problem=str(e))
    free = suggest_run_id(root, typed)
    taken = (root / typed).exists()
    return RunName(free if taken else typed, warning=f"Exists already. This one will be {free}." if taken else "")


# ---------------------------------------------------------------- differences
def diff_lines(changed: dict[str, tuple[object, object]]) -> list[tuple[str, str]]:
    """Differences as (sign, text) lines under their section, e.g. `("", "model:")`, `("−", "n_layer: 4")`."""
    lines: list[tuple[str, str]] = []
    section = ""
    for path, (was, now) in changed.items():
        parent, _, leaf = path.rpartition(".")
        if parent != section:
            section = parent
            lines.append(("", f"{parent}:"))
        lines += [(sign, f"{leaf}: {_yaml(v)}") for sign, v in ((MINUS, was), ("+", now))]
    return lines


def _yaml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(v)}" for name, v in value.items()) + "}"
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )
