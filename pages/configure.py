"""Configure: a profile, a dozen knobs, features that say what they cost, and a summary that stays in sight."""

import streamlit as st

from dgsgpt.data.corpora import list_corpora
from dgsgpt.format import size
from dgsgpt.profiles import choose_profile
from dgsgpt.ui import (
    draft,
    features,
    fitted,
    form,
    knobs,
    launchpad,
    origin,
    overview,
    problems,
    recipe,
    settings,
    state,
    summary,
)
from dgsgpt.ui.atoms import section, title_row
from dgsgpt.ui.fields import Form
from dgsgpt.ui.outlook import choose_name, look_ahead, measured_speed

machine, runs = state.machine(), state.runs()
automatic = choose_profile(machine)
bench = draft.workbench(automatic)

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
if config is not None:
    resolved, unusable = launchpad.resolve_draft(config)
    if unusable:
        problem = problems.of_text(bench.draft, unusable)
        found[problem.path] = problem
    found |= launchpad.machine_problems(config, machine) | origin.problems(bench.origin, config)
    config = resolved or config
    speed = measured_speed(runs, machine.name, lambda run: state.metrics(run).column("perf/tokens_per_s"))
    outlook = look_ahead(config, machine, speed)
differences = form.changes(bench.draft, bench.base)
changed = frozenset(form.differs(bench.draft, bench.base))
fields = Form(bench.draft, bench.base, found, changed, len(differences))
name = choose_name(bench.name, bench.valid, state.root(), origin.stem(bench.origin))

# ---------------------------------------------------------------- head
with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="confhead"):
    title_row("New run", width="content")
    launchpad.start_from(runs)
    tiers = ["Essentials", f"All {len(form.SETTINGS)} settings"]
    tier = st.segmented_control(
        "Settings shown", tiers, default=tiers[0], required=True, label_visibility="collapsed", key="tier",
        persist_state="session",
    )  # fmt: skip
    st.space("stretch")
    query = st.text_input(
        "Search settings", placeholder="Search: rope, dropout, warmup",
        icon=":material/search:", type="search", label_visibility="collapsed", width=250, key="q", live=True,
    )  # fmt: skip
    st.button(
        "Undo", icon=":material/undo:", key="undo", help="Undo the last change", disabled=not bench.undo,
        on_click=bench.step_back,
    )  # fmt: skip
launchpad.flash()
origin.banner(bench.origin)

grid = st.grid(3, min_column_width=430)
with grid.cell(column_span=2):
    if bench.source == "yaml":
        launchpad.import_panel()
    if query or tier != tiers[0]:
        section("Found" if query else "All settings", f"● differs from {bench.base_title}")
        settings.all_settings(fields, query or "")
    else:
        if bench.origin is None:  # else the network is there already
            found_here = f"{machine.name}, {size(machine.total_bytes)}, {size(machine.free_bytes)} free"
            section("Profile", f"chosen by the memory found: {found_here}")
            knobs.profile_cards(bench.profile, automatic, machine)
        fitted.offer(outlook, bench.base_title, bool(changed))
        section("Essentials", f"● differs from {bench.base_title}")
        with st.container(border=True, key="card_knobs"):
            knobs.knobs(fields, launchpad.known_corpora([c.name for c in list_corpora()]))
            tokens = launchpad.prepared_tokens(config.data) if config else None
            knobs.knob_notes(fields, bench.base_title, config, tokens)
        section("Architecture", "each switch says what it does and what it costs")
        if bench.valid is not None:
            with st.container(border=True, key="card_pics"):
                overview.architecture(bench.valid, stale=config is None)
        features.features(fields, bench, machine.device)
        knobs.smaller_choices(fields)
        section("Training", "how weights are changed, in which arithmetic, and when it ends")
        recipe.recipe(fields, bench.valid, stale=config is None)

with grid.cell(), st.container(border=True, key="summary", gap="small"):
    summary.name_field(bench, name)
    summary.remaining_problems(fields)
    summary.figures(outlook, machine)
    if outlook is not None:
        summary.memory_bar(outlook)
        summary.remedy_list(outlook, machine)
    summary.differences(differences, bench.base_title)
    if checked.config is not None:
        summary.files(checked.config, name.name, bench.origin)

launchpad.bottom_bar(fields, name, outlook, config)
