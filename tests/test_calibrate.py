"""How fast this machine trains: what is measured, kept, and concluded for a config."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner

from dgsgpt import calibrate, files, hardware
from dgsgpt.calibrate import Calibration, Rate, expected, pass_flops, read_calibration
from dgsgpt.cli import main
from dgsgpt.config import RunConfig
from dgsgpt.costs import count_flops_per_token
from dgsgpt.errors import RunError
from dgsgpt.train import speed

Make = Callable[..., RunConfig]


def rate(size: str, precision: str, flops: float, per_s: float) -> Rate:
    return Rate(size, precision, 1, flops, per_s, 0.8 * per_s, 1.25 * per_s, 9)


def calibration(*rates: Rate) -> Calibration:
    machine = hardware.detect()
    return Calibration(time.time(), machine.device, machine.name, 1, "2", 0.0, rates)


def keep(root: Path, found: Calibration) -> None:
    root.mkdir(parents=True, exist_ok=True)
    files.write_json(root / calibrate.FILE, found.to_dict())


# ---------------------------------------------------------------- what it says of a config
def test_a_pass_is_counted_as_the_planner_counts_its_tokens(make_config: Make) -> None:
    config = make_config()
    assert pass_flops(config) == 4 * 32 * count_flops_per_token(config.model)


def test_between_two_models_the_speed_is_the_geometric_mean_at_the_geometric_middle(make_config: Make) -> None:
    config = make_config()
    middle = pass_flops(config)
    found = expected(
        calibration(rate("small", "fp32", middle / 10, 4e9), rate("medium", "fp32", middle * 10, 9e9)), config
    )
    assert found is not None
    assert found.flops_per_s == pytest.approx(math.sqrt(4e9 * 9e9))
    assert (found.slow, found.fast) == (0.8 * 4e9, 1.25 * 9e9)


@pytest.mark.parametrize(("scale", "per_s"), [(10.0, 4e9), (0.1, 9e9)])
def test_outside_of_what_was_measured_the_nearer_model_counts(make_config: Make, scale: float, per_s: float) -> None:
    config = make_config()
    small, medium = (rate(n, "fp32", scale * pass_flops(config) * k, v) for n, k, v in (("s", 1, 4e9), ("m", 2, 9e9)))
    found = expected(calibration(small, medium), config)
    assert found is not None
    assert found.flops_per_s == per_s


def test_a_precision_or_device_that_was_not_measured_has_no_speed(make_config: Make) -> None:
    known = replace(calibration(rate("small", "fp32", 1e9, 4e9)), device="cpu")
    assert expected(known, make_config(**{"train.precision": "bf16"})) is None
    assert expected(known, make_config(**{"train.device": "cuda"})) is None


def test_auto_counts_as_the_precision_that_was_faster_on_the_larger_model(make_config: Make) -> None:
    known = calibration(
        rate("small", "fp32", 1e3, 9e9), rate("small", "bf16", 1e3, 4e9),
        rate("medium", "fp32", 2e3, 3e9), rate("medium", "bf16", 2e3, 8e9),
    )  # fmt: skip
    found = expected(replace(known, device="cpu"), make_config())
    assert found is not None
    assert found.flops_per_s == 8e9


# ---------------------------------------------------------------- kept
def test_what_was_kept_is_read_again_but_not_on_another_device(tmp_path: Path) -> None:
    machine = hardware.detect()
    known = calibration(rate("small", "fp32", 1e9, 4e9))
    keep(tmp_path, known)
    assert read_calibration(tmp_path, machine) == known
    assert read_calibration(tmp_path, replace(machine, cpu_name="Another", gpus=())) is None


@pytest.mark.parametrize("damage", [{"rates": []}, {"rates": [{"model": "x"}]}, {"rates": None}, {"threads": ...}])
def test_a_damaged_file_is_no_calibration(tmp_path: Path, damage: dict[str, Any]) -> None:
    values = calibration(rate("small", "fp32", 1e9, 4e9)).to_dict() | damage
    values = {key: value for key, value in values.items() if value is not ...}
    files.write_json(tmp_path / calibrate.FILE, values)
    assert read_calibration(tmp_path, hardware.detect()) is None


def test_a_rate_of_zero_is_no_calibration(tmp_path: Path) -> None:
    keep(tmp_path, calibration(rate("small", "fp32", 1e9, 0.0)))
    assert read_calibration(tmp_path, hardware.detect()) is None


# ---------------------------------------------------------------- measured
def test_the_worker_measures_real_steps_of_every_model_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.SHAPES, "cpu", {"small": (1, 1, 16, 16, 2), "medium": (2, 2, 32, 32, 2)})
    monkeypatch.setattr(speed, "precisions", lambda device: ["fp32"])
    said: list[dict[str, Any]] = []
    speed.measure("cpu", 0.01, said.append)
    rates = [Rate(**values) for values in said[-1]["rates"]]
    assert [r.model for r in rates] == ["small", "medium"]
    assert all(0 < r.slow <= r.flops_per_s <= r.fast for r in rates)
    assert [s["share"] for s in said[:-1]] == [0.0, 0.5]


def test_where_memory_runs_out_the_smaller_model_tells_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_steps(config: RunConfig, *_: object) -> list[float]:
        if config.model.n_embd > 128:
            raise MemoryError
        return [0.5]

    monkeypatch.setattr(speed, "time_steps", time_steps)
    monkeypatch.setattr(speed, "precisions", lambda device: ["fp32"])
    said: list[dict[str, Any]] = []
    speed.measure("cpu", 0.01, said.append)
    assert [rate["model"] for rate in said[-1]["rates"]] == ["small"]


def test_a_rate_is_the_arithmetic_of_a_step_over_its_median_time() -> None:
    config = speed.shape_config("cpu", "small", "fp32")
    found = speed.rate_of("small", config, [2.0, 1.0, 4.0])
    assert found.flops_per_s * 2.0 == pytest.approx(pass_flops(config))
    assert found.slow * 4.0 == pytest.approx(found.fast * 1.0)


def test_slow_steps_end_the_measuring_early() -> None:
    config = speed.shape_config("cpu", "small", "fp32")
    assert len(speed.time_steps(config, torch.device("cpu"), 1e-9)) == 1


# ---------------------------------------------------------------- by a process of its own
def worker(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_the_result_of_the_process_is_kept_and_shown(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [rate("small", "fp32", 1e9, 4e9).__dict__]
    result = json.dumps({"threads": 2, "torch": "2.13", "load": 0.0, "rates": rates})
    code = f"print('a library says hello'); print('{json.dumps({'message': 'm', 'share': 0.5})}'); print('{result}')"
    monkeypatch.setattr(calibrate, "WORKER", worker(code))
    machine = hardware.detect()
    assert list(calibrate.measure(runs_dir, machine)) == [("loading torch", 0.0), ("m", 0.5)]
    found = read_calibration(runs_dir, machine)
    assert found is not None
    assert found.rates[0].flops_per_s == 4e9
    shown = CliRunner().invoke(main, ["calibrate", "--show", "--json", "--runs-dir", str(runs_dir)])
    assert json.loads(shown.output)["rates"] == rates


def test_a_process_that_fails_is_told_and_nothing_is_kept(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "WORKER", worker("raise SystemExit(3)"))
    with pytest.raises(RunError, match="exit code 3"):
        list(calibrate.measure(runs_dir, hardware.detect()))
    assert not (runs_dir / calibrate.FILE).exists()


def test_closing_the_measurement_ends_its_process(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "WORKER", worker("import os, time; print(os.getpid()); time.sleep(60)"))
    before = {child.pid for child in psutil.Process().children()}
    going = calibrate.measure(runs_dir, hardware.detect())
    next(going)
    (child,) = [c for c in psutil.Process().children() if c.pid not in before]
    going.close()
    assert not child.is_running()


def test_showing_what_was_never_measured_is_an_error_that_names_the_remedy(runs_dir: Path) -> None:
    result = CliRunner().invoke(main, ["calibrate", "--show", "--runs-dir", str(runs_dir)])
    assert result.exit_code == 2
    assert "run `dgsgpt calibrate`" in result.output
