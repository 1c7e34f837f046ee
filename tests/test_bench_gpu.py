"""The benchmark of GPUs: its configs and arithmetic without one, the whole of it with one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import capped, gpu
from benchmarks.measure import Setup, Timing
from benchmarks.plain import PlainGPT, PlainStep
from dgsgpt.cli import main
from dgsgpt.config import RunConfig, build_config
from dgsgpt.costs import CUDA_RUNTIME_BYTES
from dgsgpt.errors import DgsgptError
from dgsgpt.fitting import override
from dgsgpt.planner import plan

CPU = torch.device("cpu")
GB = 10**9
H200 = "NVIDIA H200"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


# ---------------------------------------------------------------- without a GPU
@no_gpu
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_without_a_gpu_it_ends_in_one_line(device: str) -> None:
    result = CliRunner().invoke(main, ["bench", "gpu", "--device", device, "--quick"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: this benchmark needs an NVIDIA GPU")
    assert len(result.stderr.splitlines()) == 1


@no_gpu
def test_a_capped_process_without_a_gpu_says_so() -> None:
    with pytest.raises(DgsgptError, match="within 15 GB failed: error: torch finds no GPU here") as caught:
        capped.run_capped(gpu.profile_config("low"), 15 * GB, 2)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- P12
@pytest.mark.parametrize(("size", "params"), [*zip(gpu.SIZES, (124.5e6, 354e6), strict=True)])
def test_the_shapes_are_gpt_2s(size: gpu._Size, params: float) -> None:
    config = gpu.speed_config(size, 8, "on", "bf16")
    assert plan(config, "cuda").params == pytest.approx(params, rel=0.01)
    assert config.tokens_per_step == 8 * 1024 * gpu.ACCUMULATED
    assert (config.train.compile, config.train.precision) == ("on", "bf16")


def test_utilisation_is_arithmetic_over_the_peak() -> None:
    config = gpu.speed_config(gpu.SIZES[0], 8, "on", "bf16")
    per_token = plan(config, "cuda").flops_per_token
    # 6 a weight of every matrix, the output layer's among them but no table of positions, and 12 T C a layer.
    matrices = 12 * 12 * 768**2 + 768 * gpu.VOCAB_SIZE
    assert per_token == 6 * matrices + 12 * 12 * 768 * 1024
    assert gpu.utilisation(580_000, per_token, 989.4e12) == pytest.approx(580_000 * per_token / 989.4e12)
    assert gpu.utilisation(989.4e12 / per_token, per_token, 989.4e12) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        (H200, 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GH200 480GB", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_gpus_name(name: str, teraflops: float | None) -> None:
    peak = gpu.peak_flops(name)
    assert peak == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def speed_case(name: str, seconds: float = 0.2, quick: bool = False) -> gpu.Case:
    config = gpu.speed_config(gpu.SIZES[0], 32, "on", "bf16")
    times = {gpu.OURS: Timing((seconds, 1.25 * seconds, 0.8 * seconds)), gpu.PLAIN: Timing((1.5 * seconds,) * 3)}
    times |= {side: Timing((4 * seconds,) * 3) for side in gpu.SLOWER}
    return gpu.judge_speed(gpu.SIZES[0], config, times, name, Setup(CPU, 0, quick=quick))


def test_speed_on_an_h200_is_held_to_p12() -> None:
    case = speed_case(H200)
    figures = {f.name: f for f in case.figures}
    against = figures[f"speed, {gpu.OURS} / {gpu.PLAIN}"]
    assert (against.value, str(against.target), against.met) == (pytest.approx(1.5), "P12 at least 1.3", True)
    share = figures["model FLOPs utilisation"]
    tokens = 32 * 1024 * gpu.ACCUMULATED
    per_token = plan(gpu.speed_config(gpu.SIZES[0], 32, "on", "bf16"), "cuda").flops_per_token
    assert share.value == pytest.approx(tokens / 0.2 * per_token / 989.4e12)
    assert share.low is not None
    assert share.high is not None
    assert share.low < share.value < share.high
    assert str(share.target) == "P12 at least 0.5"
    assert "989.4 TFLOPS, dense bf16 of a NVIDIA H200" in case.notes[0]
    assert case.facts[gpu.OURS]["tokens_per_s"] == pytest.approx(tokens / 0.2)


def test_on_other_gpus_utilisation_has_no_target_and_an_unknown_one_no_figure() -> None:
    share = next(f for f in speed_case("NVIDIA L4").figures if f.name == "model FLOPs utilisation")
    assert share.target is None
    case = speed_case("Tesla T4")
    assert "model FLOPs utilisation" not in [f.name for f in case.figures]
    assert case.notes == ["no FLOPs utilisation: the peak of a Tesla T4 is not in dgsgpt/hardware.py"]


def test_the_micro_batch_is_what_half_the_memory_holds() -> None:
    size = gpu.SIZES[0]
    batches = [gpu.micro_batch(size, free) for free in (2 * GB, 16 * GB, 24 * GB, 48 * GB, 140 * GB)]
    assert batches[0] == 1
    assert batches == sorted(batches)
    assert batches[-1] == gpu.MOST_SEQUENCES


# ---------------------------------------------------------------- the other side
def tiny(precision: str = "fp32") -> RunConfig:
    return gpu.speed_config(replace(gpu.QUICK_SIZES[0], block_size=16, vocab_size=65), 2, "off", precision)


def test_the_plain_model_has_the_parameters_of_ours() -> None:
    config = tiny()
    assert sum(p.numel() for p in PlainGPT(config.model).parameters()) == plan(config).params


def test_the_plain_step_learns() -> None:
    step = PlainStep(tiny(), CPU, compiled=False)
    step()
    first = float(step.loss)
    assert first == pytest.approx(torch.tensor(65.0).log().item(), abs=0.1)
    for _ in range(60):
        step()
    assert float(step.loss) < first - 0.1


# ---------------------------------------------------------------- P9
@pytest.mark.parametrize("name", gpu.PROFILES)
def test_profiles_are_taken_as_they_are(name: str) -> None:
    config, shipped = gpu.profile_config(name), gpu.load_profile(name).config
    assert config.model == shipped.model
    assert config.train.micro_batch_size == shipped.train.micro_batch_size
    assert config.train.optimizer == shipped.train.optimizer
    assert config.train.grad_accum_steps == min(2, shipped.train.grad_accum_steps)
    assert (config.train.schedule.kind, config.train.schedule.warmup_steps) == ("constant", 0)
    assert build_config(json.loads(json.dumps(config.to_dict())), "stdin") == config  # as it reaches the process


def test_steps_of_the_trainers_kind_lower_the_loss() -> None:
    model = {"n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 64, "block_size": 32}
    small = {f"model.{key}": value for key, value in model.items()}
    config = override(gpu.profile_config("low"), {**small, "train.precision": "fp32", "train.lr": 1e-2})
    outcome = capped.take_steps(config, 12, CPU)
    assert len(outcome.losses) == len(outcome.seconds) == 12
    assert outcome.fell > 0.1
    assert outcome.losses[0] == pytest.approx(torch.tensor(4096.0).log().item(), abs=0.2)


def test_a_profile_is_judged_by_budget_plan_and_loss() -> None:
    config = gpu.profile_config("low")
    planned = plan(config, "cuda").total_bytes - CUDA_RUNTIME_BYTES
    good = capped.Outcome([8.0, 7.5, 7.0], [3.0, 0.5, 0.5], planned, planned)
    case = gpu.judge_profile("profile low", config, 15 * GB, good, quick=False)
    assert [f.met for f in case.figures] == [True] * 4
    assert case.times["step"].times_s == (0.5, 0.5)
    bad = replace(good, losses=[8.0, 8.0, 7.95], peak_bytes=15 * GB)
    case = gpu.judge_profile("profile low", config, 15 * GB, bad, quick=False)
    assert [f.met for f in case.figures] == [True, False, False, False]
    assert all(f.target is None for f in gpu.judge_profile("low", config, 15 * GB, bad, quick=True).figures)


# ---------------------------------------------------------------- with a GPU
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_quick_run_on_a_gpu_reports_speed_and_a_profile() -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "dgsgpt.cli", "bench", "gpu", "--quick", "--seconds", "0", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert ended.returncode == 0, ended.stderr
    speed, low = json.loads(ended.stdout)["cases"]
    assert {gpu.OURS, gpu.PLAIN, *gpu.SLOWER} == set(speed["sides"])
    figures = {figure["name"]: figure["value"] for figure in low["figures"]}
    assert figures["trains within its budget"] == 1.0, low["notes"]
    assert figures["nats that the loss fell"] > 0.1
