"""In a real browser: a recipe is chosen, the run saved, paused, continued, stopped, resumed; a profile is fitted."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from dgsgpt.format import number
from dgsgpt.hardware import detect
from dgsgpt.planner import fit, plan
from dgsgpt.profiles import load_profile
from dgsgpt.runs import Run, list_runs
from tests.e2e.conftest import Server, idle, visit
from tests.e2e.test_journey import flip, go, take_over, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

# Too long to end by itself, and nothing is saved unless it is asked for.
LONG = """
model: {n_layer: 2, n_head: 2, n_embd: 32, block_size: 64}
train: {steps: 1000000, micro_batch_size: 4, schedule: {warmup_steps: 20}, log_every: 20, eval_every: 0,
        checkpoint_every: 0, sample_every: 0, device: cpu, precision: fp32, compile: "off"}
"""


def press(page: Page, name: str) -> None:
    """Click a button once it is there and can be clicked."""
    page.get_by_role("button", name=name).click()


def choose(page: Page, label: str, option: str) -> None:
    """Click one of the choices that stand side by side."""
    group = page.get_by_role("radiogroup", name=label)
    group.get_by_role("radio", name=option, exact=True).click()
    taken = page.get_by_role("radiogroup", name=f"{label} ●")  # the server has taken it
    expect(taken.get_by_role("radio", name=option, exact=True)).to_be_checked()
    idle(page)


def unfold(page: Page, title: str) -> None:
    """Open a closed box of settings."""
    page.locator("summary").filter(has_text=title).click()
    idle(page)


def state_shown(page: Page, state: str) -> None:
    """The pill of the run bar."""
    expect(page.locator(".st-key-train_bar").get_by_text(state)).to_be_visible(timeout=120_000)


def started(page: Page, server: Server) -> Run:
    """Set a recipe on the Configure page and start it."""
    visit(page, server.page())
    go(page, "Configure")
    take_over(page, LONG, "austen-2x32")
    page.get_by_role("combobox", name="Tokenizer").click()
    page.get_by_role("option", name="Characters").click()
    expect(page.get_by_text("Tokenizer ●")).to_be_visible()
    flip(page, "N-gram embeddings", on=True)
    unfold(page, "Training recipe")
    choose(page, "Rule", "Muon")
    expect(page.locator(".st-key-card_optimizer")).to_contain_text("Matrices")
    choose(page, "Shape", "WSD")
    expect(page.locator(".st-key-card_schedule")).to_contain_text(
        "holds it to step 800 000".replace(" 000", "\u202f000")
    )
    press(page, "Start training")
    expect(page).to_have_title("Train")
    (run,) = list_runs(server.runs)
    return run


def test_a_run_is_saved_paused_continued_stopped_and_resumed(server: Server, page: Page) -> None:
    run = started(page, server)
    train, data = run.config.train, run.config.data
    assert (train.optimizer, train.schedule.kind, data.tokenizer.kind) == ("muon", "wsd", "char")
    assert run.config.model.ngram is not None
    assert data.document_separator is None
    state_shown(page, "Running")
    until(lambda: run.status().step > 20)
    assert not run.checkpoints()
    press(page, "Save now")
    until(lambda: len(run.checkpoints()) == 1)
    saved = run.checkpoints()[0].name.removeprefix("step_").lstrip("0")
    expect(page.locator(".st-key-train_card_saved")).to_contain_text(number(int(saved)))
    recipe = page.locator(".st-key-train_card_recipe")
    expect(recipe).to_contain_text("Muon for matrices, AdamW for the rest")
    pause_and_continue(page, run)
    stop_and_resume(page, run)


def pause_and_continue(page: Page, run: Run) -> None:
    """A paused run keeps its process and its step; continued, it goes on from there."""
    press(page, "Pause")
    state_shown(page, "Paused")
    held = run.status().step
    expect(page.get_by_text(f"paused after step {held}")).to_be_visible()
    page.wait_for_timeout(1500)
    assert (run.status().step, run.status().paused) == (held, True)
    expect(page.get_by_role("button", name="Save now")).to_have_count(0)
    press(page, "Continue")
    state_shown(page, "Running")
    until(lambda: run.status().step > held)


def stop_and_resume(page: Page, run: Run) -> None:
    """A stopped run has ended with a checkpoint of its last step, from which it is resumed."""
    press(page, "Stop and save")
    state_shown(page, "Stopped")
    until(lambda: run.status().state == "stopped")
    last = run.status().step
    assert run.checkpoints()[-1].name == f"step_{last:08d}"
    press(page, f"Resume from step {number(last)}")
    state_shown(page, "Running")
    until(lambda: run.status().step > last)
    expect(page.locator(".st-key-train_bar")).not_to_contain_text("Stopped")


# ---------------------------------------------------------------- a profile that does not fit
def too_large() -> str:
    """The smallest profile that needs more memory than is free here."""
    machine = detect(".")
    for name in ("medium", "high"):
        if plan(load_profile(name).config, machine.device).total_bytes > 1.1 * machine.free_bytes:
            return name
    pytest.skip("every profile fits into this machine's memory")


def fitted_card(page: Page) -> Locator:
    return page.locator(".st-key-card_fitted")


def test_a_profile_that_does_not_fit_is_fitted_by_one_click_and_undone_by_another(server: Server, page: Page) -> None:
    name = too_large()
    profile, machine = load_profile(name), detect(".")
    visit(page, server.page("configure"))
    page.locator(f".st-key-use_{name} button").click()
    card, start = fitted_card(page), page.get_by_role("button", name="Start training")
    expect(card).to_contain_text(f"Profile {profile.title} does not fit here")
    expect(card).to_contain_text("computed, not measured")
    idle(page)
    if fit(profile.config, machine.free_bytes, machine.device) is None:
        expect(card).to_contain_text("No recipe makes this model fit")
        expect(card.get_by_role("button")).to_have_count(0)
        return
    expect(card.get_by_role("listitem").first).to_be_visible()  # what changes
    summary = page.locator(".st-key-summary")
    expect(summary).to_contain_text(f"No difference from profile {profile.title}")
    card.get_by_role("button", name="Use the fitted version").click()
    expect(card).to_have_count(0)
    expect(summary).to_contain_text(f"Difference from profile {profile.title}")
    expect(start).to_be_enabled()
    idle(page)
    page.get_by_role("button", name="Undo").click()
    expect(card).to_be_visible()
    expect(summary).to_contain_text(f"No difference from profile {profile.title}")
