"""A training run from its directory to its end: set-up, resume, the loop, evaluation, checkpoints."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from filelock import FileLock, Timeout

from dgsgpt.errors import DgsgptError, RunError
from dgsgpt.evaluation import Evaluation
from dgsgpt.hardware import detect
from dgsgpt.metrics import keep_columns
from dgsgpt.runs import Run
from dgsgpt.train.advice import is_out_of_memory, out_of_memory_advice, usable_memory
from dgsgpt.train.archive import Archive
from dgsgpt.train.describe import peak_bytes, utilisation
from dgsgpt.train.health import Monitor, Reading
from dgsgpt.train.judge import Judge
from dgsgpt.train.progress import Agenda, Progress
from dgsgpt.train.report import Reporter, StopRequest, say
from dgsgpt.train.sensors import Sensors
from dgsgpt.train.settle import renew
from dgsgpt.train.setup import open_workshop
from dgsgpt.train.stepper import Figures, StepResult
from dgsgpt.train.trackers import open_tracker

EXIT_STOPPED = 143
LOCK_TIMEOUT_S = 5.0
PAUSE_POLL_S = 0.2
MAX_BAD_STEPS = 10  # in a row: then skipping does not help
MAX_ROLLBACKS = 5
ROLLBACK_RATE = 0.5


def train_run(run_dir: Path, stop: StopRequest) -> int:
    """Train under the run's lock; returns the process's exit code. Every end is written to status.json."""
    run = Run(run_dir)
    lock = FileLock(run_dir / ".trainer.lock")
    try:
        held = lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        say(f"run {run.id!r} is already being trained by another process; stop it first")
        return 2
    with held:
        reporter = Reporter(run_dir, max_steps=1)
        session: Session | None = None
        try:
            reporter.status(max_steps=run.config.train.steps)
            session = Session(run, reporter, stop)
            return session.run()
        except DgsgptError as e:
            say(f"error: {e}")
            _fail(reporter, session, str(e))
            return 2
        except Exception as e:  # noqa: BLE001 - the edge of the process: told to the page, and re-shown whole in the log
            if is_out_of_memory(e):
                message = out_of_memory_advice(run.config, *usable_memory(run.config, detect(run_dir)))
                say(f"error: {message}")
                _fail(reporter, session, message)
                return 2
            traceback.print_exc()
            text = str(e).strip().splitlines()
            _fail(reporter, session, f"{type(e).__name__}: {text[0] if text else ''}"[:500])
            return 1
        finally:
            reporter.close()
            keep_columns(run_dir)


def _fail(reporter: Reporter, session: Session | None, message: str) -> None:
    step = session.progress.step if session else 0
    reporter.event("error", step, message=message)
    reporter.status(state="failed", error=message, message="failed")


class Session:
    """Everything one training process holds."""

    def __init__(self, run: Run, reporter: Reporter, stop: StopRequest) -> None:
        self.run_, self.reporter, self.stop = run, reporter, stop
        self.config = run.config
        self.progress = Progress()
        self.monitor = Monitor()
        self._log_time = self._log_tokens = 0.0
        self._bad_in_row = self._rollbacks = 0
        self._done: str | None = None  # why the run ends before its last step

    def _set_up(self) -> None:
        self.run_ = renew(self.run_)
        self.shop = open_workshop(self.run_, self.reporter)
        self.train, self.stepper = self.shop.train, self.shop.stepper
        self.judge = Judge(self.shop, self.reporter)
        self.sensors = Sensors(self.shop.device.type == "cuda")
        self.archive = Archive(self.run_, self.shop, self.reporter)
        path = self.archive.newest()
        if path is None:
            self.reporter.writer.cut_after(0)
            self.archive.begin()
            facts = {"device": str(self.shop.device), "params": self.shop.plan.params, **self.shop.facts()}
            self.reporter.event("start", 0, **facts)
        else:
            self.archive.check(path)
            dropped = self._go_back(path)
            self.reporter.event("resume", self.progress.step, path=path.name, superseded_lines=dropped)
        self.reporter.track(open_tracker(self.run_.path, self.config, self.progress.step))

    def _go_back(self, path: Path) -> int:
        """Continue from the checkpoint at `path`; gives how many lines of metrics are past it and now dropped."""
        self.progress, self.monitor = self.archive.restore(path)
        return self.reporter.writer.cut_after(self.progress.step)

    # ------------------------------------------------------------ the loop
    def run(self) -> int:
        """Train until the last step, or until asked to stop; returns the exit code."""
        self._set_up()
        self.reporter.status(
            state="running", step=self.progress.step, message="training", elapsed_s=self.progress.train_time_s
        )
        try:
            return self._loop()
        except Exception:
            self.archive.close()
            raise

    def _loop(self) -> int:
        begun, made = time.monotonic(), 0
        while self.progress.step < self.train.steps and self._done is None:
            begun += self._pause()
            if self.stop.check():
                return self._stopped()
            self._step()
            made += 1
            per_step = (time.monotonic() - begun) / made
            self.reporter.status(
                now=False,
                step=self.progress.step,
                elapsed_s=self.progress.train_time_s,
                step_s=per_step,
                eta_s=per_step * (self.train.steps - self.progress.step),
                message="training",
            )
        return self._finished()

    def _step(self) -> None:
        before = time.perf_counter()
        result = self.stepper.step(self.progress.step)
        agenda = Agenda.of(self.progress.step + 1, self.train, self.stop.save_asked())
        if agenda:
            self.stepper.wait()  # what follows would; the time is that of the steps
        self._count(time.perf_counter() - before)
        if not ((self.stepper.decides_here or agenda) and self._mend(result)):
            self._follow(agenda, result)

    def _count(self, seconds: float) -> None:
        self.progress.count(seconds, self.config.tokens_per_step)
        self._log_time += seconds
        self._log_tokens += self.config.tokens_per_step

    def _follow(self, agenda: Agenda, result: StepResult) -> None:
        """Do what is due after a step."""
        if agenda.validates:
            self._judge()
        if agenda.logs:
            self._log(result.read(), agenda.validates)
        if agenda.samples:
            self.judge.sample(self.progress.step)
        if agenda.saves and self._done is None:
            self.save()
        self.archive.poll()

    def _log(self, figures: Figures, evaluated: bool) -> None:
        step = self.progress.step
        values: dict[str, float | int | None] = {
            "time_s": round(self.progress.train_time_s, 3),
            "tokens": self.progress.tokens,
            "flops": self.progress.tokens * self.shop.plan.flops_per_token,
            "loss/train": figures.loss,
            "lr": figures.lr,
            "grad_norm": figures.grad_norm,
            "perf/tokens_per_s": self._log_tokens / self._log_time,
            "mem/peak_bytes": peak_bytes(self.shop.device),
            **utilisation(self.shop.device, self._log_tokens / self._log_time, self.shop.plan.flops_per_token),
            **figures.extra,
            **self.sensors.read(),
        }
        val = self.progress.judged_now
        if evaluated and val is not None:
            values.update({"loss/val": val.loss, "ppl/val": val.ppl, "bpb/val": val.bpb})
        speed = self._log_tokens / self._log_time
        self._log_time = self._log_tokens = 0.0
        if figures.finite:
            self.progress.recent.append((step, figures.loss, figures.lr))
        self.reporter.log(step, values)
        norm = "" if figures.grad_norm is None else f"  norm {figures.grad_norm:.2f}"
        say(
            f"{time.strftime('%H:%M:%S')} step {step}  loss {figures.loss:.4f}  lr {figures.lr:.2e}{norm}  "
            f"{speed:.0f} tok/s"
        )
        experts = len(figures.expert_load[0]) if figures.expert_load else 0
        reading = Reading(step, figures.loss, figures.grad_norm, speed, figures.expert_load, experts)
        for found in self.monitor.observe(reading):
            self.reporter.event("health", found.step, name=found.name, severity=found.severity, message=found.message)

    # ------------------------------------------------------------ steps that were not finite
    def _mend(self, result: StepResult) -> bool:
        """Deal with steps that were left out because they were not finite; True where the run went back."""
        skipped = self.stepper.skipped()
        scale, loss_finite = self.stepper.loss_scale, bool(result.loss.isfinite())
        if skipped and scale is not None and loss_finite and not scale.exhausted:
            return False  # float16: the scale was too large, which it has learned
        self._bad_in_row = self._bad_in_row + skipped if skipped and not bool(result.finite) else 0
        if not skipped:
            return False
        message = result.blame(self.progress.step, self.stepper.updates.in_backward)
        policy, train = self.train.on_nonfinite, self.train
        advice = f"lower train.lr={train.lr:g} or lengthen train.schedule.warmup_steps={train.schedule.warmup_steps}"
        if policy == "stop" or self._bad_in_row >= MAX_BAD_STEPS:
            raise RunError(f"{message}; {advice}")
        if policy == "rollback" and self._roll_back(message, advice):
            return True
        count = f" ({skipped} steps skipped)" if skipped > 1 else " (step skipped)"
        self.reporter.event(
            "health", self.progress.step, name="nonfinite", severity="error", message=f"{message}{count}"
        )
        return False

    def _roll_back(self, message: str, advice: str) -> bool:
        """Go on from the last checkpoint at half the rate; False where there is none yet."""
        self.archive.poll(wait=True)
        path = self.archive.newest()
        if path is None:
            return False
        self._rollbacks += 1
        if self._rollbacks > MAX_ROLLBACKS:
            raise RunError(f"{message}, also after going back {MAX_ROLLBACKS} times; {advice}")
        rate = self.stepper.rate_scale * ROLLBACK_RATE
        dropped = self._go_back(path)
        self.stepper.rate_scale = rate
        self.reporter.event(
            "health", self.progress.step, name="rollback", severity="error", superseded_lines=dropped,
            message=f"{message}: back to step {self.progress.step}, learning rates times {rate:g} from here",
        )  # fmt: skip
        return True

    # ------------------------------------------------------------ judging, saving, pausing and ending
    def _judge(self, due: bool = True) -> None:
        """Validate; one that was due ends the run where the config says that this is enough."""
        result = self.judge.evaluate(self.progress.step)
        if result is None:
            self.progress.last_eval = None  # an older loss must not speak for these weights
            return
        self.progress.judged(result, due)
        if due:
            self._done = self.judge.enough(self.progress)

    def save(self, whole_eval: Evaluation | None = None) -> None:
        """Save a checkpoint of this step, with a validation of its own, and discard the oldest beyond `keep_last`."""
        if self.progress.judged_now is None and self.train.eval_every > 0:
            self._judge(due=False)
        self.reporter.status(message="saving")
        self.archive.save(self.progress, self.monitor, whole_eval)

    def _pause(self) -> float:
        """Wait while the run is paused; gives the seconds."""
        if not self.stop.paused():
            return 0.0
        begun = time.monotonic()
        self._save_at_rest()
        message = f"paused after step {self.progress.step}"
        self.reporter.event("pause", self.progress.step)
        self.reporter.status(message=message, paused=True)
        while self.stop.paused() and not self.stop.check():
            self.reporter.status(now=False)
            self.stop.save_asked()  # there is one of this step
            time.sleep(PAUSE_POLL_S)
        self.reporter.event("continue", self.progress.step)
        self.reporter.status(message="training", paused=False)
        return time.monotonic() - begun

    def _save_at_rest(self) -> None:
        """Have a checkpoint of this step on the disk."""
        self.archive.poll(wait=True)
        if self.progress.step > 0 and not self.archive.has(self.progress.step):
            self.save()
            self.archive.poll(wait=True)

    def _stopped(self) -> int:
        self.reporter.status(state="stopping", message="saving before the stop", paused=False)
        self._save_at_rest()
        note = f"stopped after step {self.progress.step}: {self.stop.reason}"
        self.reporter.event("stop", self.progress.step, message=note)
        self.reporter.status(state="stopped", step=self.progress.step, message=note, eta_s=None)
        return EXIT_STOPPED

    def _finished(self) -> int:
        self.save(self.judge.evaluate(self.progress.step, whole=True))
        self.archive.poll(wait=True)
        seconds = self.progress.train_time_s
        message = f"finished in {seconds:.0f} s of training" + (f": {self._done}" if self._done else "")
        self.reporter.event("finish", self.progress.step, message=message)
        self.reporter.status(
            state="finished",
            step=self.progress.step,
            elapsed_s=seconds,
            eta_s=0.0,
            message=f"finished: {self._done}" if self._done else "finished",
        )
        return 0
