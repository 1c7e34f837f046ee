"""Whether a run is well: detectors of loss spikes, gradient spikes, slow steps and dead experts; no torch.

They are fed at each logging point and know nothing but the readings, so that a resumed run finds what an
uninterrupted one would: `Monitor(state)` goes on exactly where `Monitor.state()` was taken. A reading here is one
logging point, not one step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

# Spikes of the loss and of the gradient norm.
WINDOW = 32  # readings of the trend line: long enough to average noise out, short enough to be straight in log(step)
FIRST_WINDOW = 10  # the first trend line, five readings a half; fewer give no median worth the name
RESIDUALS = 256  # remembered distances from the trend: the MAD is then known to a tenth
FIRST_RESIDUALS = 12  # with fewer nothing is judged; with WINDOW's first this makes the warm-up 22 readings
SMALL_SAMPLE = 6.0  # sigma counts 1 + 6 / n fold: half as much again at 12 residuals, nothing at 256
SIGMAS = 6.0  # one reading as far as this is a spike: once in 10**9 for Gaussian noise
SIGMAS_TWICE = 3.7  # two readings in a row as far as this are one too: once in 10**8
TAIL_QUANTILE, TAIL_GAUSSIAN = 0.98, 2.33  # distances' quantile, in sigmas; heavier tails than that raise the limits
LOSS_MARGIN = 0.05  # share of the loss below which nobody would act, however quiet the curve was
NORM_MARGIN = math.log(2.0)  # twice the usual norm is daily business, and clipped anyway
LASTING = 20  # readings in a row after which a spike is no spike but the new level
# Throughput.
SPEEDS = 200  # readings whose median is the usual speed
FIRST_SPEEDS = 20  # the first ones hold compilation and caches that fill
SLOW, FAST_AGAIN = 0.6, 0.75  # shares of the usual; apart, so that a speed in between does not flicker
SPEED_STREAK = 5  # one slow reading is another program's burst
# Experts.
DEAD_SHARE = 0.05  # of the even share 1 / E
DEAD_STREAK = 20  # readings in a row, to die and to revive: with 4 tokens expected, none at all happens by chance
ALIVE, DEAD, TOLD = 0, 1, 2  # the last: dead, and told to be
SHOWN_EXPERTS = 6  # named in one message
# How much is told.
COOLDOWN, COOLDOWN_MAX = 20, 1600  # readings between findings of one name: doubled by each, up to the second

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Reading:
    """What the trainer saw at one logging point. None and values that are not finite are passed over."""

    step: int
    loss: float | None = None  # mean training cross-entropy in nats per token
    grad_norm: float | None = None  # before clipping
    tokens_per_s: float | None = None  # saves and evaluations left out of the time
    expert_load: Sequence[Sequence[float]] | None = None  # [MoE layers][E] share of all assignments; 1/E is even
    n_expert: int = 0


@dataclass(frozen=True)
class Finding:
    """Something to tell: one line with the value, what is usual, and what to do."""

    name: str
    step: int
    message: str
    severity: Severity = "warning"
    kind: str = "health"


class Monitor:
    """All detectors of one run."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = copy.deepcopy(state or {})  # the detectors go on writing in theirs
        self._reading = int(state.get("reading", 0))
        self._loss = _Spikes(**state.get("loss", {}))
        self._norm = _Spikes(**state.get("norm", {}))
        self._speed = _Speed(**state.get("speed", {}))
        self._experts = _Experts(**state.get("experts", {}))
        self._told: dict[str, list[int]] = dict(state.get("told", {}))  # how often, and until when no more

    def state(self) -> dict[str, Any]:
        """What a later `Monitor(state)` needs to go on exactly; plain JSON."""
        parts: dict[str, Any] = {"loss": self._loss, "norm": self._norm, "speed": self._speed, "experts": self._experts}
        told = {name: list(value) for name, value in self._told.items()}
        return {"reading": self._reading, "told": told, **{name: asdict(part) for name, part in parts.items()}}

    def observe(self, reading: Reading) -> list[Finding]:
        """Take one reading in; returns what is to be told, mostly nothing."""
        self._reading += 1
        found = self._observe_loss(reading) + self._observe_norm(reading)
        return found + self._observe_speed(reading) + self._observe_experts(reading)

    def _may_tell(self, name: str) -> bool:
        """Whether the cool-down since the last finding of this name is over; if so, the next one begins."""
        count, until = self._told.get(name, (0, 0))
        if self._reading < until:
            return False
        self._told[name] = [count + 1, self._reading + min(COOLDOWN_MAX, COOLDOWN << min(count, 16))]
        return True

    def _observe_loss(self, reading: Reading) -> list[Finding]:
        loss = reading.loss
        if loss is None or not math.isfinite(loss):
            return []
        seen = self._loss.observe(reading.step, loss, lambda usual: LOSS_MARGIN * abs(usual))
        usual = f"the training loss is {loss:.4f} where about {self._loss.usual:.4f} was to be expected"
        if seen == "spike" and self._may_tell("loss_spike"):
            advice = "it mostly passes; if it comes again, lower train.lr or train.grad_clip"
            return [Finding("loss_spike", reading.step, f"{usual}; {advice}")]
        if seen == "lasting" and self._may_tell("loss_risen"):
            text = f"{usual}, for {LASTING} readings now; stop and start anew with a lower train.lr"
            return [Finding("loss_risen", reading.step, text, "error")]
        return []

    def _observe_norm(self, reading: Reading) -> list[Finding]:
        norm = reading.grad_norm
        if norm is None or not math.isfinite(norm) or norm <= 0:
            return []
        seen = self._norm.observe(reading.step, math.log(norm), lambda usual: NORM_MARGIN)
        usual = f"the gradient norm is {norm:.3g} where about {math.exp(self._norm.usual):.3g} was to be expected"
        if seen == "spike" and self._may_tell("grad_norm_spike"):
            advice = "clipping contains it; if it comes again, lower train.lr or lengthen train.schedule.warmup_steps"
            return [Finding("grad_norm_spike", reading.step, f"{usual}; {advice}")]
        if seen == "lasting" and self._may_tell("grad_norm_risen"):
            text = f"{usual}, for {LASTING} readings now; watch the loss, lower train.lr if it rises too"
            return [Finding("grad_norm_risen", reading.step, text)]
        return []

    def _observe_speed(self, reading: Reading) -> list[Finding]:
        speed = reading.tokens_per_s
        if speed is None or not math.isfinite(speed) or speed < 0:
            return []
        recovered = self._speed.observe(speed)
        usual = f"{speed:.0f} tokens/s, usually {self._speed.usual:.0f}"
        if recovered:
            return [Finding("recovered", reading.step, f"speed is back: {usual}", "info")]
        if self._speed.slow and not self._speed.told and self._may_tell("slow"):
            self._speed.told = True
            advice = "look for other programs on this machine, or heat that throttles it"
            return [Finding("slow", reading.step, f"slow for {SPEED_STREAK} readings: {usual}; {advice}")]
        return []

    def _observe_experts(self, reading: Reading) -> list[Finding]:
        if not reading.expert_load or reading.n_expert < 2:
            return []
        found = []
        revived = self._experts.observe(reading.expert_load, DEAD_SHARE / reading.n_expert)
        if revived:
            found.append(Finding("recovered", reading.step, f"experts get tokens again: {_listed(revived)}", "info"))
        if self._experts.untold and self._may_tell("dead_expert"):
            dead = self._experts.tell()
            text = (
                f"{len(dead)} expert{'s get' if len(dead) > 1 else ' gets'} less than {DEAD_SHARE:.0%} of an even "
                f"share (1/{reading.n_expert}) for {DEAD_STREAK} readings: {_listed(dead)}; raise "
                "model.moe.aux_loss_weight, set model.moe.balance=bias, or use fewer experts"
            )
            found.append(Finding("dead_expert", reading.step, text))
        return found


