"""Training on a GPU: nothing in a step waits for it, it computes what it should, and runs go on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgsgpt.config import ModelConfig, RunConfig, TrainConfig
from dgsgpt.data.loader import Batch
from dgsgpt.metrics import read_events, read_metrics
from dgsgpt.runs import Run, create_run
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing, compile_blocks
from dgsgpt.train.report import StopRequest
from dgsgpt.train.session import EXIT_STOPPED, train_run
from dgsgpt.train.stepper import Stepper
from dgsgpt.train.weights import build_model
from tests.model.tiny import TINY, VARIANTS

Make = Callable[..., RunConfig]
ALIGNED: dict[str, Any] = {"n_embd": 64, "n_kv_head": 4, "mlp_hidden": 128, "vocab_size": 64}  # what kernels ask for
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class FewTokens:
    """Batches of random tokens out of eight, by number."""

    def __init__(self, model: ModelConfig) -> None:
        self._shape = (4, model.block_size + 1)

    def get(self, step: int) -> Batch:
        tokens = torch.randint(8, self._shape, generator=torch.Generator().manual_seed(step))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def stepper(device: str, model: dict[str, Any] | None = None, compiled: bool = False, **train: Any) -> Stepper:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**TINY, **(model or {})})
    settings = TrainConfig.model_validate(
        {"micro_batch_size": 4, "lr": 3e-3, "schedule": {"kind": "constant", "warmup_steps": 0}, **train}
    )
    network = build_model(config, settings.weight_precision, torch.device(device))
    apply_gradient_checkpointing(network, settings.gradient_checkpointing)
    if compiled:
        assert compile_blocks(network) is None
    batches: Any = FewTokens(config)
    return Stepper(network, build_updates(network, settings), batches, settings, torch.device(device))


# ---------------------------------------------------------------- anywhere
class Reading(TorchDispatchMode):
    """Notes the type of every number that is read back from a tensor: on a GPU each would be a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator in READS:
            self.found.append(f"{operator} {args[0].dtype}")
        return operator(*args, **(kwargs or {}))


COUNTED = "aten._local_scalar_dense.default torch.int64"  # the valid targets of a micro-batch, still on the CPU


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if "odd_experts" not in name]
)  # whose widths suit no kernel
def test_forward_and_backward_and_clipping_read_nothing_back(variant: str, mode: str) -> None:
    s = stepper("cpu", VARIANTS[variant], grad_accum_steps=2, gradient_checkpointing=mode)
    s.decides_here = False  # as on a GPU
    with Reading() as reading:
        s._accumulate(0)
        s._clip()
    assert reading.found == [COUNTED] * 2


def test_what_is_read_back_is_noticed() -> None:
    with Reading() as reading:
        float(torch.ones(()))
        torch.ones(3).nonzero()
    assert reading.found == ["aten._local_scalar_dense.default torch.float32", "aten.nonzero.default torch.float32"]


# ---------------------------------------------------------------- on a GPU
@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestOnAGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("variant", ["gqa", "window", "moe", "capacity", "bias_balanced", "ngram", "shortcuts"])
    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    @pytest.mark.parametrize("weights", ["fp32", "bf16"])
    def test_a_step_waits_for_nothing(self, variant: str, optimizer: str, weights: str) -> None:
        s = stepper(
            "cuda", {**VARIANTS[variant], **ALIGNED}, optimizer=optimizer, precision="bf16", weight_precision=weights
        )
        for index in range(3):  # kernels are loaded, and workspaces taken
            s.step(index)
        with nothing_waits():
            for index in range(3, 6):
                s.step(index)
        assert s.step(6).read().finite
        assert s.skipped() == 0

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("variant", ["gqa", "moe"])
    def test_losses_are_those_of_the_cpu_and_fall(self, variant: str, precision: str) -> None:
        model = {**VARIANTS[variant], **ALIGNED}
        ours, reference = stepper("cuda", model, precision=precision), stepper("cpu", model, precision="fp32")
        if precision == "fp16":
            assert ours.loss_scale is not None
        losses = [(ours.step(i).read().loss, reference.step(i).read().loss) for i in range(30)]
        for a, b in losses[:3]:
            assert a == pytest.approx(b, rel=1e-3 if precision == "fp32" else 3e-2)
        assert losses[-1][0] < losses[0][0] - 0.5
        assert losses[-1][0] == pytest.approx(losses[-1][1], abs=0.3)

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("variant", ["gqa", "moe", "window"])
    @pytest.mark.parametrize("mode", ["none", "full", "selective"])
    def test_compiled_steps_are_the_eager_ones(self, variant: str, mode: str) -> None:
        model = {**VARIANTS[variant], **ALIGNED}
        options = {"precision": "bf16", "gradient_checkpointing": mode}
        eager, compiled = stepper("cuda", model, **options), stepper("cuda", model, compiled=True, **options)
        for index in range(5):
            a, b = eager.step(index).read(), compiled.step(index).read()
            assert a.loss == pytest.approx(b.loss, rel=2e-2)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-1)

    @pytest.mark.slow
    @pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 3e-3), ("muon", 3e-3), ("adafactor", 0.1)])
    def test_a_run_is_stopped_and_goes_on(self, make_config: Make, runs_dir: Path, optimizer: str, lr: float) -> None:
        settings = {"optimizer": optimizer, "lr": lr, "device": "cuda", "steps": 40, "log_every": 5}
        config = make_config(**{f"train.{name}": value for name, value in settings.items()})
        run = create_run(runs_dir, config, optimizer)
        assert train_run(run.path, StopAfter(run, 15)) == EXIT_STOPPED
        assert train_run(run.path, StopRequest(run.path)) == 0
        events = read_events(run.path)
        assert next(e for e in events if e["kind"] == "start")["device"] == "cuda"
        assert next(e for e in events if e["kind"] == "resume")["step"] == 15
        assert not [e for e in events if e["kind"] == "health" and e.get("severity") == "error"]
        settled = json.loads((run.path / "run.json").read_text())["settled"]
        assert settled["precision"] in ("bf16", "fp16", "fp32")
        losses = read_metrics(run.path)["loss/train"].dropna()
        assert losses.iloc[-1] < losses.iloc[0] - 0.5


class StopAfter(StopRequest):
    """Asks to stop once so many steps are done."""

    def __init__(self, run: Run, steps: int) -> None:
        super().__init__(run.path)
        self._left = steps

    def check(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self.reason = "asked to stop"
        return self.reason is not None
