"""Checkpoints of the run in hand: what goes into one, and going on from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.branch import begins_with, check_begun
from dgsgpt.data.tokenizer import load_tokenizer
from dgsgpt.errors import CheckpointError, RunError
from dgsgpt.evaluation import Evaluation
from dgsgpt.runs import Run
from dgsgpt.train.describe import checkpoint_metadata
from dgsgpt.train.health import Monitor
from dgsgpt.train.progress import Progress
from dgsgpt.train.report import Reporter, say
from dgsgpt.train.resume import (
    check_unchanged,
    compare_environments,
    describe_environment,
    random_numbers,
    random_tensors,
    restore_random,
)
from dgsgpt.train.saver import Saver
from dgsgpt.train.setup import Workshop


class Archive:
    """Saves and restores a workshop with the progress made in it."""

    def __init__(self, run: Run, shop: Workshop, reporter: Reporter) -> None:
        self._run, self._shop, self._reporter = run, shop, reporter
        self._saver = Saver(run, shop.train.keep_last, shop.train.background_save)
        self._saved_step: int | None = None

    # ------------------------------------------------------------ saving
    def save(self, progress: Progress, monitor: Monitor, whole_eval: Evaluation | None = None) -> None:
        """Begin to save a checkpoint of this moment, once the one before is on the disk.

        Raises:
            CheckpointError: one of the two cannot be written.
        """
        self.poll(wait=True)
        shop, step = self._shop, progress.step
        state = self._state(progress, monitor)
        described = checkpoint_metadata(self._run, shop, progress, whole_eval)

        def write(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
            return ck.save_checkpoint(
                self._run.path / "checkpoints",
                step,
                model_tensors=model,
                optimizer_tensors=optimizer,
                state=state,
                config=self._run.config,
                tokenizer=shop.tokenizer,
                metadata=described,
            )

        optimizer = {**shop.stepper.updates.tensors(), **random_tensors(shop.device)}
        self._saver.save(step, shop.model.state_dict(), optimizer, write)
        self._saved_step = step
        self.poll()

    def poll(self, wait: bool = False) -> None:
        """Tell of a checkpoint that has been completed; with `wait` there is none under way afterwards.

        Raises:
            CheckpointError: it could not be written.
        """
        saved = self._saver.poll(wait)
        if saved is not None:
            figures = {"seconds": round(saved.seconds, 3), "held_s": round(saved.held_s, 3)}
            self._reporter.event("checkpoint", saved.step, path=saved.path.name, best=saved.best, **figures)

    def has(self, step: int) -> bool:
        """Whether the last checkpoint that this process saved or went on from is of `step`.

        One that lies there may be damaged, and the reason why the run has come here once more.
        """
        return self._saved_step == step

    def close(self) -> None:
        """End the save under way, when the run ends by an error; its own is told, and does not hide that."""
        try:
            self.poll(wait=True)
        except CheckpointError as e:
            self._reporter.event("error", self._saved_step or 0, message=str(e))

    def _state(self, progress: Progress, monitor: Monitor) -> dict[str, Any]:
        """All that is not a tensor. Batches need nothing: they are a function of seed and step."""
        shop = self._shop
        return {
            **progress.state(),
            "seed": shop.train.seed,
            "next_batch": progress.step * shop.train.grad_accum_steps,
            "data_fingerprint": shop.dataset.fingerprint,
            "tokenizer_sha256": shop.tokenizer.sha256,
            "rate_scale": shop.stepper.rate_scale,
            "loss_scale": shop.stepper.loss_scale.state() if shop.stepper.loss_scale else None,
            "health": monitor.state(),
            "random": random_numbers(),
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any]:
        return {**describe_environment(self._shop.device), "compile": self._shop.train.compile}

    # ------------------------------------------------------------ going on
    def newest(self) -> Path | None:
        """The latest checkpoint whose hashes hold; what was wrong with later ones is told.

        Raises:
            RunError: the run is a fork or a fine-tuning that has nothing to go on from.
        """
        path, problems = ck.newest_valid(self._run)
        for problem in problems:
            self._reporter.event("health", 0, name="damaged", severity="error", message=problem)
        check_begun(self._run, path is not None)
        return path

    def begin(self) -> None:
        """Take over the weights that a fine-tuning begins with; a run from scratch keeps its fresh ones.

        Raises:
            CheckpointError: they are damaged, or of another shape.
            RunError: the text was prepared with another tokenizer than the weights know.
        """
        path = begins_with(self._run)
        if path is None:
            return
        ck.verify(path)
        if load_tokenizer(path / ck.TOKENIZER).sha256 != self._shop.tokenizer.sha256:
            raise RunError(
                f"data.tokenizer of {self._run.id} is not the one that the weights in {path} know; put it back, or "
                "begin again from the checkpoint"
            )
        own = self._shop.model.state_dict()
        tensors = ck.load_tensors(path / ck.MODEL)
        # Another train.weight_precision than the source's is no reason to refuse: this run stores them in its own.
        stored = {name: t.to(own[name].dtype) if name in own else t for name, t in tensors.items()}
        ck.apply_weights(self._shop.model, stored, path)
        say(f"beginning with the weights of {(self._run.facts.get('parent') or {}).get('run', path)}")

    def check(self, path: Path) -> None:
        """Tell what has changed since the checkpoint at `path`.

        Raises:
            RunError: something that the user has not allowed.
        """
        shop = self._shop
        changed = check_unchanged(
            self._run.path,
            path,
            self._run.config,
            data_fingerprint=shop.dataset.fingerprint,
            tokenizer_sha256=shop.tokenizer.sha256,
        )
        state = files.read_json(path / ck.STATE) or {}
        if changed:
            self._reporter.event("changed", state.get("step", 0), settings=changed)
        warning = compare_environments(state.get("environment"), self._environment())
        if warning:
            self._reporter.event(
                "health", state.get("step", 0), name="environment", severity="warning", message=warning
            )

    def restore(self, path: Path) -> tuple[Progress, Monitor]:
        """Put weights, optimizer and randomness back as they were, and give what else there was.

        Raises:
            CheckpointError: tensors do not fit the config.
        """
        shop, state = self._shop, files.read_json(path / ck.STATE) or {}
        # Read into the host's memory, from where each goes to its place: a GPU need not hold them twice.
        ck.apply_weights(shop.model, ck.load_tensors(path / ck.MODEL), path)
        tensors = ck.load_tensors(path / ck.OPTIMIZER)
        restore_random(tensors, state.get("random"), shop.device)
        shop.stepper.updates.restore(tensors)
        shop.stepper.rate_scale = float(state.get("rate_scale", 1.0))
        if shop.stepper.loss_scale is not None and state.get("loss_scale"):
            shop.stepper.loss_scale.restore(state["loss_scale"])
        progress = Progress.of(state, files.read_json(path / ck.METADATA) or {})
        if state.get("data_fingerprint") != shop.dataset.fingerprint:  # a loss on another text is no mark to beat
            progress.best_val, progress.evals_without_gain, progress.last_eval = None, 0, None
        self._saved_step = progress.step
        return progress, Monitor(state.get("health"))
