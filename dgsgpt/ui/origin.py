"""Where a draft's weights come from: from scratch, going on from a checkpoint (fork), or fine-tuning its weights."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import streamlit as st

from dgsgpt import branch
from dgsgpt import checkpoint as ck
from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import CheckpointError, DgsgptError
from dgsgpt.format import number
from dgsgpt.rules import differences
from dgsgpt.runs import Run, create_run
from dgsgpt.ui import atoms, draft, form, state
from dgsgpt.ui.markup import markup
from dgsgpt.ui.problems import Fix, Problem, plain_words

HOW = {branch.FINE_TUNE: "New run from these weights", branch.FORK: "Go on where it stopped"}
_SAYS = {
    branch.FINE_TUNE: "Begins at step 0 with these weights and a fresh optimizer, on the text you choose. Network and "
    "tokenizer are those of the checkpoint.",
    branch.FORK: "Goes on at its step with its optimizer, its curve and its place in the text; what you change below "
    "holds from there on.",
}


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a draft begins with."""

    ref: str
    path: Path
    step: int
    run_id: str
    how: str
    imported: bool

    @property
    def source(self) -> str:
        """How the choice "Start from" names it."""
        return f"from:{self.ref}"

    @property
    def title(self) -> str:
        """How differences name it."""
        return f"{self.run_id}, step {number(self.step)}"


def find(ref: str, how: str) -> Origin:
    """The checkpoint named by a link; an imported one can only be fine-tuned.

    Raises:
        CheckpointError: there is none, it is quantized, or it is damaged as far as names and sizes tell.
    """
    path = ck.find_checkpoint(ref, state.root())
    ck.refuse_quantized(path, "trained")
    info = ck.describe(path)
    if info.problem:
        raise CheckpointError(f"{ref} is damaged ({info.problem}); choose another checkpoint")
    imported = bool(info.metadata.get("imported"))
    chosen = how if how in HOW and not imported else branch.FINE_TUNE
    run_id = path.parent.parent.name
    return Origin(f"{run_id}@{info.step}", path, info.step, run_id, chosen, imported)


def begin(ref: str, how: str) -> None:
    """Begin a draft with a checkpoint.

    Raises:
        DgsgptError: it cannot be used.
    """
    _begin(find(ref, how))


def _begin(origin: Origin) -> None:
    bench, known = draft.opened(), load_config(origin.path / ck.CONFIG)
    config = known if origin.how == branch.FORK else branch.base_config(origin.path, known)
    more = {"train.steps": _further(config, origin)} if origin.how == branch.FORK else {}
    # Rows of the embedding are there already: no text tells their number any more.
    values = form.apply(form.draft_of(config), {"model.vocab_size": known.model.vocab_size})
    bench.begin(values, origin.title, bench.profile, origin.source, more, origin)


def _further(config: RunConfig, origin: Origin) -> int:
    """Steps of a fork: what its origin had, or half as many again where all of these are made."""
    return config.train.steps if config.train.steps > origin.step else origin.step + max(1, origin.step // 2)


def problems(origin: Origin | None, config: RunConfig) -> dict[str, Problem]:
    """What of the draft does not go with the weights that are there."""
    if origin is None:
        return {}
    known = load_config(origin.path / ck.CONFIG)
    try:
        if origin.how == branch.FORK:
            branch.check_fork(origin.path, config, origin.step)
        else:
            branch.check_shapes(known.model, config.model)
    except DgsgptError as e:
        return _problem(origin, known, config, str(e))
    return {}


def _problem(origin: Origin, known: RunConfig, config: RunConfig, message: str) -> dict[str, Problem]:
    """The error beside the fields that it is about, each with what puts it right."""
    if message.startswith("train.steps"):
        steps = _further(config, origin)
        fix = Fix(f"Use {number(steps)}", {"train.steps": steps})
        return {"train.steps": Problem("train.steps", plain_words(message), (fix,))}
    changed = differences(known.to_dict(), config.to_dict())
    named = [p for p in changed if message.startswith(f"{p}:") or f", {p}:" in message or message.startswith(p)]
    paths = named or [p for p in changed if p.startswith(("model.", "data.tokenizer"))]
    told = f"The weights of {origin.title} are of another network; put it back, or begin from scratch"
    if message.startswith("train."):
        told = "To go on needs the optimizer as it was; put it back, or begin a new run from these weights"
    fix_all = {p: changed[p][0] for p in paths if p in form.SETTINGS}
    return {p: Problem(p, told, (Fix("Put back", fix_all),)) for p in paths if p in form.SETTINGS}


def stem(origin: Origin | None) -> str:
    """How the suggested name of the run begins; empty for one from scratch."""
    return branch.name_stem(origin.run_id, origin.how) if origin else ""


# ---------------------------------------------------------------- drawn
def banner(origin: Origin | None) -> None:
    """What the run begins with, and which of the two ways; nothing for a run from scratch."""
    if origin is None:
        return
    with st.container(border=True, key="card_origin", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            atoms.h(markup('<div style="font-weight:600">Begins with {}</div>', origin.title), width="content")
            st.space("stretch")
            st.segmented_control(
                "How it begins", list(HOW), format_func=HOW.__getitem__, required=True, default=origin.how,
                key=f"origin_how_{origin.how}", label_visibility="collapsed", on_change=_switch, args=(origin,),
                disabled=origin.imported, help="An imported model has no optimizer state." if origin.imported else None,
            )  # fmt: skip
            st.button("From scratch instead", key="origin_off", type="tertiary", on_click=_scratch)
        atoms.para(_SAYS[origin.how])


def _switch(origin: Origin) -> None:
    chosen = st.session_state[f"origin_how_{origin.how}"]
    state.attempt(_begin, replace(origin, how=chosen))


def _scratch() -> None:
    bench = draft.opened()
    draft.use_profile(bench.profile)


# ---------------------------------------------------------------- started
def command(origin: Origin | None, config: RunConfig, name: str) -> str:
    """The command that starts the same run."""
    if origin is None:
        return f"dgsgpt train {name}.yaml --run-id {name}"
    if origin.how == branch.FINE_TUNE:
        return f"dgsgpt train {name}.yaml --from {origin.ref} --run-id {name}"
    changed = differences(load_config(origin.path / ck.CONFIG).to_dict(), config.to_dict())
    written = [f"{path}={json.dumps(now, ensure_ascii=False)}" for path, (_, now) in changed.items()]
    return " ".join([f"dgsgpt fork {origin.ref} --run-id {name}", *(f"--set {shlex.quote(w)}" for w in written)])


def create(origin: Origin | None, config: RunConfig, name: str) -> Run:
    """The run, not yet started.

    Raises:
        DgsgptError: it cannot be made.
    """
    words = shlex.split(command(origin, config, name))
    if origin is None:
        return create_run(state.root(), config, name, words)
    make = branch.fork if origin.how == branch.FORK else branch.begin_from
    return make(state.root(), origin.path, config, name, words)
