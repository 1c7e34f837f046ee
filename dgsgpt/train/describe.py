"""Facts a trainer records beside its figures: a checkpoint's metadata, the data it used, memory at its peak."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dgsgpt
from dgsgpt import files
from dgsgpt.hardware import cpu_name, peak_flops

if TYPE_CHECKING:
    from dgsgpt.data.prepare import Dataset
    from dgsgpt.evaluation import Evaluation
    from dgsgpt.runs import Run
    from dgsgpt.train.progress import Progress
    from dgsgpt.train.setup import Workshop


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: by torch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        import psutil

        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if platform.system() == "Darwin" else int(peak) * 1024


def utilisation(device: torch.device, tokens_per_s: float, flops_per_token: int) -> dict[str, float]:
    """`perf/mfu`: the model's own arithmetic as a share of the GPU's bfloat16 peak; nothing where that is not known.

    Chowdhery et al. 2022 (PaLM), appendix B.
    """
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {} if peak is None else {"perf/mfu": tokens_per_s * flops_per_token / peak}


def record_data(run_dir: Path, dataset: Dataset) -> None:
    """Complete run.json with the fingerprints of data and tokenizer, known only once the text is prepared."""
    facts = files.read_json(run_dir / "run.json") or {}
    if facts.get("data") is None:
        data = {
            "dataset": dataset.id,
            "fingerprint": dataset.fingerprint,
            "tokenizer_sha256": dataset.meta["tokenizer_sha256"],
            "train_tokens": dataset.train_tokens,
            "val_tokens": dataset.val_tokens,
            "train_bytes": dataset.train_bytes,
            "val_bytes": dataset.val_bytes,
        }
        files.write_json(run_dir / "run.json", {**facts, "data": data})


def checkpoint_metadata(run: Run, shop: Workshop, progress: Progress, whole_eval: Evaluation | None) -> dict[str, Any]:
    """What the checkpoint browser shows; everything is known without opening the weights.

    Sizes of the files and a summary of the config are added when it is saved.
    """
    steps, losses, lrs = (
        (list(column) for column in zip(*progress.recent, strict=True)) if progress.recent else ([], [], [])
    )
    val_step, val = progress.last_eval if progress.last_eval else (None, None)
    device = torch.cuda.get_device_name(shop.device) if shop.device.type == "cuda" else cpu_name()
    return {
        "run_id": run.id,
        "step": progress.step,
        "max_steps": run.config.train.steps,
        "tokens": progress.tokens,
        "flops": progress.tokens * shop.plan.flops_per_token,
        "train_time_s": progress.train_time_s,
        "tokens_per_s": progress.tokens / progress.train_time_s if progress.train_time_s > 0 else None,
        "peak_bytes": peak_bytes(shop.device),
        "saved_at": time.time(),
        "params": shop.plan.params,
        "active_params": shop.plan.active_params,
        "loss_train": losses[-1] if losses else None,
        "loss_val": val.loss if val else None,
        "ppl_val": val.ppl if val else None,
        "bpb_val": val.bpb if val else None,
        "val_step": val_step,
        "whole_split_eval": whole_eval.to_dict() if whole_eval else None,
        "best": val is not None and progress.best_val is not None and val.loss <= progress.best_val,
        "settled": shop.settled.to_dict(),
        "weight_precision": run.config.train.weight_precision,
        "lr": lrs[-1] if lrs else None,
        "recent_steps": steps,
        "recent_losses": losses,
        "recent_lrs": lrs,
        "corpus": run.config.data.corpus,
        "data_fingerprint": shop.dataset.fingerprint,
        "tokenizer_kind": shop.dataset.tokenizer_kind,
        "tokenizer_sha256": shop.tokenizer.sha256,
        "vocab_size": shop.dataset.vocab_size,
        "parent": run.facts.get("parent"),
        "git": run.facts.get("git"),
        "device": f"{shop.device.type}: {device}",
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python_version": platform.python_version(),
        "dgsgpt_version": dgsgpt.__version__,
    }
