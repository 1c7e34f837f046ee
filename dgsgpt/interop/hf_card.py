"""README.md of an exported model: what it is, what it was trained on, how well it does, how to open it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dgsgpt
from dgsgpt.config import ModelConfig, layer_windows
from dgsgpt.interop.hf_families import Family

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- dgsgpt
---
"""
USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = AutoModelForCausalLM.from_pretrained(".")
tokens = tokenizer("It was", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=100, do_sample=True)[0]))
```
"""
FIGURES = (
    ("params", "Parameters", "{:,}"),
    ("active_params", "Parameters used for each token", "{:,}"),
    ("step", "Training steps", "{:,}"),
    ("tokens", "Training tokens", "{:,}"),
    ("loss_train", "Training loss (nats per token)", "{:.4f}"),
    ("loss_val", "Validation loss (nats per token)", "{:.4f}"),
    ("ppl_val", "Validation perplexity", "{:.2f}"),
    ("bpb_val", "Validation bits per byte", "{:.4f}"),
)


def model_card(model: ModelConfig, family: Family, metadata: Mapping[str, Any], dtype: str) -> str:
    """The text of README.md; `metadata` is that of the checkpoint."""
    rows = [("Run", _plain(metadata.get("run_id"))), ("Text", _plain(metadata.get("corpus")))]
    rows += [
        (title, form.format(metadata[key]))
        for key, title, form in FIGURES
        if isinstance(metadata.get(key), int | float) and not isinstance(metadata[key], bool)
    ]
    rows += [
        ("Network", f"{family.title}, {model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads"),
        ("Context (tokens)", f"{model.block_size:,}"),
        ("Weights", dtype),
    ]
    table = "\n".join(f"| {title} | {value} |" for title, value in rows if value)
    name = _plain(metadata.get("run_id")) or "A language model"
    made = f"Trained with dgsgpt {dgsgpt.__version__}."
    return f"{HEAD}\n# {name}\n\n{made}\n\n| | |\n|---|---|\n{table}\n\n{USE}{_notes(model, family)}"


def _notes(model: ModelConfig, family: Family) -> str:
    notes = ""
    if len({windows[0] for windows in layer_windows(model)}) > 1:
        notes += (
            "\nSome layers see only the last tokens (`layer_types` in config.json). transformers does so; a program "
            "that leaves this key out of account gives other results on long texts.\n"
        )
    if family.own_splitting:
        notes += (
            f"\nFor {family.title} transformers' AutoTokenizer splits numbers by that family's own rule. Where that "
            'is not this tokenizer\'s, open it with `PreTrainedTokenizerFast.from_pretrained(".")` instead.\n'
        )
    return notes


def _plain(value: object) -> str:
    """Someone's words as one line without Markdown of their own."""
    text = " ".join(str(value).split())[:200] if isinstance(value, str) else ""
    return re.sub(r"([\\`*_\[\]<>|#!~&$])", r"\\\1", text)
