"""A training run from its directory to its end: data, model, resume, the loop, evaluation, checkpoints."""

from __future__ import annotations

import gc
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.data.loader import Batches
from dgsgpt.data.prepare import Dataset, prepare
from dgsgpt.errors import DgsgptError, RunError
from dgsgpt.evaluation import Evaluation, evaluate
from dgsgpt.generation import generate
from dgsgpt.model import GPT
from dgsgpt.model.fast_attention import use_fast_windows
from dgsgpt.model.norm import compute_dtype
from dgsgpt.planner import plan
from dgsgpt.runs import Run
from dgsgpt.train.describe import checkpoint_metadata, peak_bytes, record_data
from dgsgpt.train.optim import build_optimizer, optimizer_tensors, restore_optimizer
from dgsgpt.train.parallel import apply_gradient_checkpointing, compile_blocks
from dgsgpt.train.report import Reporter, StopRequest
from dgsgpt.train.stepper import Stepper, StepResult, autocast, pick_device

EXIT_STOPPED = 143
RECENT = 100
LOCK_TIMEOUT_S = 5.0


def train_run(run_dir: Path, stop: StopRequest) -> int:
    """Train under the run's lock; returns the process's exit code. Every end is written to status.json."""
    run = Run(run_dir)
    lock = FileLock(run_dir / ".trainer.lock")
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        print(f"run {run.id!r} is already being trained by another process; stop it first", flush=True)
        return 2
    with lock:
        reporter = Reporter(run_dir, max_steps=1)
        session: Session | None = None
        try:
            reporter.status(max_steps=run.config.train.steps)
            session = Session(run, reporter, stop)
            return session.run()
        except DgsgptError as e:
            print(f"error: {e}", flush=True)
            _fail(reporter, session, str(e))
            return 2
        except Exception as e:  # noqa: BLE001 - the edge of the process: told to the page, and re-shown whole in the log
            traceback.print_exc()
            _fail(reporter, session, _one_line(e, run.config))
            return 1


def _fail(reporter: Reporter, session: Session | None, message: str) -> None:
    step = session.step if session else 0
    reporter.event("error", step, message=message)
    reporter.status(state="failed", error=message, message="failed")


def _one_line(error: Exception, config: RunConfig) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        needed = plan(config).total_bytes / 2**30
        return (
            f"out of memory: the plan says this config needs about {needed:.1f} GiB; lower train.micro_batch_size="
            f"{config.train.micro_batch_size} (raise grad_accum_steps instead) or set train.gradient_checkpointing=full"
        )
    return f"{type(error).__name__}: {text}"[:500]


