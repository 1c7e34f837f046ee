"""The pictures of the README: short real runs through the queue, then every page as a person would see it.

Only with DGSGPT_SCREENSHOTS=FOLDER (`make screenshots`), which is where the pictures go.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from dgsgpt import run_queue
from dgsgpt.config import load_config
from dgsgpt.profiles import configs_dir
from dgsgpt.runs import Run, create_run
from tests.e2e.conftest import Server, check_page, idle, open_page, visit
from tests.e2e.test_data import upload
from tests.e2e.test_evaluate import choose, evaluate
from tests.e2e.test_journey import flip, until

FOLDER = os.environ.get("DGSGPT_SCREENSHOTS", "")
pytestmark = [
    pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900),
    pytest.mark.skipif(not FOLDER, reason="only where pictures are wanted: DGSGPT_SCREENSHOTS=FOLDER"),
]  # fmt: skip
WIDTH, START_HEIGHT, MOST_BYTES = 1440, 1000, 300_000
SHORT = ["train.steps=150", "train.eval_every=25", "train.checkpoint_every=50", "train.sample_every=50"]
VARIANTS = {  # how each differs from the demo; the last one stays in the queue
    "austen-muon": ["train.sample_tokens=64"],
    "austen-adamw": ["train.optimizer=adamw", "train.lr=3e-3", "train.schedule.warmup_steps=20"],
    "austen-moe": [
        "model.moe={n_expert: 4, n_expert_per_token: 2, every: 2, balance: bias}",
        "model.window={size: 64}",
    ],
    "austen-wide": ["model.n_embd=192", "train.seed=2"],
}
TRAINED = tuple(VARIANTS)[:3]
NOVEL = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little.\n"


# The folders of whoever takes the pictures do not belong in them.
SHORTEN = """folders => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const folder of folders) texts.currentNode.nodeValue = texts.currentNode.nodeValue.replaceAll(folder, "");
  }
}"""


def picture(server: Server, page: Page, name: str, last: str, room: int = 14) -> None:
    """Keep the page down to the end of `last` as `name`.png, in 256 colours where all would be too large."""
    page.set_viewport_size({"width": WIDTH, "height": 2600})
    idle(page)
    page.wait_for_timeout(1000)
    box = page.locator(last).last.bounding_box()
    assert box is not None
    page.set_viewport_size({"width": WIDTH, "height": round(box["y"] + box["height"]) + room})
    page.mouse.move(0, 0)
    page.locator("[data-testid=stMain]").evaluate("main => main.scrollTo(0, 0)")
    idle(page)
    page.wait_for_timeout(2000)  # charts move to their new size
    idle(page)
    page.evaluate(SHORTEN, [f"{server.runs.parent}/", f"{configs_dir().parent}/"])
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = Path(FOLDER) / f"{name}.png"
    image.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    page.set_viewport_size({"width": WIDTH, "height": START_HEIGHT})


def queued(server: Server) -> dict[str, Run]:
    """The variants of the demo, one after another."""
    made = {}
    for name, changes in VARIANTS.items():
        config = load_config(configs_dir() / "demo.yaml", [*SHORT, *changes])
        made[name] = create_run(server.runs, config, name, ["dgsgpt", "train", "--queue"])
        run_queue.enqueue(made[name])
    return made


def test_every_page_has_its_picture(server: Server, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGSGPT_DATASETS", str(server.datasets))  # where the trainers put theirs
    page, watch = open_page(browser, WIDTH, START_HEIGHT)
    runs = queued(server)
    until(lambda: runs["austen-moe"].status().step >= 40, 600)
    run_queue.hold(server.runs)
    visit(page, server.page())
    expect(page.get_by_text("austen-wide").first).to_be_visible()
    picture(server, page, "home", ".st-key-home_recent")
    until(lambda: runs["austen-moe"].status().state == "finished", 600)
    assert {name for name in runs if runs[name].status().state == "finished"} == set(TRAINED)
    for take in (data, configure, train, all_runs, checkpoints, playground, judged):
        take(server, page)
    check_page(page, watch)
    page.context.close()


def prepare(page: Page, text: str, tokenizer: str) -> None:
    """Cut the chosen text into tokens."""
    expect(page.locator(".st-key-prepare code")).to_contain_text(text)
    page.locator(".st-key-prepare").get_by_role("radio", name=tokenizer).click()
    idle(page)
    page.get_by_role("button", name="Prepare", exact=True).click()
    expect(page.locator(".st-key-prepared")).to_contain_text(text)
    idle(page)


def data(server: Server, page: Page) -> None:
    """The text of the runs and its tokens, and an upload beside it."""
    novel = server.runs.parent / "my-novel.txt"
    novel.write_text(NOVEL * 4000, encoding="utf-8")
    visit(page, server.page("data"))
    upload(page, novel)
    prepare(page, "my-novel.txt", "Characters")
    page.locator(".st-key-look_text_plays button").click()
    idle(page)
    prepare(page, "plays", "Bytes")
    page.locator(".st-key-look_text_austen button").click()
    expect(page.locator("span[title^='token ']").first).to_be_visible()
    idle(page)
    picture(server, page, "data", ".st-key-look_train", 60)


def configure(server: Server, page: Page) -> None:
    """Two features switched on in the profile that suits the machine."""
    visit(page, server.page("configure"))
    flip(page, "Sliding window", on=True)
    flip(page, "Sparse mixture of experts", on=True)
    picture(server, page, "configure", ".st-key-fold_training", 70)


def train(server: Server, page: Page) -> None:
    """The mixture of experts, with the others laid over it."""
    visit(page, server.page("train?run=austen-moe&with=austen-muon,austen-adamw"))
    expect(page.locator(".st-key-train_card_loss")).to_be_visible()
    picture(server, page, "train", ".st-key-train_card_experts", 26)


def all_runs(server: Server, page: Page) -> None:
    """All runs, three of them compared."""
    visit(page, server.page("runs?run=austen-muon&run=austen-adamw&run=austen-moe"))
    expect(page.locator(".st-key-rn_chart .scatterlayer .trace")).to_have_count(3)
    picture(server, page, "runs", ".st-key-rn_card_settings")


def checkpoints(server: Server, page: Page) -> None:
    """The last checkpoints of two runs side by side."""
    visit(page, server.page("checkpoints?checkpoint=austen-moe@150&checkpoint=austen-muon@150"))
    expect(page.locator(".st-key-ck_card_curves .js-plotly-plot")).to_be_visible()
    page.get_by_role("button", name="Compare on the same text").click()
    expect(page.get_by_role("button", name="Compare on the same text")).to_be_enabled()
    idle(page)
    picture(server, page, "checkpoints", ".st-key-ck_card_config", 26)


def playground(server: Server, page: Page) -> None:
    """Two texts coloured by surprise, and where the heads looked."""
    visit(page, server.page("playground?checkpoint=austen-moe@150&checkpoint=austen-muon@150"))
    page.get_by_role("button", name="Generate").click()
    for card in (".st-key-pg_card_out_0", ".st-key-pg_card_out_1"):
        expect(page.locator(card)).to_contain_text("tok/s", timeout=120_000)
    expect(page.get_by_role("combobox", name="Layer")).to_be_visible()
    idle(page)
    picture(server, page, "playground", ".st-key-pg_card_attention", 26)


def judged(server: Server, page: Page) -> None:
    """What one checkpoint finds hard in a text that it has not seen."""
    for run in ("austen-muon", "austen-moe"):
        visit(page, server.page(f"evaluate?checkpoint={run}@150"))
        choose(page, "At most", "20k tokens")
        evaluate(page)
    picture(server, page, "evaluate", ".st-key-ev_card_kept")
