"""P6: tokens a second of writing, against no cache and against transformers; cost and memory of a window by length."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Setup, Side, Timing
from benchmarks.report import Case, Figure, Target
from benchmarks.training import training_config
from dgsgpt import checkpoint as ck
from dgsgpt.config import RunConfig
from dgsgpt.data.alphabets import CharTokenizer
from dgsgpt.format import number
from dgsgpt.generation import stream
from dgsgpt.generation.context import Context
from dgsgpt.generation.sampling import Sampling, sample_token
from dgsgpt.interop.hf_export import write_hf
from dgsgpt.model import GPT

OURS, PLAIN, THEIRS = "with cache", "without cache", "transformers, with cache"
RULES: dict[str, Any] = {"temperature": 0.8, "top_k": 50}
FIRST_CHARACTER = 0x4E00  # of the tokenizer's, one after the other
OVER_PLAIN, OVER_THEIRS = Target("P6", at_least=10.0), Target("P6", at_least=3.0)
FLAT, BOUNDED = Target("P6", at_most=1.1), Target("P6", at_most=1.0)


@dataclass(frozen=True)
class _Size:
    """The default block at one size; `new` tokens after a prompt fill the context."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    vocab_size: int = 4096
    block_size: int = 1024
    new: int = 512
    window: int = 256
    lengths: Sequence[int] = (512, 2048, 8192)
    tokens: int = 64  # written at each of these lengths
    plain: Sequence[float] = field(default=(0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375))


WHOLE = _Size()
QUICK = _Size(1, 2, 32, 64, 32, 8, 4, (8, 16), 4, (0.5,))


def run(setup: Setup) -> Iterator[Case]:
    """Writing, the first token, and a window by length of the text."""
    size = QUICK if setup.quick else WHOLE
    torch.manual_seed(0)
    config = _config(size)
    model = GPT(config.model).to(setup.device).eval()
    with tempfile.TemporaryDirectory(prefix="dgsgpt-generation-") as folder:
        theirs, problem = _transformers(config, model, Path(folder))
    if theirs is not None:
        theirs = theirs.to(setup.device)
    notes = [] if problem is None else [f"left out: {problem}"]
    for case in (_writing(setup, size, model, theirs), _first_token(setup, size, model, theirs)):
        case.notes += notes
        yield case
    yield _by_length(setup, size)


