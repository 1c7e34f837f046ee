"""How far a run has come, as its checkpoints keep it, and what is due on its way."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from dgsgpt.config import TrainConfig
from dgsgpt.evaluation import Evaluation

RECENT = 100  # logged steps whose loss and rate a checkpoint tells


class Agenda(NamedTuple):
    """What is to be done once a step is made; where there is nothing (it is then false), nobody looks at it."""

    logs: bool
    validates: bool
    samples: bool
    saves: bool

    @classmethod
    def of(cls, step: int, train: TrainConfig, save_asked: bool = False) -> Self:
        """After `step` (from 1) of `train`; the end of the run saves by itself."""
        last = step == train.steps
        validates = last or _due(step, train.eval_every)
        return cls(
            logs=validates or step == 1 or _due(step, train.log_every),
            validates=validates,
            samples=_due(step, train.sample_every),
            saves=not last and (save_asked or _due(step, train.checkpoint_every)),
        )

    def __bool__(self) -> bool:
        return any(self)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@dataclass
class Progress:
    """Counters of one run; `recent` holds (step, loss, learning rate) of the last logged steps."""

    step: int = 0
    tokens: int = 0
    train_time_s: float = 0.0  # of optimizer steps
    best_val: float | None = None
    evals_without_gain: int = 0  # in a row, up to now
    last_eval: tuple[int, Evaluation] | None = None
    recent: deque[tuple[int, float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def count(self, seconds: float, tokens: int) -> None:
        """One optimizer step has been made."""
        self.step += 1
        self.tokens += tokens
        self.train_time_s += seconds

    def judged(self, result: Evaluation, counts: bool = True) -> None:
        """The model has been validated at this step.

        Args:
            result: what came of it.
            counts: false where it was not due by `train.eval_every`. A pause or a stop validates too, and must not
                decide when the run ends.
        """
        self.last_eval = (self.step, result)
        if not counts:
            return
        better = self.best_val is None or result.loss < self.best_val
        self.evals_without_gain = 0 if better else self.evals_without_gain + 1
        self.best_val = result.loss if better else self.best_val

    @property
    def judged_now(self) -> Evaluation | None:
        """The validation of this very step, if there was one."""
        return self.last_eval[1] if self.last_eval and self.last_eval[0] == self.step else None

    def state(self) -> dict[str, Any]:
        """What `of` goes on from, beside the recent losses, which a checkpoint's metadata hold."""
        last = {"step": self.last_eval[0], "result": self.last_eval[1].to_dict()} if self.last_eval else None
        return {
            "step": self.step,
            "tokens": self.tokens,
            "train_time_s": self.train_time_s,
            "best_val": self.best_val,
            "evals_without_gain": self.evals_without_gain,
            "last_eval": last,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> Self:
        """Progress as a checkpoint tells it."""
        last = state.get("last_eval")
        found = cls(
            step=int(state["step"]),
            tokens=int(state["tokens"]),
            train_time_s=float(state["train_time_s"]),
            best_val=state["best_val"],
            evals_without_gain=int(state.get("evals_without_gain", 0)),
            last_eval=(int(last["step"]), Evaluation(**last["result"])) if last else None,
        )
        columns = (metadata["recent_steps"], metadata["recent_losses"], metadata["recent_lrs"])
        found.recent.extend(zip(*columns, strict=True))
        return found
