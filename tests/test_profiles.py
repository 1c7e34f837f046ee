from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgsgpt.cli import main
from dgsgpt.config import RunConfig, load_config
from dgsgpt.costs import CUDA_RUNTIME_BYTES, RUNTIME_BYTES
from dgsgpt.errors import ConfigError
from dgsgpt.fitting import override
from dgsgpt.hardware import Gpu, Hardware, detect
from dgsgpt.planner import fit, naive, plan, report, verdict
from dgsgpt.profiles import PROFILE_NAMES, choose_profile, load_profile
from tests.tracker import fake_peak

BUDGETS = {"low": 15 * 10**9, "medium": 40 * 10**9, "high": 100 * 10**9}


def machine(gpu_gb: float | None) -> Hardware:
    gpu = None if gpu_gb is None else Gpu(0, "GPU", int(gpu_gb * 1e9), int(gpu_gb * 0.9e9), None, None, None)
    return Hardware((gpu,) if gpu else (), "CPU", 8, 0.0, 32_000_000_000, 20_000_000_000, 10**12, 10**11)


@pytest.mark.parametrize(
    ("name", "batch", "context", "layers", "width"),
    [("low", 2, 512, 4, 1024), ("medium", 16, 8192, 32, 4096), ("high", 32, 16384, 40, 5120)],
)
def test_profiles_have_the_shapes_that_were_asked_for(
    name: str, batch: int, context: int, layers: int, width: int
) -> None:
    config = load_profile(name).config
    assert config.train.micro_batch_size * config.train.grad_accum_steps == batch
    assert config.model.block_size == context
    assert config.model.n_layer == layers
    assert config.model.n_embd == width


@pytest.mark.parametrize(
    ("gpu_gb", "name"),
    [
        (None, "cpu"),
        (8, "low"),
        (15, "low"),
        (19.9, "low"),
        (20, "medium"),
        (40, "medium"),
        (49.9, "medium"),
        (50, "high"),
        (141, "high"),
    ],
)
def test_the_profile_follows_the_memory_of_the_gpu(gpu_gb: float | None, name: str) -> None:
    assert choose_profile(machine(gpu_gb)) == name


def test_free_memory_is_that_of_the_training_device() -> None:
    assert machine(None).device == "cpu"
    assert machine(None).free_bytes == 20_000_000_000
    assert machine(16).device == "cuda"
    assert machine(16).free_bytes == int(14.4e9)


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="cpu, low, medium, high"):
        load_profile("huge")
    assert PROFILE_NAMES == ("cpu", "low", "medium", "high")


def test_this_machine_is_read() -> None:
    here = detect()
    assert here.cpu_cores >= 1
    assert 0 < here.ram_available_bytes <= here.ram_total_bytes
    assert 0 < here.disk_free_bytes <= here.disk_total_bytes
    assert here.name


# ---------------------------------------------------------------- budgets
@pytest.mark.parametrize("name", BUDGETS)
def test_a_profile_fits_its_budget_with_cuda_itself_and_the_plain_recipe_of_the_large_ones_does_not(name: str) -> None:
    config = load_profile(name).config
    need = plan(config, "cuda").total_bytes
    assert plan(config, "cuda").memory["workspace"] >= CUDA_RUNTIME_BYTES
    assert verdict(need, BUDGETS[name]) == "fits"
    plain = plan(naive(config), "cuda").total_bytes
    assert (plain > BUDGETS[name]) == (name != "low")
    header = (Path("configs/profiles") / f"{name}.yaml").read_text().split("schema_version")[0]
    figures = [float(figure.replace(",", "")) for figure in re.findall(r"([\d.,]+) GB", header)]
    assert any(figure == pytest.approx(need / 1e9, rel=0.005) for figure in figures)
    assert any(figure == pytest.approx(plain / 1e9, rel=0.005) for figure in figures)


