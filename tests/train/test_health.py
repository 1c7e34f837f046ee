"""The detectors on made-up curves: what must be found, what must not, and that a resumed monitor goes on exactly."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.train import health
from dgsgpt.train.health import Finding, Monitor, Reading

Draw = Callable[[random.Random], float]


def student(df: int) -> Draw:
    def draw(r: random.Random) -> float:
        scale = math.sqrt(df / (df - 2))
        return r.gauss(0, 1) / math.sqrt(sum(r.gauss(0, 1) ** 2 for _ in range(df)) / df) / scale

    return draw


NOISE: dict[str, Draw] = {  # of standard deviation 1
    "gaussian": lambda r: r.gauss(0, 1),
    "laplace": lambda r: r.choice((-1, 1)) * r.expovariate(math.sqrt(2)),
    "student": student(8),
}


def falling(i: int) -> float:
    """A loss curve as a power law, from 3.5 to 2 nats."""
    return 1.5 + 4.0 * (i + 4) ** -0.5


def feed(monitor: Monitor, readings: Iterable[Reading]) -> list[Finding]:
    return [finding for reading in readings for finding in monitor.observe(reading)]


def losses(values: Iterable[float | None], begin: int = 0) -> Iterator[Reading]:
    return (Reading(10 * (begin + i) + 1, loss=v) for i, v in enumerate(values))


def names(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings]


# ---------------------------------------------------------------- spikes
@pytest.mark.parametrize("noise", NOISE)
def test_steady_noise_gives_less_than_one_alarm_in_ten_thousand_readings(noise: str) -> None:
    r, draw = random.Random(11), NOISE[noise]
    readings, alarms = 0, 0
    for _ in range(4):
        # The bare detector, without margins and without a limit on what is told.
        spikes = health._Spikes()
        for i in range(10_000):
            alarms += spikes.observe(10 * i + 1, falling(i) + 0.05 * draw(r), lambda _: 0.0) is not None
            readings += 1
    assert alarms < readings / 10_000


def test_first_readings_give_no_alarms() -> None:
    r = random.Random(5)
    found = [
        f for _ in range(300) for f in feed(Monitor(), losses(falling(i) + 0.1 * r.gauss(0, 1) for i in range(60)))
    ]
    assert len(found) <= 1  # of 18,000 readings


@pytest.mark.parametrize("curve", [falling, lambda i: 3.0, lambda i: 3.5 - 0.003 * i], ids=["power", "level", "line"])
@pytest.mark.parametrize(("sigmas", "readings"), [(6, 4), (10, 1)])
def test_spikes_are_found_on_any_curve(curve: Callable[[int], float], sigmas: int, readings: int) -> None:
    found = 0
    for seed in range(40):
        r, sigma, monitor = random.Random(seed), 0.05, Monitor()
        assert feed(monitor, losses(curve(i) + sigma * r.gauss(0, 1) for i in range(250))) == []
        spike = [curve(250 + i) + sigma * (sigmas + (r.gauss(0, 1) if i else 0)) for i in range(readings)]
        found += names(feed(monitor, losses(spike, begin=250))) == ["loss_spike"]
    assert found >= 39


def test_a_spike_is_told_in_one_line_with_value_usual_and_advice() -> None:
    r, monitor = random.Random(1), Monitor()
    feed(monitor, losses(2.5 + 0.02 * r.gauss(0, 1) for _ in range(100)))
    (finding,) = monitor.observe(Reading(1001, loss=4.812))
    assert (finding.kind, finding.name, finding.step, finding.severity) == ("health", "loss_spike", 1001, "warning")
    assert finding.message.startswith("the training loss is 4.8120 where about 2.49")
    assert "lower train.lr" in finding.message
    assert "\n" not in finding.message


def test_what_no_one_would_act_on_is_no_spike() -> None:
    monitor = Monitor()
    assert feed(monitor, losses(2.0 + 1e-6 * (i % 2) for i in range(100))) == []
    assert monitor.observe(Reading(1001, loss=2.09)) == []  # thousands of sigmas, but 4.5 %
    assert names(monitor.observe(Reading(1011, loss=2.2))) == ["loss_spike"]


def test_a_constant_curve_has_spikes_too() -> None:
    monitor = Monitor()
    assert feed(monitor, losses([2.0] * 50)) == []
    assert names(monitor.observe(Reading(501, loss=2.2))) == ["loss_spike"]


def test_a_loss_that_stays_high_is_told_once_more_and_becomes_usual() -> None:
    r, monitor = random.Random(2), Monitor()
    feed(monitor, losses(2.0 + 0.02 * r.gauss(0, 1) for _ in range(100)))
    found = feed(monitor, losses((6.0 + 0.02 * r.gauss(0, 1) for _ in range(3000)), begin=100))
    assert names(found) == ["loss_spike", "loss_risen"]
    assert found[1].severity == "error"
    assert found[1].step == 10 * (100 + health.LASTING - 1) + 1


def test_a_loss_that_climbs_steadily_is_found() -> None:
    r, monitor = random.Random(3), Monitor()
    feed(monitor, losses(2.0 + 0.02 * r.gauss(0, 1) for _ in range(100)))
    found = feed(monitor, losses((2.0 + 0.02 * i + 0.02 * r.gauss(0, 1) for i in range(60)), begin=100))
    assert "loss_spike" in names(found)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradient_norms_are_judged_by_their_ratio(scale: float) -> None:
    r, monitor = random.Random(4), Monitor()

    def norms(begin: int, n: int, times: float = 1.0) -> Iterator[Reading]:
        return (Reading(10 * (begin + i), grad_norm=times * scale * math.exp(0.1 * r.gauss(0, 1))) for i in range(n))

    assert feed(monitor, norms(0, 200)) == []
    assert feed(monitor, norms(200, 1, times=1.5)) == []
    (finding,) = feed(monitor, norms(201, 1, times=20))
    assert finding.name == "grad_norm_spike"
    assert "train.schedule.warmup_steps" in finding.message


def test_values_that_are_none_or_not_finite_change_nothing() -> None:
    r, a, b = random.Random(6), Monitor(), Monitor()
    for i in range(100):
        reading = Reading(10 * i, 2.0 + 0.02 * r.gauss(0, 1), 0.5, 1000.0)
        a.observe(reading)
        b.observe(reading)
        assert b.observe(Reading(10 * i, math.nan, math.inf, -math.inf, [[math.nan, math.nan]], 2)) == []
        assert b.observe(Reading(10 * i)) == []
        assert b.observe(Reading(10 * i, grad_norm=0.0)) == []
    there, here = b.state(), a.state()
    for key in ("loss", "norm", "speed"):
        assert there[key] == here[key]
    assert there["experts"]["states"] == [[health.ALIVE] * 2]


# ---------------------------------------------------------------- speed
def speeds(values: Iterable[float]) -> Iterator[Reading]:
    return (Reading(10 * i, tokens_per_s=v) for i, v in enumerate(values))


def test_a_lasting_slowness_is_told_once_and_so_is_its_end() -> None:
    monitor = Monitor()
    assert feed(monitor, speeds([300.0] * 3 + [1000.0] * 60)) == []  # the first ones compile
    assert feed(monitor, speeds([200.0, 1000.0] * 40)) == []  # bursts of another program
    slow = feed(monitor, speeds([400.0] * 1000))
    assert names(slow) == ["slow"]
    assert slow[0].step == 10 * (health.SPEED_STREAK - 1)
    assert "400 tokens/s, usually 1000" in slow[0].message
    assert feed(monitor, speeds([650.0] * 100)) == []  # neither slow nor well
    assert names(feed(monitor, speeds([950.0] * 100))) == ["recovered"]
    assert names(feed(monitor, speeds([400.0] * 100))) == ["slow"]


def test_noise_of_the_speed_is_no_slowness() -> None:
    r = random.Random(8)
    assert feed(Monitor(), speeds(1000.0 * math.exp(0.2 * r.gauss(0, 1)) for _ in range(10_000))) == []


# ---------------------------------------------------------------- experts
def loads(shares: list[list[float]], n: int) -> Iterator[Reading]:
    return (Reading(10 * i, expert_load=shares, n_expert=len(shares[0])) for i in range(n))


def test_a_dead_expert_is_told_once_until_it_revives() -> None:
    even, starved = [[0.25] * 4] * 2, [[0.25] * 4, [0.005, 0.33, 0.33, 0.335]]
    monitor = Monitor()
    assert feed(monitor, loads(even, 100)) == []
    assert feed(monitor, loads(starved, health.DEAD_STREAK - 1)) == []
    (finding,) = feed(monitor, loads(starved, 500))
    assert finding.name == "dead_expert"
    assert "0 of MoE layer 1" in finding.message
    assert "1 expert gets less than 5% of an even share (1/4)" in finding.message
    assert feed(monitor, loads(even, health.DEAD_STREAK - 1)) == []
    assert names(feed(monitor, loads(even, 1))) == ["recovered"]
    assert names(feed(monitor, loads(starved, 500))) == ["dead_expert"]


def test_a_sparse_batch_kills_no_expert() -> None:
    """64 experts share 256 assignments: four each, so none at all is common."""
    r, monitor = random.Random(9), Monitor()
    for i in range(2000):
        counts = [0] * 64
        for _ in range(256):
            counts[r.randrange(64)] += 1
        assert monitor.observe(Reading(i, expert_load=[[c / 256 for c in counts]], n_expert=64)) == []


def test_a_collapse_of_many_experts_is_one_line() -> None:
    collapsed = [[1.0] + [0.0] * 63] * 8
    found = feed(Monitor(), loads(collapsed, 5000))
    assert names(found) == ["dead_expert"]
    assert found[0].message.startswith("504 experts get")
    assert "and 498 more" in found[0].message
    assert len(found[0].message) < 400


def test_no_expert_is_forgotten_for_the_cool_down() -> None:
    monitor, shares = Monitor(), [1 / 8] * 8
    told = []
    for expert in range(4):  # one after the other, faster than they may be told
        shares[expert] = 0.0
        told += feed(monitor, loads([shares], health.DEAD_STREAK))
    told += feed(monitor, loads([shares], 200))
    assert 1 < len(told) <= 3
    assert all(any(f"{expert} of MoE layer 0" in f.message for f in told) for expert in range(4))


# ---------------------------------------------------------------- all together
def bad_run(seed: int, n: int) -> list[Reading]:
    """Everything goes wrong, over and over."""
    r = random.Random(seed)
    return [
        Reading(
            10 * i + 1,
            loss=r.choice((None, 2.0, 2.0, 2.0)) if r.random() < 0.9 else 2.0 + 10 * r.random(),
            grad_norm=math.exp(r.gauss(0, 0.1) + (4 if i % 97 < 3 and i > 60 else 0)),
            tokens_per_s=1000.0 if i % 80 < 40 else 100.0,
            expert_load=[[0.0 if (i // 50) % 2 else 0.5, 0.5 if (i // 50) % 2 == 0 else 1.0]],
            n_expert=2,
        )
        for i in range(n)
    ]


def test_a_bad_run_does_not_flood_its_events() -> None:
    found = feed(Monitor(), bad_run(1, 20_000))
    told = {name: names(found).count(name) for name in set(names(found))}
    assert {"loss_spike", "grad_norm_spike", "slow", "dead_expert", "recovered"} <= set(told)
    assert max(told.values()) <= 40
    assert all("\n" not in f.message and len(f.message) < 400 for f in found)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 400))
def test_a_restored_monitor_goes_on_exactly(seed: int, cut: int) -> None:
    readings = bad_run(seed, 400)
    whole = Monitor()
    expected = feed(whole, readings)
    first = Monitor()
    found = feed(first, readings[:cut])
    state = json.loads(json.dumps(first.state(), allow_nan=False))
    second = Monitor(state)
    feed(first, readings[cut:])  # must not touch what was saved
    found += feed(second, readings[cut:])
    assert found == expected
    assert second.state() == whole.state() == first.state()