class Session:
    """Everything one training process holds."""

    def __init__(self, run: Run, reporter: Reporter, stop: StopRequest) -> None:
        self.run_, self.reporter, self.stop = run, reporter, stop
        self.config = run.config
        self.step = 0
        self.tokens = 0
        self.train_time_s = 0.0
        self.last_eval: tuple[int, Evaluation] | None = None
        self.best_val: float | None = None
        self.recent: deque[tuple[int, float, float]] = deque(maxlen=RECENT)
        self._log_time = self._log_tokens = 0.0

    # ------------------------------------------------------------ set-up
    def _set_up(self) -> None:
        train = self.config.train
        self.reporter.status(message="preparing data")
        self.dataset: Dataset = prepare(self.config.data, self.config.model.block_size, progress=self.reporter.progress)
        self.tokenizer = self.dataset.tokenizer
        record_data(self.run_.path, self.dataset)
        self.device = pick_device(train.device)
        self.reporter.status(message="building the model")
        torch.manual_seed(train.seed)
        torch.set_float32_matmul_precision("high")
        if self.config.model.vocab_size is not None and self.config.model.vocab_size < self.dataset.vocab_size:
            raise RunError(
                f"model.vocab_size={self.config.model.vocab_size} is smaller than the tokenizer's "
                f"{self.dataset.vocab_size}; set it to null"
            )
        self.model = GPT(self.config.model).to(self.device)
        self.plan = plan(self.config, self.device.type)
        self.optimizer = build_optimizer(self.model, train)
        self._resume()
        self._choose_attention()
        apply_gradient_checkpointing(self.model, train.gradient_checkpointing)
        if train.compile == "on":
            compile_blocks(self.model)
        batches = Batches(
            self.dataset,
            "train",
            block_size=self.config.model.block_size,
            batch_size=train.micro_batch_size,
            seed=train.seed,
        )
        self.stepper = Stepper(self.model, self.optimizer, batches, train, self.device)
        gc.collect()
        gc.freeze()  # what lives until the end need not be walked by every collection

    def _choose_attention(self) -> None:
        """Give sliding layers the fastest kernel that agrees with the reference here, and say which it is."""
        if self.config.model.window is None:
            return
        with autocast(self.device, self.config.train.precision)():
            dtype = compute_dtype(torch.empty(0, device=self.device))
        choice = use_fast_windows(self.model, self.device, dtype)
        why = "".join(f"; not {name}: {reason}" for name, reason in choice.passed_over.items())
        self.reporter.event("attention", self.step, window_backend=choice.backend.name, passed_over=choice.passed_over)
        print(f"sliding windows: {choice.backend.name} attention{why}", flush=True)

    def _resume(self) -> None:
        """Go on from the newest checkpoint whose hashes hold; without one, from the start."""
        path, problems = ck.newest_valid(self.run_)
        for problem in problems:
            self.reporter.event("health", self.step, message=problem)
        if path is not None:
            self._restore(path)
        dropped = self.reporter.writer.cut_after(self.step)
        if path is not None:
            self.reporter.event("resume", self.step, path=path.name, superseded_lines=dropped)
        else:
            self.reporter.event(
                "start", 0, device=str(self.device), params=self.plan.params, threads=torch.get_num_threads()
            )

    def _restore(self, path: Path) -> None:
        state = files.read_json(path / ck.STATE) or {}
        if state.get("data_fingerprint") != self.dataset.fingerprint:
            raise RunError(
                f"{path}: was trained on data {str(state.get('data_fingerprint'))[:12]}, but "
                f"data.corpus={self.config.data.corpus!r} "
                f"is now {self.dataset.fingerprint[:12]}; put the old text back or start a new run"
            )
        ck.apply_weights(self.model, ck.load_tensors(path / ck.MODEL, str(self.device)), path)
        tensors = ck.load_tensors(path / ck.OPTIMIZER, str(self.device))
        rng = {k: tensors.pop(k).cpu() for k in ("rng.cpu", "rng.cuda") if k in tensors}
        restore_optimizer(self.model, self.optimizer, tensors)
        torch.set_rng_state(rng["rng.cpu"])
        if "rng.cuda" in rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["rng.cuda"])
        self.step, self.tokens = int(state["step"]), int(state["tokens"])
        self.train_time_s, self.best_val = float(state["train_time_s"]), state["best_val"]
        if state.get("last_eval"):
            self.last_eval = (int(state["last_eval"]["step"]), Evaluation(**state["last_eval"]["result"]))
        described = files.read_json(path / ck.METADATA) or {}
        self.recent.extend(
            zip(described["recent_steps"], described["recent_losses"], described["recent_lrs"], strict=True)
        )

    # ------------------------------------------------------------ the loop
    def run(self) -> int:
        """Train until the last step, or until asked to stop; returns the exit code."""
        self._set_up()
        train = self.config.train
        self.reporter.status(state="running", step=self.step, message="training", elapsed_s=self.train_time_s)
        begun, first = time.monotonic(), self.step
        while self.step < train.steps:
            if self.stop.check():
                return self._stopped()
            before = time.perf_counter()
            result = self.stepper.step(self.step)
            self._count(time.perf_counter() - before)
            self._after_step(result)
            per_step = (time.monotonic() - begun) / (self.step - first)
            self.reporter.status(
                now=False,
                step=self.step,
                elapsed_s=self.train_time_s,
                step_s=per_step,
                eta_s=per_step * (train.steps - self.step),
                message="training",
            )
        return self._finished()

    def _count(self, seconds: float) -> None:
        self.step += 1
        self.tokens += self.config.tokens_per_step
        self.train_time_s += seconds
        self._log_time += seconds
        self._log_tokens += self.config.tokens_per_step

    def _after_step(self, result: StepResult) -> None:
        train, last = self.config.train, self.step == self.config.train.steps
        evaluated = last or _due(self.step, train.eval_every)
        if evaluated:
            self._evaluate()
        if evaluated or self.step == 1 or _due(self.step, train.log_every):
            self._log(result, evaluated)
        if _due(self.step, train.sample_every):
            self._sample()
        if not last and _due(self.step, train.checkpoint_every):
            self.save()

    def _log(self, result: StepResult, evaluated: bool) -> None:
        values: dict[str, float | int | None] = {
            "time_s": round(self.train_time_s, 3),
            "tokens": self.tokens,
            "flops": self.tokens * self.plan.flops_per_token,
            "loss/train": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "perf/tokens_per_s": self._log_tokens / self._log_time,
            "mem/peak_bytes": peak_bytes(self.device),
            **result.extra,
        }
        if evaluated and self.last_eval:
            _, val = self.last_eval
            values.update({"loss/val": val.loss, "ppl/val": val.ppl, "bpb/val": val.bpb})
        self._log_time = self._log_tokens = 0.0
        self.recent.append((self.step, result.loss, result.lr))
        self.reporter.log(self.step, values)
        print(
            f"{time.strftime('%H:%M:%S')} step {self.step}  loss {result.loss:.4f}  lr {result.lr:.2e}  "
            f"norm {result.grad_norm:.2f}  {values['perf/tokens_per_s']:.0f} tok/s",
            flush=True,
        )

    def _evaluate(self, whole: bool = False) -> Evaluation:
        self.reporter.status(message="evaluating")
        model = self.model.eval()
        with autocast(self.device, self.config.train.precision)():
            result = evaluate(
                model,
                self.dataset,
                block_size=self.config.model.block_size,
                max_tokens=None if whole else self.config.train.eval_tokens,
                batch_size=self.config.train.micro_batch_size,
                device=self.device,
                on_batch=lambda *_: self.reporter.status(now=False),
            )
        self.model.train()
        if not whole:
            self.last_eval = (self.step, result)
            self.best_val = result.loss if self.best_val is None else min(self.best_val, result.loss)
        self.reporter.event("eval", self.step, whole_split=whole, **result.to_dict())
        return result

    def _sample(self) -> None:
        train = self.config.train
        self.reporter.status(message="writing a sample")
        self.model.eval()
        try:
            text = generate(
                self.model,
                self.tokenizer,
                train.sample_prompt,
                max_new_tokens=train.sample_tokens,
                temperature=0.8,
                top_k=50,
                seed=train.seed,
            )
        finally:
            self.model.train()
        self.reporter.event("sample", self.step, prompt=train.sample_prompt, text=text, seed=train.seed)

    # ------------------------------------------------------------ saving and ending
    def save(self, whole_eval: Evaluation | None = None) -> None:
        """Save a checkpoint of this step and discard the oldest beyond `keep_last`, sparing the best."""
        self.reporter.status(message="saving")
        folder = self.run_.path / "checkpoints"
        rng = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["rng.cuda"] = torch.cuda.get_rng_state()
        path = ck.save_checkpoint(
            folder,
            self.step,
            model_tensors=self.model.state_dict(),
            optimizer_tensors={**optimizer_tensors(self.model, self.optimizer), **rng},
            state=self._state(),
            config=self.config,
            tokenizer=self.tokenizer,
            metadata=checkpoint_metadata(self, whole_eval),
        )
        best = ck.best_of([i for i in ck.list_checkpoints(self.run_) if i.complete])
        ck.prune(folder, self.config.train.keep_last, [best.path] if best else [])
        self.reporter.event("checkpoint", self.step, path=path.name, best=best is not None and best.path == path)

    def _state(self) -> dict[str, Any]:
        last = {"step": self.last_eval[0], "result": self.last_eval[1].to_dict()} if self.last_eval else None
        return {
            "format_version": ck.FORMAT_VERSION,
            "step": self.step,
            "tokens": self.tokens,
            "train_time_s": self.train_time_s,
            "sampler": {
                "seed": self.config.train.seed,
                "next_micro_batch": self.step * self.config.train.grad_accum_steps,
            },
            "schedule": {"steps": self.config.train.steps, **self.config.train.schedule.model_dump()},
            "data_fingerprint": self.dataset.fingerprint,
            "tokenizer_sha256": self.tokenizer.sha256,
            "best_val": self.best_val,
            "last_eval": last,
        }

    def _stopped(self) -> int:
        saved = self.run_.path / "checkpoints" / ck.checkpoint_name(self.step)
        self.reporter.status(state="stopping", message="saving before the stop")
        if self.step > 0 and not (saved / ck.MANIFEST).exists():
            self.save()
        note = f"stopped after step {self.step}: {self.stop.reason}"
        self.reporter.event("stop", self.step, message=note)
        self.reporter.status(state="stopped", step=self.step, message=note, eta_s=None)
        return EXIT_STOPPED

    def _finished(self) -> int:
        whole = self._evaluate(whole=True)
        self.save(whole)
        self.reporter.event("finish", self.step, message=f"finished in {self.train_time_s:.0f} s of training")
        self.reporter.status(
            state="finished", step=self.step, elapsed_s=self.train_time_s, eta_s=0.0, message="finished"
        )
        return 0


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
