"""The benchmarks by name. Without torch, so that listing them is quick."""

from __future__ import annotations

import difflib

from dgsgpt.errors import DgsgptError

# A name is also that of the module that holds the benchmark, with `run(setup)` giving its cases one by one.
BENCHMARKS = {
    "attention": "Sliding-window attention against full causal attention and a dense mask: time and memory by length.",
    "moe": "A mixture of experts against a dense network of the same active FLOPs: training step and single layer.",
    "step": "Training steps a second: compiled, bfloat16 and the choice of `auto` against eager float32.",
    "save": "What saving costs the step loop: in the background against in the foreground, by size of the model.",
    "checkpoints": "Listing 1,000 checkpoints in a fresh process without torch, against loading its code alone.",
    "dashboard": "The dashboard in a real browser: start-up, 100 long runs, one of a million lines, idle refreshes.",
    "memory": "Gradient checkpointing: peak memory and time of its modes, and what the planner predicted.",
    "speedrun": "Seconds to the GPT-2-style baseline's validation loss on the characters of a text (--text FILE).",
    "generation": "Writing: tokens a second against no cache and against transformers; a window by length of the text.",
    "loss": "Cross-entropy in chunks of rows against all logits at once: time and memory by vocabulary.",
    "gpu": "GPT-2 124M on a GPU: tokens a second and FLOPs utilisation; the VRAM profiles, each within its budget.",
}
NEEDS_GPU = frozenset({"gpu"})
NEEDS_BROWSER = frozenset({"dashboard"})


def check_name(name: str) -> str:
    """`name`, if there is such a benchmark.

    Raises:
        DgsgptError: there is none; the message has the nearest name.
    """
    if name in BENCHMARKS:
        return name
    close = difflib.get_close_matches(name, BENCHMARKS, 1, 0.4)
    guess = f"did you mean {close[0]}? " if close else ""
    raise DgsgptError(f"benchmark {name!r} does not exist; {guess}choose one of {', '.join(BENCHMARKS)}")
