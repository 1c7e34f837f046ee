"""A config in three pictures: its layers, what attention sees, and the learning rate."""

from __future__ import annotations

from dgsgpt.config import RunConfig, layer_is_moe, layer_windows
from dgsgpt.format import number
from dgsgpt.ui import feature_costs as costs
from dgsgpt.ui import form, pictures
from dgsgpt.ui.atoms import h
from dgsgpt.ui.markup import Html, join, markup
from dgsgpt.ui.theme import c


def architecture(config: RunConfig, stale: bool = False) -> None:
    """The layers, the attention masks and the learning rate of a config; faint when the draft is no longer it."""
    model, schedule = config.model, config.train.schedule
    kinds = sorted(set(layer_windows(model)), key=pictures.by_reach)
    masks = join(_mask_of_kind(windows, model.block_size, captioned=len(kinds) > 1) for windows in kinds)
    seen = costs.reach(model)
    sparse = sum(layer_is_moe(model))
    stack = f"{model.n_layer}: {seen.words()}" if seen.full < model.n_layer else f"{model.n_layer}"
    if model.moe:
        stack += f", {model.moe.n_expert} experts" + (" each" if sparse == model.n_layer else f" in {sparse}")
    warm_up = f"{form.name_of(schedule.kind)}, {number(schedule.warmup_steps)} warm-up"
    cells = [
        ("Layers", stack, pictures.layers(model)),
        ("Attention", seen.words(), markup('<div style="display:flex;flex-wrap:wrap;gap:8px 14px">{}</div>', masks)),
        ("Learning rate", warm_up, pictures.learning_rate_curve(config.train)),
    ]
    drawn = join(
        markup(
            '<div style="min-width:0"><div style="font-size:13px;line-height:18px;margin-bottom:8px">'
            '<b style="font-weight:600">{}</b> <span style="color:{}">{}</span></div>{}</div>',
            title, c("ink3"), aside, picture,
        )
        for title, aside, picture in cells
    )  # fmt: skip
    h(
        markup(
            '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:16px 28px;'
            'opacity:{}">{}</div>',
            0.4 if stale else 1,
            drawn,
        )
    )


def _mask_of_kind(windows: pictures.Windows, block_size: int, captioned: bool) -> Html:
    drawn = pictures.attention_mask(windows, block_size)
    if not captioned:
        return drawn
    name = "both" if len(windows) > 1 else "full" if windows[0] is None else "local"
    caption = '<div style="font-size:11px;line-height:15px;color:{};padding-top:3px">{}</div>'
    return markup("<div>{}{}</div>", drawn, markup(caption, c("ink3"), name))
