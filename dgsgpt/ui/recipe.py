"""How a run is trained, in four cards: the rule that changes weights, its rate, the arithmetic, and the run itself."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dgsgpt.config import RunConfig
from dgsgpt.format import lr, percent
from dgsgpt.ui import form, pictures
from dgsgpt.ui.atoms import h, head, note
from dgsgpt.ui.fields import Form, show_problem
from dgsgpt.ui.groups import groups_table
from dgsgpt.ui.markup import markup
from dgsgpt.ui.problems import Problem, make_way
from dgsgpt.ui.rate_curve import in_words

_RULES = {
    "adamw": "Keeps two numbers of state for each weight: the gradient's mean and its square.",
    "muon": "Makes the steps of the blocks' matrices equally long in all directions; AdamW moves the rest. Often needs "
    "fewer steps.",
    "adafactor": "Keeps the gradient's square by rows and columns only: next to no memory, no momentum. "
    "Its rate is relative to the size of the weights: 1e-2 is usual.",
    "adamw8bit": "AdamW with its two numbers in 8 bits each: a quarter of the memory.",
}
Fields = list[Callable[[], None]]


PATHS = tuple(
    path
    for path in form.SETTINGS
    if (path.startswith("train.") or path == "data.document_separator")
    and path not in ("train.lr", "train.steps", "train.micro_batch_size", "train.grad_accum_steps")
    and path not in ("train.gradient_checkpointing", "train.device", "train.eval_tokens", "train.log_every")
    and path not in ("train.sample_prompt", "train.sample_tokens", "train.tracker")
)


def recipe_in_words(values: form.Draft) -> str:
    """The recipe in a few words, e.g. `AdamW, cosine with 50 steps of warm-up, precision auto`."""
    rule, shape, warmup, precision = (
        form.get(values, f"train.{name}")
        for name in ("optimizer", "schedule.kind", "schedule.warmup_steps", "precision")
    )
    return f"{form.name_of(rule)}, {form.name_of(shape)} with {warmup} steps of warm-up, precision {precision}"


def recipe(f: Form, config: RunConfig | None, stale: bool = False) -> None:
    """Draw the four cards; `config` is the last valid one, `stale` when the draft is no longer it."""
    with st.container(border=True, key="card_optimizer"):
        _optimizer(f, config, stale)
    with st.container(border=True, key="card_schedule"):
        _schedule(f, config, stale)
    with st.container(border=True, key="card_precision"):
        head("Precision and speed", note="what auto chose is written into the run")
        _fields(_precision(f))
    with st.container(border=True, key="card_course"):
        head("Course of the run", note="when it validates, saves and ends")
        _fields(_course(f))


def _fields(draw: Fields) -> None:
    with st.grid(4, min_column_width=150, gap="small") as grid:
        for one in draw:
            with grid.cell():
                one()


def _switch(f: Form, path: str) -> None:
    st.space("small")  # in line with fields, which have their label above
    f.switch(path)


def _faint(stale: bool) -> str:
    return "0.4" if stale else "1"


# ---------------------------------------------------------------- the update rule
def _optimizer(f: Form, config: RunConfig | None, stale: bool) -> None:
    head("Optimizer", note="rule, decay and clipping")
    with st.grid(2, min_column_width=330, gap="small") as grid:
        with grid.cell(), st.container(gap="xsmall"):
            f.segments("train.optimizer", "Rule")
            note(_RULES.get(str(form.get(f.values, "train.optimizer")), ""))
        with grid.cell():
            if config is not None and not stale:
                groups_table(config)
            else:
                note("The groups of weights show when the settings are valid.")
    rates = [2e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2]
    _fields(
        [
            lambda: f.ladder("train.weight_decay", [0.0, 0.01, 0.05, 0.1, 0.2], show=_plain),
            lambda: f.choice("train.grad_clip", [None, 0.5, 1.0, 2.0], show=_or("none")),
            lambda: f.ladder("train.beta1", [0.8, 0.9, 0.95], show=_plain),
            lambda: f.ladder("train.beta2", [0.9, 0.95, 0.98, 0.99, 0.999], show=_plain),
            lambda: f.ladder("train.muon_lr", rates, show=lr),
            lambda: f.ladder("train.muon_momentum", [0.85, 0.9, 0.95, 0.98], show=_plain),
            lambda: _in_backward(f),
        ]
    )


def _in_backward(f: Form) -> None:
    """The switch, and where other settings bar it, one button that changes them all."""
    path = "train.optimizer_in_backward"
    _switch(f, path)
    way = make_way(f.values, path) if form.get(f.values, path) is True and f.problems else None
    if way is not None:
        barred = " and ".join(form.label_of(p) for p in way.overrides)
        show_problem(Problem(path, f"Barred by {barred}", (way,)), "way_")


def _plain(value: float) -> str:
    return f"{value:g}"


def _or(nothing: str) -> Callable[[float | None], str]:
    return lambda value: nothing if value is None else f"{value:g}"


# ---------------------------------------------------------------- its rate
def _schedule(f: Form, config: RunConfig | None, stale: bool) -> None:
    head("Schedule", note="the learning rate over the run")
    with st.grid(2, min_column_width=330, gap="small") as grid:
        with grid.cell(), st.container(gap="xsmall"):
            f.segments("train.schedule.kind", "Shape")
            with st.grid(3, min_column_width=110, gap="small") as fields:
                with fields.cell():
                    f.number("train.schedule.warmup_steps")
                with fields.cell():
                    f.ladder("train.schedule.min_lr_ratio", [0.0, 0.01, 0.05, 0.1, 0.2, 0.5], show=_share)
                with fields.cell():
                    f.ladder("train.schedule.decay_share", [0.05, 0.1, 0.2, 0.3, 0.5, 1.0], show=_share)
        with grid.cell():
            if config is not None:
                curve = pictures.learning_rate_curve(config.train, 380, 104)
                h(markup('<div style="opacity:{}">{}</div>', _faint(stale), curve))
                note(in_words(config.train))


def _share(value: float) -> str:
    return percent(value, 0)


# ---------------------------------------------------------------- arithmetic, and the run
def _precision(f: Form) -> Fields:
    return [
        lambda: _listed(f, "train.precision"),
        lambda: _listed(f, "train.weight_precision"),
        lambda: f.segments("train.compile"),
        lambda: _switch(f, "train.fit_micro_batch"),
    ]


def _listed(f: Form, path: str) -> None:
    f.choice(path, form.SETTINGS[path].choices)


def _course(f: Form) -> Fields:
    return [
        lambda: f.number("train.eval_every"),
        lambda: f.choice("train.early_stop_evals", [None, 2, 3, 5, 10, 20], show=_patience),
        lambda: f.number("train.target_loss", empty="none"),
        lambda: _listed(f, "train.on_nonfinite"),
        lambda: f.number("train.checkpoint_every"),
        lambda: f.number("train.keep_last"),
        lambda: _switch(f, "train.background_save"),
        lambda: f.text("data.document_separator", empty="none: one document"),
        lambda: f.number("train.sample_every"),
        lambda: f.number("train.seed"),
    ]


def _patience(count: int | None) -> str:
    return "never" if count is None else f"after {count} without gain"
