"""The process of a dry run: `python -m dgsgpt.train.dry_run FOLDER TOKEN`. Set-up and steps are the trainer's."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt.dry_run import REQUEST, DryRun, keep, read_request
from dgsgpt.errors import DgsgptError, RunError
from dgsgpt.planner import plan
from dgsgpt.runs import Run
from dgsgpt.train.advice import is_out_of_memory, out_of_memory_advice, usable_memory
from dgsgpt.train.report import Reporter

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


def try_steps(run_dir: Path, steps: int) -> dict[str, Any]:
    """Set up as a run would and make `steps` steps; what was measured, by the names of `DryRun`.

    Raises:
        DgsgptError: the config cannot be trained here.
    """
    from dgsgpt.train.setup import open_workshop

    reporter = Reporter(run_dir, steps)
    begun = time.perf_counter()
    shop = open_workshop(Run(run_dir), reporter)
    set_up_s = time.perf_counter() - begun
    forget_peak(shop.device)
    times: list[float] = []
    for index in range(steps):
        reporter.status(state="running", step=index, message=f"step {index + 1} of {steps}")
        before = time.perf_counter()
        shop.stepper.step(index)
        shop.stepper.wait()
        times.append(time.perf_counter() - before)
    facts = shop.settled.to_dict()
    tried = Run(run_dir).config.model_copy(update={"train": shop.train})
    return {
        "predicted_bytes": plan(tried, shop.device.type).total_bytes,  # for what `auto` has become
        "step_times": tuple(times),
        "step_s": statistics.median(times[1:] or times),
        "set_up_s": set_up_s,
        "peak_bytes": peak_since(shop.device),
        "settled": {k: facts[k] for k in ("precision", "compile", "micro_batch_size", "grad_accum_steps")},
    }


def forget_peak(device: torch.device) -> None:
    """Let the peak of the memory begin anew, after set-up, which a run needs only once."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _FORGET.exists():
        _FORGET.write_text("5")  # the peak of resident memory: see proc_pid_clear_refs(5)


def peak_since(device: torch.device) -> int:
    """Most memory in bytes since then: of this process on a CPU; on a GPU of torch's tensors and CUDA itself."""
    from dgsgpt.costs import CUDA_RUNTIME_BYTES
    from dgsgpt.train.describe import peak_bytes

    if device.type == "cuda":
        return peak_bytes(device) + CUDA_RUNTIME_BYTES  # which torch does not count and the prediction has, too
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    high = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return peak_bytes(device) if high is None else int(high) * 1024


def attempt(run_dir: Path) -> DryRun:
    """The dry run that the folder asks for, measured, or with the reason why it cannot be."""
    request = read_request(run_dir)
    if request is None:
        raise RunError(f"{run_dir / REQUEST}: is missing or damaged; begin the dry run again")
    try:
        return replace(request, **try_steps(run_dir, request.steps))
    except DgsgptError as e:
        return replace(request, error=str(e))
    except Exception as e:  # noqa: BLE001 - the edge of the process: told to the page, and whole in the log
        traceback.print_exc()
        if is_out_of_memory(e):
            from dgsgpt.hardware import detect

            config = Run(run_dir).config
            return replace(request, error=out_of_memory_advice(config, *usable_memory(config, detect(run_dir))))
        return replace(request, error=f"{type(e).__name__}: {str(e).strip()}"[:500])


def main() -> int:
    """Try the config in the folder on the command line, keep what was found and remove the folder."""
    run_dir = Path(sys.argv[1]).absolute()
    found = attempt(run_dir)
    keep(run_dir.parent.parent, found)
    shutil.rmtree(run_dir, ignore_errors=True)
    return 2 if found.error else 0


if __name__ == "__main__":
    sys.exit(main())