def _listed(experts: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{expert} of MoE layer {layer}" for layer, expert in experts[:SHOWN_EXPERTS])
    more = len(experts) - SHOWN_EXPERTS
    return shown if more <= 0 else f"{shown} and {more} more"


@dataclass
class _Spikes:
    """Readings far above where the recent ones lead to.

    That is a resistant line (through the medians of the older and the newer half: Brown and Mood 1951) over
    log(step), in which loss curves are nearly straight; so a falling curve hides no spike. A rising line counts as
    level, or a divergence would be its own excuse. What is far is measured by the distances that earlier readings had
    from their own lines, which holds the line's errors too: sigma is 1.4826 times their median absolute deviation.
    """

    usual: float = 0.0  # what the last reading was held against
    points: list[list[float]] = field(default_factory=list)  # [log(step + 1), value]
    residuals: list[float] = field(default_factory=list)
    high: int = 0  # readings in a row beyond SIGMAS_TWICE
    spiking: bool = False

    def observe(self, step: int, value: float, margin: Callable[[float], float]) -> Literal["spike", "lasting"] | None:
        """`spike` where one begins, `lasting` where it has become the level; spikes are kept out of the memory."""
        x = math.log(step + 1)
        if len(self.points) >= FIRST_WINDOW:
            self.usual = self._expected(x)
            residual = value - self.usual
            far, twice = self._judge(residual, margin(self.usual))
            self.high = self.high + 1 if twice else 0
            if self.spiking and twice and self.high >= LASTING:
                self.points, self.residuals, self.high, self.spiking = [], [], 0, False
                return "lasting"
            began = not self.spiking and (far or self.high >= 2)
            self.spiking = twice if self.spiking else began
            if self.spiking:
                return "spike" if began else None
            self.residuals = [*self.residuals, residual][-RESIDUALS:]
        self.points = [*self.points, [x, value]][-WINDOW:]
        return None

    def _expected(self, x: float) -> float:
        half = len(self.points) // 2
        (x_old, y_old), (x_new, y_new) = (
            (median(x for x, _ in part), median(y for _, y in part))
            for part in (self.points[:half], self.points[-half:])
        )
        slope = min(0.0, (y_new - y_old) / (x_new - x_old)) if x_new > x_old else 0.0
        return y_new + slope * (x - x_new)

    def _judge(self, residual: float, margin: float) -> tuple[bool, bool]:
        """Whether it is far enough alone, and far enough if the one before it was too."""
        n = len(self.residuals)
        if n < FIRST_RESIDUALS:
            return False, False
        centre = median(self.residuals)
        above = residual - centre
        if above <= margin:
            return False, False
        distances = sorted(abs(r - centre) for r in self.residuals)
        sigma = 1.4826 * median(distances)
        if sigma == 0.0:  # a constant curve: whatever passes the margin is far
            return True, True
        tail = max(1.0, distances[int(TAIL_QUANTILE * (n - 1))] / (TAIL_GAUSSIAN * sigma))
        sigma *= 1 + SMALL_SAMPLE / n
        return above > SIGMAS * tail**2 * sigma, above > SIGMAS_TWICE * math.sqrt(tail) * sigma


@dataclass
class _Speed:
    """A lasting fall of the throughput below what was usual; slow readings do not become usual."""

    usual: float = 0.0
    speeds: list[float] = field(default_factory=list)
    streak: int = 0  # readings in a row that speak for a change
    slow: bool = False
    told: bool = False

    def observe(self, speed: float) -> bool:
        """Whether a slowness that had been told is over."""
        if len(self.speeds) < FIRST_SPEEDS:
            self.speeds.append(speed)
            return False
        self.usual = median(self.speeds)
        changes = speed >= FAST_AGAIN * self.usual if self.slow else speed < SLOW * self.usual
        self.streak = self.streak + 1 if changes else 0
        if not self.slow and not changes:
            self.speeds = [*self.speeds, speed][-SPEEDS:]
        if self.streak < SPEED_STREAK:
            return False
        self.streak, self.slow = 0, not self.slow
        recovered = self.told and not self.slow
        self.told = self.told and self.slow
        return recovered


@dataclass
class _Experts:
    """Experts that get next to no tokens; counted by MoE layer and expert, both from 0."""

    streaks: list[list[int]] = field(default_factory=list)  # readings in a row that speak for a change
    states: list[list[int]] = field(default_factory=list)  # ALIVE, DEAD or TOLD
    untold: int = 0  # how many are DEAD

    def observe(self, load: Sequence[Sequence[float]], least: float) -> list[tuple[int, int]]:
        """Experts that had been told dead and revived."""
        if [len(layer) for layer in load] != [len(layer) for layer in self.states]:  # the first reading
            self.streaks, self.states = [[0] * len(layer) for layer in load], [[ALIVE] * len(layer) for layer in load]
        revived = []
        for i, layer in enumerate(load):
            for j, share in enumerate(layer):
                changes = math.isfinite(share) and (share < least) == (self.states[i][j] == ALIVE)
                self.streaks[i][j] = self.streaks[i][j] + 1 if changes else 0
                if self.streaks[i][j] == DEAD_STREAK:
                    self.streaks[i][j] = 0
                    if self.states[i][j] == TOLD:
                        revived.append((i, j))
                    self.states[i][j] = DEAD if self.states[i][j] == ALIVE else ALIVE
        self.untold = sum(layer.count(DEAD) for layer in self.states)
        return revived

    def tell(self) -> list[tuple[int, int]]:
        """The dead that nobody was told of; from now on they are."""
        dead = [(i, j) for i, layer in enumerate(self.states) for j, state in enumerate(layer) if state == DEAD]
        self.states = [[TOLD if state == DEAD else state for state in layer] for layer in self.states]
        self.untold = 0
        return dead