@pytest.mark.parametrize("name", ["low", "medium", pytest.param("high", marks=pytest.mark.slow)])
def test_a_profiles_real_modules_take_what_is_planned(name: str) -> None:
    """Of the whole model in fake tensors on the CPU's operators; more than two accumulations take no more memory."""
    config = load_profile(name).config
    accumulated = min(2, config.train.grad_accum_steps)
    # What the tokenizer will have, and what `auto` is on a GPU.
    known = {"model.vocab_size": 4096, "train.precision": "bf16", "train.grad_accum_steps": accumulated}
    config = override(config, known)
    peak = fake_peak(config)
    assert plan(config, "cpu").total_bytes - RUNTIME_BYTES == pytest.approx(peak, rel=0.01)
    assert peak + CUDA_RUNTIME_BYTES < 0.95 * BUDGETS[name]


def test_a_header_says_how_long_a_full_run_would_take() -> None:
    for name, unit, pattern in (("low", 60, r"(\d+) minutes"), ("medium", 86400, r"about (\d+) days"),
                                ("high", 86400, r"about (\d+) days")):  # fmt: skip
        priced = plan(load_profile(name).config, "cuda")
        seconds = 20 * priced.params * priced.flops_per_token / (0.4 * 989e12)
        header = " ".join(line.lstrip("# ") for line in Path(f"configs/profiles/{name}.yaml").read_text().splitlines())
        found = re.search(pattern, header)
        assert found is not None
        assert int(found[1]) == pytest.approx(seconds / unit, rel=0.03)
        assert "not measured" in header


def test_the_chosen_profile_is_fitted_to_a_card_that_is_smaller_or_partly_taken() -> None:
    medium = load_profile("medium").config
    fitted = fit(medium, int(23e9), "cuda")
    assert fitted is not None
    assert plan(fitted.config, "cuda").params == plan(medium, "cuda").params
    assert any("not clipped" in change or "nothing is clipped" in change for change in fitted.changes)
    # A card of 40 GB of which other programs hold half is like one of 20.
    said = report(medium, taken(40, 20))
    assert (said["fits"], said["verdict"]) == (False, "over")
    assert said["fitted"]["overrides"]["train.optimizer_in_backward"] is True
    assert report(medium, taken(40, 39))["fitted"] is None


def taken(total_gb: float, free_gb: float) -> Hardware:
    gpu = Gpu(0, "GPU", int(total_gb * 1e9), int(free_gb * 1e9), None, None, None)
    return Hardware((gpu,), "CPU", 8, 0.0, 32_000_000_000, 20_000_000_000, 10**12, 10**11)


# ---------------------------------------------------------------- dgsgpt plan
@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgsgpt.hardware.detect", lambda *_: taken(24, 23))


@pytest.mark.usefixtures("card")
def test_plan_takes_a_profile_says_what_to_change_and_writes_it(tmp_path: Path) -> None:
    made = tmp_path / "fitted.yaml"
    result = CliRunner().invoke(main, ["plan", "auto", "--fit", str(made)])
    assert result.exit_code == 0, result.output
    assert "does not fit: needs" in result.output
    assert "updates       adafactor of matrices" in result.output
    assert "--set train.optimizer_in_backward=true" in result.output
    fitted = load_config(made)
    assert verdict(plan(fitted, "cuda").total_bytes, int(23e9)) == "fits"
    command = result.output[result.output.index("--set") :].split("\n")[0].split()
    again: RunConfig = load_config(Path("configs/profiles/medium.yaml"), command[1::2])
    assert again == fitted
    repeated = CliRunner().invoke(main, ["plan", "auto", "--fit", str(made)])
    assert repeated.exit_code == 2
    assert "exists already" in repeated.output


@pytest.mark.usefixtures("card")
def test_plan_in_json_has_the_fitted_version_the_groups_and_the_plain_need() -> None:
    said = json.loads(CliRunner().invoke(main, ["plan", "medium", "--json"]).stdout)
    assert said["naive_bytes"] > said["memory"]["total"] > said["free_bytes"] == int(23e9)
    assert [group["name"] for group in said["groups"]] == ["matrices", "vectors"]
    assert said["fitted"]["total_bytes"] < said["free_bytes"]
    assert said["fitted"]["changes"]
    unknown = CliRunner().invoke(main, ["plan", "huge"])
    assert unknown.exit_code == 2
    assert unknown.output.startswith("error: huge")
