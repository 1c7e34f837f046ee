"""Names for people: of settings, and of the values that are chosen from."""

from __future__ import annotations

# Names for people; a setting without one is shown by its own name.
LABELS = {
    "data.corpus": "Data",
    "data.tokenizer.kind": "Tokenizer",
    "data.tokenizer.vocab_size": "Vocabulary",
    "data.tokenizer.file": "Tokenizer file",
    "data.val_fraction": "Validation share",
    "model.block_size": "Context",
    "model.n_layer": "Layers",
    "model.n_embd": "Width",
    "model.n_head": "Heads",
    "model.n_kv_head": "KV heads",
    "model.head_size": "Head width",
    "model.bias": "Biases",
    "model.qkv_bias": "Biases of queries, keys, values",
    "model.head_bias": "Bias of the output layer",
    "model.mlp": "Feed-forward",
    "model.mlp_hidden": "Feed-forward width",
    "model.norm_eps": "Norm epsilon",
    "model.qk_norm": "QK norm",
    "model.logit_softcap": "Logit softcap",
    "model.zero_init": "Zero initialisation",
    "model.x0_shortcut": "Embedding shortcut (x0)",
    "model.rope": "Rotary positions (RoPE)",
    "model.rope.theta": "Base",
    "model.rope.scaling": "Context scaling",
    "model.rope.scaling.kind": "Scaling",
    "model.rope.scaling.original_block_size": "Original context",
    "model.rope.scaling.low_freq_factor": "Low-frequency factor",
    "model.rope.scaling.high_freq_factor": "High-frequency factor",
    "model.window": "Sliding window",
    "model.window.size": "Window",
    "model.window.pattern": "Pattern",
    "model.moe": "Sparse mixture of experts",
    "model.moe.n_expert": "Experts",
    "model.moe.n_expert_per_token": "Per token",
    "model.moe.capacity_factor": "Capacity",
    "model.moe.n_shared_expert": "Shared experts",
    "model.moe.every": "Every n-th layer",
    "model.moe.expert_hidden": "Expert width",
    "model.moe.renormalize": "Renormalise weights",
    "model.moe.renormalize_single": "Also with one expert a token",
    "model.moe.after_dense": "After a dense network",
    "model.moe.bias": "Biases of router and experts",
    "model.moe.aux_loss_weight": "Balancing loss weight",
    "model.moe.z_loss_weight": "Router z-loss weight",
    "model.ngram": "N-gram embeddings",
    "model.ngram.max_order": "Longest n-gram",
    "data.document_separator": "Document separator",
    "train.micro_batch_size": "Batch",
    "train.grad_accum_steps": "Accumulation",
    "train.lr": "Learning rate",
    "train.muon_lr": "Muon learning rate",
    "train.beta1": "Beta 1",
    "train.beta2": "Beta 2",
    "train.grad_clip": "Gradient clipping",
    "train.steps": "Steps",
    "train.eval_every": "Evaluate every",
    "train.eval_tokens": "Evaluation tokens",
    "train.sample_every": "Sample every",
    "train.checkpoint_every": "Checkpoint every",
    "train.schedule.kind": "Schedule",
    "train.schedule.warmup_steps": "Warm-up",
    "train.schedule.min_lr_ratio": "Lowest rate",
    "train.schedule.decay_share": "Decay share",
    "train.optimizer_in_backward": "Update in backward pass",
    "train.weight_precision": "Weights stored as",
    "train.fit_micro_batch": "Fit the micro-batch",
    "train.early_stop_evals": "Early stop",
    "train.on_nonfinite": "On NaN or infinity",
    "train.background_save": "Save in the background",
    "train.gradient_checkpointing": "Gradient checkpointing",
}

# Values of the schema as the field writes them; any other is shown as it is.
NAMES = {
    "rmsnorm": "RMSNorm",
    "layernorm": "LayerNorm",
    "gelu": "GELU",
    "relu": "ReLU",
    "relu2": "ReLU²",
    "swiglu": "SwiGLU",
    "yarn": "YaRN",
    "llama3": "Llama 3",
    "aux_loss": "aux loss",
    "bpe": "BPE",
    "gpt2": "GPT-2",
    "adamw": "AdamW",
    "muon": "Muon",
    "adafactor": "Adafactor",
    "adamw8bit": "8-bit AdamW",
    "wsd": "WSD",
    "skip": "skip the step",
    "rollback": "roll back",
}


def name_of(value: object) -> str:
    """A value as people write it."""
    return NAMES.get(str(value), str(value))


def label_of(path: str) -> str:
    """The plain name of a setting in forms."""
    return LABELS.get(path) or path.rsplit(".", 1)[-1].replace("_", " ").capitalize()
