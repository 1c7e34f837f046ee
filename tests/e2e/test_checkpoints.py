"""In a real browser: a checkpoint is starred, named, deleted and brought back; an old model is imported and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dgsgpt.annotations import Annotation, read
from dgsgpt.runs import Run, list_runs
from tests.checkpoint_factory import save
from tests.e2e.conftest import Server, idle, visit
from tests.e2e.test_journey import until
from tests.run_factory import make_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
LEGACY = Path(__file__).parents[1] / "interop" / "data" / "legacy"
STAR_X, CHECK_X, HEADER, ROW = 60, 17, 32, 32  # px inside the table


@pytest.fixture
def run(server: Server) -> Run:
    """A run with checkpoints at steps 10 and 20, the second the newer."""
    made = make_run(server.runs, "austen-small", step=20)
    save(made, 10)
    save(made, 20)
    return made


def click_cell(page: Page, x: int, row: int) -> None:
    """Click into the table, which is drawn on a canvas."""
    box = page.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + x, box["y"] + HEADER + ROW * (row + 0.5))


def choose_more(page: Page, choice: str) -> None:
    page.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name=choice).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    idle(page)


def said(run: Run, step: int) -> Annotation:
    return read(run).of(f"step_{step:08d}")


def test_star_name_tag_delete_and_undo(server: Server, page: Page, run: Run) -> None:
    visit(page, server.page("checkpoints?checkpoint=austen-small@10"))
    expect(page.locator(".st-key-ck_actions")).to_contain_text("step 10")
    click_cell(page, STAR_X, 1)
    until(lambda: said(run, 10).star)
    expect(page.get_by_role("button", name="Remove star")).to_be_visible()
    assert not said(run, 20).star

    choose_more(page, "Name, tags, note")
    page.get_by_role("textbox", name="Name").fill("The *first* one")
    page.get_by_role("textbox", name="Note").fill("kept for the paper")
    until(lambda: said(run, 10).name == "The *first* one")
    box = page.get_by_role("combobox", name="Tags")
    box.fill("baseline")
    box.press("Enter")
    until(lambda: said(run, 10).tags == ("baseline",))
    until(lambda: said(run, 10).note == "kept for the paper")
    idle(page)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")  # the first may only close the list of tags
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".st-key-ck_actions")).to_contain_text("The *first* one")

    choose_more(page, "Delete")
    page.get_by_role("button", name="Move to the trash").click()
    expect(page.locator(".st-key-ck_undo_line")).to_contain_text("austen-small@10")
    assert [path.name for path in run.checkpoints()] == ["step_00000020"]
    idle(page)
    page.get_by_role("button", name="Undo").click()
    until(lambda: len(run.checkpoints()) == 2)
    expect(page.locator(".st-key-ck_actions")).to_contain_text("The *first* one")
    assert said(run, 10).star


def test_rows_that_are_ticked_are_in_the_address_and_on_the_page(server: Server, page: Page, run: Run) -> None:
    visit(page, server.page("checkpoints?checkpoint=austen-small@10"))
    click_cell(page, CHECK_X, 0)
    expect(page.get_by_role("button", name="Swap")).to_be_visible()
    page.wait_for_url("**checkpoint=austen-small%4010&checkpoint=austen-small%4020*")
    idle(page)
    page.reload()
    idle(page)
    expect(page.locator(".st-key-ck_actions")).to_contain_text("step 20")


def test_an_old_model_is_imported_and_writes(server: Server, page: Page) -> None:
    visit(page, server.page("checkpoints"))
    page.get_by_role("button", name="Import").click()
    dialog = page.get_by_role("dialog")
    path = dialog.get_by_role("textbox", name="File or folder")
    path.fill(str(LEGACY / "none.pth"))
    path.press("Enter")
    dialog.get_by_role("button", name="Import").click()
    expect(dialog.get_by_role("alert")).to_contain_text("no such file")
    path.fill(str(LEGACY / "multihead_dense.pth"))
    path.press("Enter")
    dialog.get_by_role("textbox", name="Vocabulary").fill(str(LEGACY / "vocab.txt"))
    dialog.get_by_role("textbox", name="Vocabulary").press("Enter")
    expect(dialog.locator("code")).to_contain_text("--vocab")
    dialog.get_by_role("textbox", name="Name of the run").fill("old-one")
    dialog.get_by_role("textbox", name="Name of the run").press("Enter")
    expect(dialog.locator("code")).to_contain_text("old-one")
    dialog.get_by_role("button", name="Import").click()
    expect(dialog).to_have_count(0, timeout=120_000)
    assert [run.id for run in list_runs(server.runs)] == ["old-one"]
    idle(page)
    expect(page.get_by_text("Imported without optimizer state")).to_be_visible()

    page.get_by_role("button", name="Open in Playground").click()
    expect(page).to_have_title("Playground")
    idle(page)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".st-key-pg_card_out_0")).to_contain_text("tok/s", timeout=120_000)
