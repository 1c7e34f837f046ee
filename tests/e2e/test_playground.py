"""The playground in a browser: text is never markup, tokens by mouse and keyboard, branches, stop, a closed tab."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.checkpoint_factory import save, save_script
from tests.e2e.conftest import Server, Watch, check_page, idle, open_page, visit
from tests.run_factory import config, make_run

pytestmark = pytest.mark.e2e
CARD = ".st-key-pg_card_out_0"


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and what was asked of it."""
    asked: list[str] = []

    class Notes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Notes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()


def choose(page: Page, prompt: str, tokens: int) -> None:
    """Set the prompt, the number of new tokens, and greedy sampling."""
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("spinbutton", name="New tokens").fill(str(tokens))
    page.get_by_role("combobox", name="Preset").click()
    page.get_by_role("option", name="Greedy").click()
    idle(page)


def generate(page: Page) -> Locator:
    """Write, and give the tokens once they are drawn."""
    page.get_by_role("button", name="Generate").click()
    tokens = page.locator(f"{CARD} .t")
    expect(tokens.first).to_be_visible()
    idle(page)
    return tokens


def test_tokens_are_text_and_can_be_looked_at_branched_and_stopped(
    server: Server, page: Page, browser: Browser, listener: tuple[str, list[str]]
) -> None:
    address, asked = listener
    script = (
        f"A cat. ![a](http://{address}/md) <img src=http://{address}/img> <script src=http://{address}/js></script>"
        f"\x1b]8;;http://{address}/ansi\x07\x1b[31mred 日本"
    )
    run = make_run(server.runs, "one", step=20)
    save_script(run, 10, script)
    visit(page, server.page("playground?checkpoint=one@10"))
    choose(page, "?", len(script.encode()))
    tokens = generate(page)
    text = page.locator(f"{CARD} .text")
    assert text.evaluate("box => box.textContent") == "?" + script
    expect(page.locator(f"{CARD} .text :is(img, script, a)")).to_have_count(0)
    assert tokens.count() == len(script)  # three bytes are one character

    look_and_branch(page, tokens, text, script)
    other_tab = stop_and_close(server, page, browser)
    assert asked == []
    check_page(*other_tab)
    other_tab[0].context.close()


def look_and_branch(page: Page, tokens: Locator, text: Locator, script: str) -> None:
    """By mouse and by keyboard: the list opens, closes, and a choice in it is written."""
    pop = page.get_by_role("dialog", name="Alternatives")
    tokens.nth(2).hover()
    expect(pop).to_contain_text("temperature 1, before filters")
    page.mouse.move(5, 5)
    expect(pop).to_have_count(0)

    tokens.first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(pop.get_by_role("button")).to_have_count(8)
    expect(pop.locator(".me")).to_have_text(re.compile(r"^c\d+\.\d %$"))
    page.keyboard.press("Escape")
    expect(pop).to_have_count(0)
    expect(tokens.nth(2)).to_be_focused()
    for key in ("Enter", "ArrowDown"):
        page.keyboard.press(key)
    chosen = pop.get_by_role("button").nth(1)
    expect(chosen).to_be_focused()
    token = chosen.get_attribute("data-token")
    assert token is not None
    page.keyboard.press("Enter")
    back = page.get_by_role("button", name="Back")
    expect(back).to_be_enabled()
    idle(page)
    written = text.evaluate("box => box.textContent")
    assert written.startswith("?A " + bytes([int(token)]).decode("utf-8", "replace") + script[3:40])
    back.click()
    expect(text).to_contain_text("A cat.")


def stop_and_close(server: Server, page: Page, browser: Browser) -> tuple[Page, Watch]:
    """Stop keeps the text; a tab that is closed while its model writes gives the model to the next one."""
    deep = config().model_copy(update={"model": config().model.model_copy(update={"n_layer": 80})})
    save(make_run(server.runs, "deep", step=20, config=deep), 10)
    visit(page, server.page("playground?checkpoint=deep@10"))
    choose(page, "?", 4096)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(CARD)).to_contain_text("writing")
    stop = page.locator(".st-key-pg_stop button")  # the page's own, not the one in streamlit's header
    stop.click()
    expect(page.locator(CARD)).to_contain_text("stopped")
    expect(stop).to_be_disabled()

    page.get_by_role("button", name="Generate").click()
    expect(page.locator(CARD)).to_contain_text("writing")
    other, watch = open_page(browser)
    visit(other, server.page("playground?checkpoint=deep@10"))
    choose(other, "?", 2)
    other.get_by_role("button", name="Generate").click()
    expect(other.locator(CARD)).to_contain_text("waiting for another generation")
    page.goto("about:blank")
    expect(other.locator(CARD)).to_contain_text("2\u00a0tokens")
    idle(other)
    return other, watch
