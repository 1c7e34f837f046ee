"""What is asked of a model while it trains: its validation loss, a sample text, whether it is good enough."""

from __future__ import annotations

import math
import time

from dgsgpt.errors import DgsgptError
from dgsgpt.evaluation import Evaluation, evaluate
from dgsgpt.generation import generate
from dgsgpt.train.precision import autocast
from dgsgpt.train.progress import Progress
from dgsgpt.train.report import Reporter
from dgsgpt.train.setup import Workshop


class Judge:
    """Validates and samples the model of a workshop; randomness of training is not touched."""

    def __init__(self, shop: Workshop, reporter: Reporter) -> None:
        self._shop, self._reporter = shop, reporter
        self._autocast = autocast(shop.device, shop.train.precision)

    def evaluate(self, step: int, whole: bool = False) -> Evaluation | None:
        """Loss on the validation split: on `train.eval_tokens` of it, always the same, or the whole.

        None where it is not finite, which is told.
        """
        shop = self._shop
        self._reporter.status(message="evaluating")
        begun = time.perf_counter()
        model = shop.model.eval()
        with self._autocast():
            result = evaluate(
                model,
                shop.dataset,
                block_size=model.config.block_size,
                max_tokens=None if whole else shop.train.eval_tokens,
                batch_size=shop.train.micro_batch_size,
                device=shop.device,
                on_batch=lambda *_: self._reporter.status(now=False),
            )
        model.train()
        seconds = time.perf_counter() - begun
        figures = {name: value if math.isfinite(value) else None for name, value in result.to_dict().items()}
        self._reporter.event("eval", step, whole_split=whole, seconds=seconds, **figures)
        if math.isfinite(result.loss) and math.isfinite(result.ppl):
            return result
        message = f"the validation loss is {result.loss}: the model is broken; go back to a checkpoint, lower train.lr"
        self._reporter.event("health", step, name="nonfinite", severity="error", message=message)
        return None

    def sample(self, step: int) -> None:
        """Continue `train.sample_prompt`, by the same seed every time."""
        train, model = self._shop.train, self._shop.model
        self._reporter.status(message="writing a sample")
        model.eval()
        try:
            with self._autocast():
                text = generate(
                    model,
                    self._shop.tokenizer,
                    train.sample_prompt,
                    max_new_tokens=train.sample_tokens,
                    temperature=0.8,
                    top_k=50,
                    seed=train.seed,
                )
        except DgsgptError as e:  # a prompt with characters that the text lacks, logits that are no numbers
            self._reporter.event("health", step, name="sample", severity="warning", message=f"no sample: {e}")
            return
        finally:
            model.train()
        self._reporter.event("sample", step, prompt=train.sample_prompt, text=text, seed=train.seed)

    def enough(self, progress: Progress) -> str | None:
        """Why the run may end after its last validation; None where it goes on."""
        train, judged = self._shop.train, progress.judged_now
        if judged is None:
            return None
        if train.target_loss is not None and judged.loss <= train.target_loss:
            return f"validation loss {judged.loss:.4f} has reached the target of {train.target_loss:g}"
        if train.early_stop_evals is not None and progress.evals_without_gain >= train.early_stop_evals:
            return f"no validation loss below {progress.best_val:.4f} in {train.early_stop_evals} validations"
        return None
