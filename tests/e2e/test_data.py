"""Data in a real browser: a text is uploaded, cut into tokens, looked at, and taken to Configure; a picture is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dgsgpt.data.dataset import list_datasets
from dgsgpt.data.uploads import list_uploads
from tests.e2e.conftest import Server, idle, visit

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
TEXT = "The whale, the *white* whale, <b>rose</b> and fell with the grey sea.\n" * 60


def upload(page: Page, file: Path) -> None:
    """Hand a file to the uploader."""
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(file)


def test_a_text_is_uploaded_prepared_looked_at_and_trained_on(server: Server, page: Page, tmp_path: Path) -> None:
    novel, picture = tmp_path / "whale.txt", tmp_path / "whale.png"
    novel.write_text(TEXT, encoding="utf-8")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    visit(page, server.page("data"))
    form = page.locator(".st-key-prepare")
    upload(page, picture)
    expect(form).to_contain_text("whale.png: ")
    expect(form).to_contain_text("UTF-8")
    assert list_uploads(server.datasets) == []
    idle(page)

    upload(page, novel)
    expect(form.locator("code")).to_contain_text("whale.txt")
    expect(form).not_to_contain_text("whale.png: ")
    idle(page)
    form.get_by_role("radio", name="Characters").click()
    expect(form.locator("code")).to_contain_text("--tokenizer char")
    idle(page)
    form.get_by_role("button", name="Prepare", exact=True).click()
    expect(page.locator(".st-key-prepared")).to_contain_text("whale.txt")
    idle(page)
    (dataset,) = list_datasets(server.datasets)
    assert (dataset.tokenizer_kind, dataset.vocab_size) == ("char", len(set(TEXT)))
    assert dataset.train_tokens + dataset.val_tokens == len(TEXT)
    tokens = page.locator("span[title^='token ']")
    assert "".join(tokens.all_text_contents()).startswith(TEXT.splitlines()[0] + "⏎\n")  # text, never markup
    expect(page.get_by_text(f"{dataset.vocab_size} tokens used")).to_be_visible()

    page.locator(".st-key-look_train button").click()
    expect(page).to_have_title("Configure")
    idle(page)
    expect(page.get_by_test_id("stBottom")).to_contain_text("whale")
    expect(page.get_by_text("Tokenizer ●")).to_be_visible()
    expect(page.locator(".st-key-summary")).to_contain_text("whale.txt")
