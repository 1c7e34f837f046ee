"""Configure: a goal or profile, ten knobs, features that say what they cost, and a summary that stays in sight."""

from functools import partial

import streamlit as st

from dgsgpt import dry_run
from dgsgpt.data.corpora import list_corpora
from dgsgpt.format import size
from dgsgpt.pace import gather
from dgsgpt.profiles import choose_profile
from dgsgpt.ui import (
    calibration_view,
    draft,
    dry_run_card,
    features,
    fitted,
    form,
    goal_cards,
    kept_drafts,
    knobs,
    launchpad,
    origin,
    overview,
    problems,
    recipe,
    settings,
    state,
    summary,
    tiers,
)
from dgsgpt.ui.atoms import section, title_row
from dgsgpt.ui.fields import Form
from dgsgpt.ui.outlook import choose_name, look_ahead

machine, runs, root = state.machine(), state.runs(), state.root()
automatic = choose_profile(machine)
fresh = draft.KEY not in st.session_state
bench = draft.workbench(automatic)
kept_drafts.reopen(bench, fresh)

# A link from another page may name a run to begin from; taken once, so that a reload keeps later changes.
wanted = st.query_params.pop("clone", None)
cloned = next((run for run in runs if run.id == wanted), None)
if cloned:
    state.attempt(draft.clone_run, cloned)

base, how = (st.query_params.pop(key, None) for key in ("base", "how"))
if base:
    state.attempt(origin.begin, base, how or "")

# ---------------------------------------------------------------- what the draft amounts to
checked = problems.check(bench.draft)
found, config, outlook = dict(checked.problems), checked.config, None
bench.valid = config or bench.valid
known = gather(machine, root, runs, lambda run: state.metrics(run).column("perf/tokens_per_s"))
if config is not None:
    resolved, unusable = launchpad.resolve_draft(config)
    if unusable:
        problem = problems.of_text(bench.draft, unusable)
        found[problem.path] = problem
    found |= launchpad.machine_problems(config, machine) | origin.problems(bench.origin, config)
    config = resolved or config
    outlook = look_ahead(config, machine, known.speed_of(config))
differences = form.changes(bench.draft, bench.base)
changed = frozenset(form.differs(bench.draft, bench.base))
fields = Form(bench.draft, bench.base, found, changed, len(differences))
name = choose_name(bench.name, bench.valid, root, origin.stem(bench.origin))
going = dry_run.pending(root)
kept_drafts.keep(bench)

# ---------------------------------------------------------------- head
with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="confhead"):
    title_row("New run", width="content")
    launchpad.start_from(runs)
    tier = tiers.choose()
    st.space("stretch")
    query = st.text_input(
        "Search settings", placeholder="Search: rope, dropout, warmup",
        icon=":material/search:", type="search", label_visibility="collapsed", width=230, key="q", live=True,
    )  # fmt: skip
    launchpad.undo_and_redo()
launchpad.flash()
kept_drafts.offer(bench)
origin.banner(bench.origin)

grid = st.grid(3, min_column_width=380)
with grid.cell(column_span=2):
    if bench.source == "yaml":
        launchpad.import_panel()
    if query or tier == tiers.ALL:
        with st.container(horizontal=True, vertical_alignment="center"):
            section("Found" if query else "All settings", f"● differs from {bench.base_title}")
            only = tiers.only_changed(fields)
        settings.all_settings(fields, query or "", only)
    else:
        if tier == tiers.GOAL:
            section("Goal", "begins with a shipped recipe, fitted to what is free here")
            goal_cards.cards(tiers.bench_goal(), machine, known)
        if bench.origin is None:  # else the network is there already
            found_here = f"{machine.name}, {size(machine.total_bytes)}, {size(machine.free_bytes)} free"
            section("Profile", f"chosen by the memory found: {found_here}")
            knobs.profile_cards(bench.profile if bench.source == "profile" else "", automatic, machine)
        fitted.offer(outlook, bench.base_title, bool(changed))
        if tier == tiers.ESSENTIALS:
            section("Essentials", f"● differs from {bench.base_title}")
            with st.container(border=True, key="card_knobs"):
                knobs.knobs(fields, launchpad.known_corpora([c.name for c in list_corpora()]))
                tokens = launchpad.prepared_tokens(config.data) if config else None
                knobs.knob_notes(fields, bench.base_title, config, tokens)
        section("Architecture", "each switch says what it does and what it costs" if tier != tiers.GOAL else "")
        if bench.valid is not None:
            with st.container(border=True, key="card_pics"):
                overview.architecture(bench.valid, stale=config is None)
        if tier == tiers.ESSENTIALS:
            features.features(fields, bench, machine.device)
            with tiers.folded("More of the network", knobs.smaller_in_words(bench.draft), fields, knobs.SMALLER):
                knobs.smaller_choices(fields)
            with tiers.folded("Training recipe", recipe.recipe_in_words(bench.draft), fields, recipe.PATHS):
                recipe.recipe(fields, bench.valid, stale=config is None)
        tiers.tell_hidden(fields, list(differences), bench.base_title)

with grid.cell(), st.container(border=True, key="summary", gap="small"):
    summary.name_field(bench, name)
    summary.remaining_problems(fields)
    last = outlook or (look_ahead(bench.valid, machine, known.speed_of(bench.valid)) if bench.valid else None)
    summary.figures(last, machine, stale=outlook is None)
    calibration_view.line(known.calibration, machine)
    if last is not None:
        summary.memory_bar(last, stale=outlook is None)
    if outlook is not None:
        summary.remedy_list(outlook, machine)
    dry_run_card.card(config, known.past, going)
    summary.differences(differences, bench.base_title)
    if checked.config is not None:
        summary.files(checked.config, name.name, bench, root)

try_it = partial(dry_run_card.start, config, machine, known) if config is not None and going is None else None
launchpad.bottom_bar(fields, name, outlook, config, try_it)
