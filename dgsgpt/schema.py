"""The one typed schema of a run: defaults, bounds, help and the rules between fields.

YAML files, `--set a.b=c`, the dashboard's widgets and the documentation are derived from it. What belongs to the
network itself, `model:`, is in `dgsgpt.architecture`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from dgsgpt import strict_yaml
from dgsgpt.architecture import ModelConfig
from dgsgpt.rules import Section, setting

SCHEMA_VERSION = 1


# ---------------------------------------------------------------- data
class TokenizerConfig(Section):
    """How text becomes tokens."""

    kind: Literal["bpe", "char", "byte", "gpt2", "file"] = setting(
        "bpe",
        "bpe learns subwords from the corpus, char uses its characters, byte needs no training, gpt2 is OpenAI's, file "
        "is one from a file, as in models that go on from another one.",
        tier="basic",
    )
    vocab_size: int = setting(
        4096,
        "Vocabulary that bpe learns; the other kinds have their own size.",
        tier="basic",
        unit="tokens",
        ge=264,
        le=262_144,
    )
    file: str | None = setting(
        None, "kind=file: path of its tokenizer.json, dgsgpt's or Hugging Face's.", tier="expert", min_length=1
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.kind == "file" and self.file is None:
            raise ValueError("data.tokenizer.kind=file needs data.tokenizer.file, the path of a tokenizer.json")
        if self.kind != "file" and self.file is not None:
            raise ValueError(
                f"data.tokenizer.file={self.file} goes with data.tokenizer.kind=file, not {self.kind}; "
                "set the one to null or the other to file"
            )
        return self


class DataConfig(Section):
    """Which text, and how it is split."""

    corpus: str = setting(
        "austen",
        "An embedded corpus (austen, plays), a prepared dataset, or the path of a UTF-8 text file.",
        tier="basic",
        min_length=1,
    )
    tokenizer: TokenizerConfig = setting(TokenizerConfig(), "How text becomes tokens.")
    val_fraction: float = setting(
        0.1, "Share of the text, taken from its end, that is only used for validation.", ge=0.001, le=0.5
    )
    document_separator: str | None = setting(
        None,
        "Text that ends a document, e.g. <|endoftext|>; no token then sees another document than its own. null is one.",
        tier="expert",
        min_length=1,
        max_length=64,
    )


# ---------------------------------------------------------------- train
class ScheduleConfig(Section):
    """Learning rate over the run: a linear warm-up, then a decay to `min_lr_ratio` of the peak."""

    kind: Literal["cosine", "wsd", "linear", "constant"] = setting(
        "cosine", "Shape after the warm-up; wsd (warm-up, stable, decay) holds the peak and falls at the end.",
        tier="basic",
    )  # fmt: skip
    warmup_steps: int = setting(
        100, "Steps over which the rate rises from zero to its peak.", tier="basic", unit="steps", ge=0
    )
    min_lr_ratio: float = setting(0.1, "Rate at the last step as a share of the peak.", ge=0.0, le=1.0)
    decay_share: float = setting(0.2, "wsd: share of the steps, at the end, in which the rate falls.", gt=0.0, le=1.0)


class TrainConfig(Section):
    """How it is trained. One step is one optimizer step over micro_batch_size * grad_accum_steps sequences."""

    steps: int = setting(1000, "Optimizer steps.", tier="basic", unit="steps", ge=1, le=100_000_000)
    micro_batch_size: int = setting(
        16, "Sequences in one forward pass.", tier="basic", unit="sequences", ge=1, le=65_536
    )
    grad_accum_steps: int = setting(
        1, "Forward passes whose gradients are added up for one step.", tier="basic", ge=1, le=65_536
    )
    optimizer: Literal["adamw", "muon", "adafactor", "adamw8bit"] = setting(
        "adamw",
        "Update rule. muon is for the blocks' matrices (AdamW for the rest), adafactor and adamw8bit need less memory.",
        tier="basic",
    )
    lr: float = setting(1e-3, "Peak learning rate.", tier="basic", gt=0.0, le=10.0)
    muon_lr: float = setting(
        0.02, "muon: peak learning rate of the blocks' matrices; lr is that of the rest.", gt=0.0, le=10.0
    )
    muon_momentum: float = setting(0.95, "muon: memory of the gradient's mean.", tier="expert", ge=0.0, lt=1.0)
    beta1: float = setting(0.9, "AdamW: memory of the gradient's mean.", tier="expert", ge=0.0, lt=1.0)
    beta2: float = setting(0.95, "AdamW: memory of the gradient's square.", tier="expert", ge=0.0, lt=1.0)
    weight_decay: float = setting(0.1, "Decoupled weight decay of matrices.", ge=0.0, le=10.0)
    grad_clip: float | None = setting(1.0, "Largest global gradient norm; null does not clip.", gt=0.0, le=1e6)
    schedule: ScheduleConfig = setting(ScheduleConfig(), "Learning rate over the run.")
    optimizer_in_backward: bool = setting(
        False,
        "Update each weight as soon as its gradient is there, and free that: no accumulation, no clipping.",
        tier="expert",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Arithmetic of matrix products; auto is the fastest here that is safe, on a CPU found by trying."
    )
    weight_precision: Literal["fp32", "bf16"] = setting(
        "fp32",
        "How matrices are stored; bf16 takes half the memory, its updates are rounded up or down at random.",
        tier="expert",
    )
    compile: Literal["auto", "off", "on"] = setting(
        "auto", "torch.compile of each block; auto tries it on runs long enough to win back its minute."
    )
    fit_micro_batch: bool = setting(
        False,
        "Use the largest micro-batch that fits this machine; the batch of a step stays, by accumulation.",
    )
    gradient_checkpointing: Literal["none", "full", "selective"] = setting(
        "none",
        "Recompute activations instead of keeping them: all of a block (full) or the cheap ones (selective).",
        tier="basic",
    )
    eval_every: int = setting(100, "Steps between validations; 0 is only at the end.", tier="basic", unit="steps", ge=0)
    eval_tokens: int = setting(
        65_536, "Validation tokens each time; the last validation uses the whole split.", unit="tokens", ge=1
    )
    checkpoint_every: int = setting(
        500, "Steps between checkpoints; 0 is only at the end.", tier="basic", unit="steps", ge=0
    )
    keep_last: int = setting(5, "Checkpoints kept, beside the best one.", unit="checkpoints", ge=1, le=100_000)
    background_save: bool = setting(
        True, "Write checkpoints while training goes on, where memory has room for a copy.", tier="expert"
    )
    early_stop_evals: int | None = setting(
        None, "Stop after this many validations in a row without a better loss; null never.", ge=1, le=100_000
    )
    target_loss: float | None = setting(
        None, "Stop once the validation loss is at most this; null never.", unit="nats per token", gt=0.0, le=100.0
    )
    on_nonfinite: Literal["skip", "rollback", "stop"] = setting(
        "skip",
        "Loss or gradient not finite: skip the step, go back to the last checkpoint at half the rate, or stop.",
    )
    log_every: int = setting(10, "Steps between lines of metrics.", tier="expert", unit="steps", ge=1)
    sample_every: int = setting(0, "Steps between sample texts; 0 is none.", unit="steps", ge=0)
    sample_prompt: str = setting("It was", "What sample texts begin with.", min_length=1, max_length=2000)
    sample_tokens: int = setting(64, "Length of sample texts.", tier="expert", unit="tokens", ge=1, le=4096)
    seed: int = setting(1, "Seed of initial weights, batches and dropout.", tier="basic", ge=0, le=2**31 - 1)
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "Where metrics go besides the run's own files; each needs its package.", tier="expert"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where to train; auto is the GPU if there is one.")

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.weight_precision == "bf16" and self.precision not in ("auto", "bf16"):
            raise ValueError(
                f"train.precision={self.precision} does not go with train.weight_precision=bf16: products are in the "
                "weights' precision; set train.precision=bf16 or train.weight_precision=fp32"
            )
        if not self.optimizer_in_backward:
            return self
        barred = {
            "grad_accum_steps": (self.grad_accum_steps == 1, 1),
            "grad_clip": (self.grad_clip is None, "null"),
            "fit_micro_batch": (not self.fit_micro_batch, "false"),
            "precision": (self.precision != "fp16", "bf16"),
        }
        for name, (good, remedy) in barred.items():
            if not good:
                raise ValueError(
                    f"train.{name}={getattr(self, name)} does not go with train.optimizer_in_backward, which never has "
                    f"all gradients at once; set train.{name}={remedy} or train.optimizer_in_backward=false"
                )
        return self


class RunConfig(Section):
    """Everything that decides a run."""

    schema_version: Literal[1] = setting(SCHEMA_VERSION, "Version of this schema.", tier="expert")
    data: DataConfig = setting(DataConfig(), "Which text, and how it is split.")
    model: ModelConfig = setting(ModelConfig(), "The network.")
    train: TrainConfig = setting(TrainConfig(), "How it is trained.")

    @field_validator("schema_version", mode="before")
    @classmethod
    def _known_version(cls, given: Any) -> Any:
        if given != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version={given!r} is not {SCHEMA_VERSION}; this file needs another version of dgsgpt"
            )
        return given

    @property
    def tokens_per_step(self) -> int:
        """Tokens one optimizer step learns from."""
        return self.train.micro_batch_size * self.train.grad_accum_steps * self.model.block_size

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as written to YAML and JSON."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The text of `config.yaml`; `parse_config` reads it back equal."""
        return strict_yaml.dump(self.to_dict())
