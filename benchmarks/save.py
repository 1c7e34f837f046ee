"""What saving costs the step loop: the trainer's own way of saving, in the background and in the foreground."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import Setup, Side, Timing
from benchmarks.report import Case, Figure
from benchmarks.training import training_config
from dgsgpt.config import RunConfig, build_config
from dgsgpt.data.loader import Batches
from dgsgpt.data.prepare import prepare
from dgsgpt.format import plural, si
from dgsgpt.metrics import read_events
from dgsgpt.model import GPT
from dgsgpt.planner import plan
from dgsgpt.runs import Run, create_run
from dgsgpt.train.archive import Archive
from dgsgpt.train.health import Monitor
from dgsgpt.train.optim import build_updates
from dgsgpt.train.progress import Progress
from dgsgpt.train.report import Reporter
from dgsgpt.train.settle import Settled
from dgsgpt.train.setup import Workshop
from dgsgpt.train.stepper import Stepper

FOREGROUND, BACKGROUND = "waiting, foreground", "waiting, background"
ALONE, BESIDE = "steps alone", "steps beside a save"
ALPHABET = "abcdefghijklmnopqrstuvwxyz \n"
TEXT_CHARS, QUICK_TEXT_CHARS = 200_000, 4_000


class _Size(NamedTuple):
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch: int


SIZES = (_Size(5, 4, 128, 64, 12), _Size(6, 6, 384, 256, 2), _Size(16, 8, 512, 256, 1))  # 1M, 10.6M and 50M parameters
QUICK_SIZES = (_Size(1, 2, 32, 16, 2),)


def run(setup: Setup) -> Iterator[Case]:
    """One case for each size of model."""
    for size in QUICK_SIZES if setup.quick else SIZES:
        with tempfile.TemporaryDirectory(prefix="dgsgpt-save-") as folder:
            yield _case(setup, size, Path(folder))


def _case(setup: Setup, size: _Size, folder: Path) -> Case:
    loop = Loop(_config(size, folder, setup.quick), folder, setup.device)
    steps = loop.steps_within_a_save(setup)
    times = setup.time(
        [
            Side(FOREGROUND, partial(loop.save, FOREGROUND), after=partial(loop.finish, FOREGROUND)),
            Side(BACKGROUND, partial(loop.save, BACKGROUND), after=partial(loop.finish, BACKGROUND)),
            Side(ALONE, partial(loop.advance, steps)),
            Side(
                BESIDE,
                partial(loop.advance, steps),
                before=partial(loop.save, BACKGROUND),
                after=partial(loop.finish, BESIDE),
            ),
        ]
    )
    config, planned = loop.run.config, plan(loop.run.config, setup.device.type)
    settings = {**config.model.model_dump(mode="json"), "batch": size.batch, "steps_beside": steps}
    case = Case(f"{si(planned.params)} parameters, a checkpoint of {si(planned.checkpoint_bytes)}B", settings, times)
    case.facts = {side: {"save_s": statistics.median(taken)} for side, taken in loop.seconds.items()}
    case.add_ratio("waiting, foreground / background", FOREGROUND, BACKGROUND)
    case.add_ratio("time, steps beside a save / alone", BESIDE, ALONE)
    case.figures.append(_whole_cost(times))
    case.notes = [f"{plural(steps, 'step')} beside each save, about as many as fit into it"]
    return case


def _whole_cost(times: dict[str, Timing]) -> Figure:
    """What training loses by a background save, waiting and slower steps together, in units of a foreground save."""
    rounds = zip(*(times[side].times_s for side in (FOREGROUND, BACKGROUND, BESIDE, ALONE)), strict=True)
    costs = [(waiting + beside - alone) / foreground for foreground, waiting, beside, alone in rounds]
    return Figure("training time lost, background / foreground", statistics.median(costs), min(costs), max(costs))


def _config(size: _Size, folder: Path, quick: bool) -> RunConfig:
    """The default block at this size, in eager float32, on random letters."""
    generator = torch.Generator().manual_seed(0)
    count = QUICK_TEXT_CHARS if quick else TEXT_CHARS
    letters = torch.randint(len(ALPHABET), (count,), generator=generator).tolist()
    text = folder / "letters.txt"
    text.write_text("".join(ALPHABET[i] for i in letters), encoding="utf-8")
    model: dict[str, Any] = {k: v for k, v in size._asdict().items() if k != "batch"}
    model["vocab_size"] = 2 * len(ALPHABET)
    train = {"micro_batch_size": size.batch, "precision": "fp32", "compile": "off", "keep_last": 1}
    values = training_config(model, **train).to_dict()
    values["data"] = {"corpus": str(text), "tokenizer": {"kind": "char"}}
    return build_config(values, "benchmark")


class Loop:
    """A run's workshop with two archives, saving in the foreground and in the background, and steps between.

    `seconds` holds, by side, what each save took from its beginning to its end.
    """

    def __init__(self, config: RunConfig, folder: Path, device: torch.device) -> None:
        self.run = create_run(folder / "runs", config, "save")
        shop = _build_shop(config, folder / "datasets", device)
        self._stepper, self._progress, self._monitor = shop.stepper, Progress(), Monitor()
        reporter = Reporter(self.run.path, max_steps=config.train.steps)
        self._foreground = _archive(self.run, shop, reporter, background=False)
        self._background = _archive(self.run, shop, reporter, background=True)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def advance(self, steps: int) -> None:
        """Make optimizer steps."""
        for _ in range(steps):
            self._stepper.step(self._progress.step)
            self._progress.step += 1

    def save(self, side: str) -> None:
        """Begin a checkpoint, as the step loop does; in the foreground it is then on the disk."""
        self._progress.step += 1  # every checkpoint has a name of its own
        with redirect_stdout(io.StringIO()):  # the trainer's log
            self._archive(side).save(self._progress, self._monitor)

    def finish(self, side: str) -> None:
        """Wait until the checkpoint is on the disk, and note what it took."""
        with redirect_stdout(io.StringIO()):
            self._archive(side).poll(wait=True)
        saves = [event for event in read_events(self.run.path) if event["kind"] == "checkpoint"]
        self.seconds[side].append(saves[-1]["seconds"])

    def steps_within_a_save(self, setup: Setup) -> int:
        """How many steps fit into the time that a save takes; one at least."""
        self.advance(2)
        setup.synchronize()
        begun = time.perf_counter()
        self.advance(2)
        setup.synchronize()
        step_s = (time.perf_counter() - begun) / 2
        self.save(BACKGROUND)
        self.finish(BACKGROUND)
        return max(1, int(self.seconds.pop(BACKGROUND)[0] / step_s))

    def _archive(self, side: str) -> Archive:
        return self._foreground if side == FOREGROUND else self._background


def _archive(run: Run, shop: Workshop, reporter: Reporter, *, background: bool) -> Archive:
    train = shop.train.model_copy(update={"background_save": background})
    return Archive(run, replace(shop, train=train), reporter)


def _build_shop(config: RunConfig, datasets: Path, device: torch.device) -> Workshop:
    """As the trainer's own, which keeps its token files where the user's are."""
    train, model_config = config.train, config.model
    dataset = prepare(config.data, model_config.block_size, datasets)
    torch.manual_seed(train.seed)
    model = GPT(model_config).to(device)
    batches = Batches(
        dataset, "train", block_size=model_config.block_size, batch_size=train.micro_batch_size, seed=train.seed
    )
    stepper = Stepper(model, build_updates(model, train), batches, train, device)
    settled = Settled(train.precision, train.compile, train.micro_batch_size, train.grad_accum_steps)
    return Workshop(train, device, plan(config, device.type), dataset, dataset.tokenizer, model, stepper, settled)
