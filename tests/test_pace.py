"""How long a config will take: from which measurement, and by which arithmetic."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgsgpt import dry_run, hardware, pace
from dgsgpt.calibrate import Calibration, Rate
from dgsgpt.cli import main
from dgsgpt.config import RunConfig
from dgsgpt.costs import count_flops_per_token
from dgsgpt.dry_run import DryRun
from dgsgpt.pace import Speed
from tests.run_factory import config as factory_config
from tests.run_factory import make_run

Make = Callable[..., RunConfig]
RUN = Speed(2e9, 1e9, 4e9, "run", "one")


def known() -> Calibration:
    machine = hardware.detect()
    return Calibration(1.0, "cpu", machine.name, 1, "2", 0.0, (Rate("small", "fp32", 1, 1e9, 5e9, 4e9, 6e9, 9),))


def of_steps(config: RunConfig, step_s: float) -> DryRun:
    name = hardware.detect().name
    return DryRun("i", 5.0, "t", dry_run.fingerprint(config), "cpu", name, 3, 9, 1, step_times=(9.0, 1.0, step_s),
                  step_s=step_s)  # fmt: skip


def test_a_run_s_time_is_its_arithmetic_over_the_speed(make_config: Make) -> None:
    config = make_config(**{"train.steps": 20, "train.eval_every": 10, "train.eval_tokens": 512})
    per_token = count_flops_per_token(config.model)
    flops = 20 * 4 * 32 * per_token + 2 * 512 * per_token / 3  # two validations of 512 tokens, forward only
    found = pace.duration_of(config, RUN)
    assert found.seconds == pytest.approx(flops / 2e9)
    assert (found.low, found.high) == (pytest.approx(flops / 4e9), pytest.approx(flops / 1e9))


def test_recomputing_blocks_costs_a_third_of_their_arithmetic_more(make_config: Make) -> None:
    plain, full = make_config(), make_config(**{"train.gradient_checkpointing": "full"})
    more = pace.arithmetic_per_token(full) - pace.arithmetic_per_token(plain)
    assert more == pytest.approx(count_flops_per_token(plain.model, blocks_only=True) / 3)


def test_the_closest_measurement_counts(make_config: Make) -> None:
    config = make_config()
    tried = replace(RUN, kind="dry run")
    far = make_config(**{"train.micro_batch_size": 64})
    unlike = make_config(**{"train.optimizer": "muon"})
    assert pace.choose(config, tried, [(config, RUN)], known()) is tried
    assert pace.choose(config, None, [(far, replace(RUN, source="far")), (config, RUN)], known()) is RUN
    by_calibration = pace.choose(config, None, [(unlike, RUN)], known())
    assert by_calibration is not None
    assert (by_calibration.kind, by_calibration.flops_per_s) == ("calibration", 5e9)
    assert pace.choose(config, None, [(unlike, RUN)], None) is RUN
    assert pace.choose(config, None, [], None) is None
    huge = make_config(**{"train.micro_batch_size": 400})
    assert pace.choose(huge, None, [(config, RUN)], None) is None, "a hundred times the size: it tells nothing"


def test_a_dry_run_counts_for_configs_of_the_same_steps_only(make_config: Make) -> None:
    config, machine = make_config(), hardware.detect()
    found = pace.tried(make_config(**{"train.lr": 1e-5}), machine, [of_steps(config, 3.0)])
    assert found is not None
    assert found.flops_per_s * 3.0 == pytest.approx(pace.step_flops(config))
    assert found.fast * 1.0 == pytest.approx(found.slow * 3.0)
    assert pace.tried(make_config(**{"model.n_layer": 1}), machine, [of_steps(config, 3.0)]) is None
    assert pace.tried(config, replace(machine, cpu_name="Other", gpus=()), [of_steps(config, 3.0)]) is None


def test_a_run_on_this_machine_tells_its_speed_and_one_of_another_does_not(runs_dir: Path) -> None:
    run = make_run(runs_dir, "one", config=factory_config())
    machine = replace(hardware.detect(), cpu_name=run.facts["hardware"]["name"], gpus=())
    found = pace.gather(machine, runs_dir, [run], lambda _: [10.0, 20.0, 30.0]).speed_of(run.config)
    assert found is not None
    assert (found.kind, found.source) == ("run", "one")
    assert found.flops_per_s == pytest.approx(20.0 * pace.arithmetic_per_token(run.config))
    elsewhere = replace(machine, cpu_name="Other")
    assert pace.gather(elsewhere, runs_dir, [run], lambda _: [10.0]).speed_of(run.config) is None
    assert found.at is not None
    assert found.at <= time.time()


def test_plan_tells_the_time_once_it_can_be_known(runs_dir: Path, tmp_path: Path, make_config: Make) -> None:
    config, path = make_config(), tmp_path / "tiny.yaml"
    path.write_text(config.to_yaml())
    command = ["plan", str(path), "--json", "--runs-dir", str(runs_dir)]
    assert json.loads(CliRunner().invoke(main, command).output)["time"] is None
    runs_dir.mkdir()
    dry_run.keep(runs_dir, of_steps(config, 2.0))
    told = json.loads(CliRunner().invoke(main, command).output)["time"]
    assert told["step_s"] == pytest.approx(2.0)
    assert told["seconds"] >= config.train.steps * 2.0
    assert told["low_s"] < told["seconds"] <= told["high_s"]
