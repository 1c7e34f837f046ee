"""What a trainer works with: data, model, optimizer and stepper, put together from the run's config."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from dgsgpt import files
from dgsgpt.config import TrainConfig
from dgsgpt.data.loader import Batches
from dgsgpt.data.prepare import Dataset, prepare
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import RunError
from dgsgpt.hardware import detect
from dgsgpt.model import GPT
from dgsgpt.model.fast_attention import use_fast_windows
from dgsgpt.model.norm import compute_dtype
from dgsgpt.planner import Plan, plan
from dgsgpt.runs import Run
from dgsgpt.train.advice import usable_memory
from dgsgpt.train.describe import record_data
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing, compile_blocks
from dgsgpt.train.precision import autocast
from dgsgpt.train.report import Reporter, say
from dgsgpt.train.settle import Settled, recall, settle
from dgsgpt.train.stepper import Stepper, pick_device
from dgsgpt.train.weights import build_model


@dataclass
class Workshop:
    """The parts of one run; `train` has no `auto` left."""

    train: TrainConfig
    device: torch.device
    plan: Plan
    dataset: Dataset
    tokenizer: Tokenizer
    model: GPT
    stepper: Stepper
    settled: Settled

    def facts(self) -> dict[str, Any]:
        """What the start of a run is worth telling."""
        return {
            "threads": torch.get_num_threads(),
            "precision": self.train.precision,
            "compile": self.train.compile,
            "micro_batch_size": self.train.micro_batch_size,
            "grad_accum_steps": self.train.grad_accum_steps,
            "groups": [
                f"{g.name}: {g.rule}, {g.numbers:,} numbers, lr {g.lr:g}, weight decay {g.weight_decay:g}"
                for g in self.stepper.updates.groups
            ],
        }


def open_workshop(run: Run, reporter: Reporter) -> Workshop:
    """Prepare the data, build the model from the seed, and settle what `auto` means here.

    Raises:
        DataError: the text cannot be used.
        RunError: the device is not there, or the vocabulary does not fit the model.
    """
    config = run.config
    reporter.status(message="preparing data")
    dataset = prepare(config.data, config.model.block_size, progress=reporter.progress)
    record_data(run.path, dataset)
    device = pick_device(config.train.device)
    reporter.status(message="building the model")
    torch.manual_seed(config.train.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    _check_vocabulary(run, dataset)
    model = build_model(config.model, config.train.weight_precision, device)
    apply_gradient_checkpointing(model, config.train.gradient_checkpointing)

    def make_batches(micro_batch_size: int) -> Batches:
        return Batches(
            dataset,
            "train",
            block_size=config.model.block_size,
            batch_size=micro_batch_size,
            seed=config.train.seed,
        )

    settled = recall(run.facts)
    if settled is None:
        reporter.status(message="finding the fastest way to compute here")
        settled = settle(config, model, make_batches, device, usable_memory(config, detect(run.path))[1])
        facts = files.read_json(run.path / "run.json") or {}
        files.write_json(run.path / "run.json", {**facts, "settled": settled.to_dict()})
    for sentence in settled.why:
        say(sentence)
    train = settled.applied(config.train)
    _choose_attention(model, device, train, reporter)
    if train.compile == "on":
        problem = compile_blocks(model)
        if problem is not None:
            say(f"running without compilation: {problem}")
            train = train.model_copy(update={"compile": "off"})
    updates = build_updates(model, train)
    stepper = Stepper(model, updates, make_batches(train.micro_batch_size), train, device)
    gc.collect()
    gc.freeze()  # what lives until the end need not be walked by every collection
    return Workshop(train, device, plan(config, device.type), dataset, dataset.tokenizer, model, stepper, settled)


def _check_vocabulary(run: Run, dataset: Dataset) -> None:
    given = run.config.model.vocab_size
    if given is None or given >= dataset.vocab_size:
        return
    began_with = (run.facts.get("data") or {}).get("fingerprint")
    if began_with not in (None, dataset.fingerprint):
        raise RunError(
            f"data.corpus={run.config.data.corpus!r} has changed since the run began and has {dataset.vocab_size} "
            f"characters now, the model knows {given}; put the old text back, or start a new run"
        )
    raise RunError(f"model.vocab_size={given} is smaller than the tokenizer's {dataset.vocab_size}; set it to null")


def _choose_attention(model: GPT, device: torch.device, train: TrainConfig, reporter: Reporter) -> None:
    """Give sliding layers the fastest kernel that agrees with the reference here, and say which it is."""
    if model.config.window is None:
        return
    with autocast(device, train.precision)():
        dtype = compute_dtype(torch.empty(0, device=device))
    choice = use_fast_windows(model, device, dtype)
    why = "".join(f"; not {name}: {reason}" for name, reason in choice.passed_over.items())
    reporter.event("attention", 0, window_backend=choice.backend.name, passed_over=choice.passed_over)
    say(f"sliding windows: {choice.backend.name} attention{why}")