def _config(size: _Size, **model: Any) -> RunConfig:
    shape = {name: getattr(size, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size", "block_size")}
    return training_config({**shape, **model})


@lru_cache
def _tokenizer(vocab_size: int) -> CharTokenizer:
    return CharTokenizer("".join(chr(FIRST_CHARACTER + i) for i in range(vocab_size)))


def _transformers(config: RunConfig, model: GPT, folder: Path) -> tuple[Any, str | None]:
    """The model as transformers opens its export; else None and why."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None, "transformers, which is not installed"
    saved = ck.save_checkpoint(
        folder, 1, model_tensors=model.state_dict(), optimizer_tensors={}, state={"step": 1}, config=config,
        tokenizer=_tokenizer(config.model.vocab_size or 0), metadata={"step": 1},
    )  # fmt: skip
    exported = write_hf(saved, folder / "exported", progress=lambda what, share: None)
    return AutoModelForCausalLM.from_pretrained(exported, local_files_only=True, dtype=torch.float32).eval(), None


# ---------------------------------------------------------------- writing
def _writing(setup: Setup, size: _Size, model: GPT, theirs: Any) -> Case:
    """Seconds a token of each side, from a prompt until the context is full."""
    prompt = _prompt(size)
    lengths = [len(prompt) + int(share * size.new) for share in size.plain]
    runs: dict[str, tuple[Callable[[], None], int]] = {
        OURS: (partial(write, model, size, prompt, size.new), size.new),
        PLAIN: (partial(write_plainly, model, lengths), len(lengths)),
    }
    if theirs is not None:
        runs[THEIRS] = (partial(write_theirs, theirs, prompt, size.new), size.new)
    times = setup.time([Side(name, run) for name, (run, _) in runs.items()])
    each = {name: Timing(tuple(s / runs[name][1] for s in timing.times_s)) for name, timing in times.items()}
    settings = {**model.config.model_dump(mode="json"), "prompt": len(prompt), "new": size.new, **RULES}
    case = Case(f"a token of {number(size.new)} after a prompt of {number(len(prompt))}, one text", settings, each)
    case.facts = {name: {"tokens_per_s": 1 / timing.median_s} for name, timing in each.items()}
    case.add_ratio(f"speed, {OURS} / {PLAIN}", PLAIN, OURS, None if setup.quick else OVER_PLAIN)
    if theirs is not None:
        case.add_ratio(f"speed, {OURS} / {THEIRS}", THEIRS, OURS, None if setup.quick else OVER_THEIRS)
    case.notes = [
        "reading the prompt is part of it, as is drawing with top-k; compiling the code for single tokens, "
        "a fraction of a second once a process, is not",
        f"without cache only the tokens at contexts of {', '.join(map(str, lengths))} are computed, evenly spread",
    ]
    return case


def _first_token(setup: Setup, size: _Size, model: GPT, theirs: Any) -> Case:
    prompt = _prompt(size)
    sides = [Side(OURS, partial(write, model, size, prompt, 1))]
    if theirs is not None:
        sides.append(Side(THEIRS, partial(write_theirs, theirs, prompt, 1)))
    case = Case(f"time to the first token after a prompt of {number(len(prompt))}", {"prompt": len(prompt)}, {})
    case.times = setup.time(sides)
    if theirs is not None:
        case.add_ratio(f"speed, {OURS} / {THEIRS}", THEIRS, OURS)
    return case


def _prompt(size: _Size) -> list[int]:
    count = size.block_size - size.new
    return torch.randint(size.vocab_size, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def write(model: GPT, size: _Size, prompt: list[int], new: int) -> None:
    """Write `new` tokens as everybody does who uses this package."""
    text = "".join(chr(FIRST_CHARACTER + token) for token in prompt)
    with stream(model, _tokenizer(size.vocab_size), text, max_new_tokens=new, seed=1, **RULES) as pieces:
        for _ in pieces:
            pass
    assert pieces.stats.tokens == new


@torch.inference_mode()
def write_plainly(model: GPT, lengths: Sequence[int]) -> None:
    """One token at each of these lengths of context, reading all of it as nanoGPT does."""
    device, rules = next(model.parameters()).device, Sampling(**RULES)
    generator = torch.Generator().manual_seed(1)
    for length in lengths:
        logits = model(torch.zeros(1, length, dtype=torch.long, device=device)).logits
        assert logits is not None
        sample_token(logits[0, -1].cpu(), rules, generator)


@torch.inference_mode()
def write_theirs(theirs: Any, prompt: list[int], new: int) -> None:
    """The same number of tokens by transformers' `generate`."""
    ids = torch.tensor([prompt], device=theirs.device)
    torch.manual_seed(1)
    found = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=True, use_cache=True, eos_token_id=None,
        pad_token_id=0, **RULES,
    )  # fmt: skip
    assert found.size(1) == len(prompt) + new


# ---------------------------------------------------------------- a window
class Writer:
    """A text of `length` tokens that goes on; called, it writes `tokens` more."""

    def __init__(self, model: GPT, length: int, tokens: int) -> None:
        self._context = Context(model, [])
        self._tokens = tokens
        self._logits: Tensor = self._context.read([0] * length)
        self._rules, self._generator = Sampling(**RULES), torch.Generator().manual_seed(1)

    def __call__(self) -> None:
        """Write."""
        for _ in range(self._tokens):
            self._logits = self._context.read([sample_token(self._logits.cpu(), self._rules, self._generator)])

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._context.cache_bytes


def _by_length(setup: Setup, size: _Size) -> Case:
    """A token of a text that is as long as this already, with a window in every layer."""
    window = {"size": size.window, "pattern": "S"}
    model = GPT(_config(size, window=window).model).to(setup.device).eval()
    writers = {f"text of {number(length)}": Writer(model, length, size.tokens) for length in size.lengths}
    times = setup.time([Side(name, writer) for name, writer in writers.items()])
    each = {name: Timing(tuple(s / size.tokens for s in timing.times_s)) for name, timing in times.items()}
    settings = {**model.config.model_dump(mode="json"), "tokens": size.tokens, **RULES}
    case = Case(f"a token with a window of {number(size.window)}, context {number(size.block_size)}", settings, each)
    case.facts = {name: {"cache_bytes": writer.cache_bytes} for name, writer in writers.items()}
    first, *_, last = writers
    targets = (None, None) if setup.quick else (FLAT, BOUNDED)
    case.add_ratio(f"time, {last} / {first}", last, first, targets[0])
    growth = writers[last].cache_bytes / writers[first].cache_bytes
    case.figures.append(Figure(f"bytes of the cache, {last} / {first}", growth, target=targets[1]))
    case.notes = [f"each round makes the texts {size.tokens} tokens longer"]
    return case
