"""The Data page: texts, preparing one, a look at it, and what is said about bad ones."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from dgsgpt.config import DataConfig, TokenizerConfig
from dgsgpt.data.corpora import list_corpora, read_text
from dgsgpt.data.dataset import list_datasets
from dgsgpt.data.prepare import list_uploads, prepare
from dgsgpt.data.tokenizer import train_tokenizer
from dgsgpt.ui import corpus_view, form, text_view
from dgsgpt.ui.app import ROUTER, page_file


@pytest.fixture(autouse=True)
def _own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own: these tests count what is in it."""
    monkeypatch.setenv("DGSGPT_DATASETS", str(tmp_path / "datasets"))


def open_page() -> AppTest:
    at = AppTest.from_file(str(ROUTER), default_timeout=60).run()
    return settled(at.switch_page(str(page_file("data"))).run())


def settled(at: AppTest) -> AppTest:
    assert not at.exception, [e.message for e in at.exception]
    return at


def look_at(at: AppTest, corpus: str) -> AppTest:
    at.session_state[corpus_view.CHOSEN] = corpus
    return settled(at.run())


def shown(at: AppTest) -> str:
    return "\n".join(element.proto.body for element in at.get("html"))


def press_prepare(at: AppTest) -> AppTest:
    return settled(at.button(key="data_prepare").click().run())


# ---------------------------------------------------------------- texts
def test_the_embedded_texts_are_there_and_unprepared() -> None:
    at = open_page()
    for corpus in list_corpora():
        assert corpus.title in shown(at)
    assert "Nothing is prepared yet" in shown(at)
    assert "SENSE AND SENSIBILITY" in shown(at)
    settled(at.button(key="look_text_plays").click().run())
    assert at.button(key="look_text_plays").disabled
    assert "SENSE AND SENSIBILITY" not in shown(at)


def test_preparing_lists_the_dataset_and_shows_its_tokens(tiny_text: Path) -> None:
    at = look_at(open_page(), str(tiny_text))
    at.segmented_control(key="data_kind").set_value("char")
    press_prepare(at)
    (dataset,) = list_datasets()
    assert (dataset.tokenizer_kind, dataset.corpus) == ("char", str(tiny_text))
    page = shown(at)
    assert dataset.fingerprint[:8] in page
    text = read_text(str(tiny_text))[: text_view.LOOK_CHARACTERS]
    assert page.count("border-radius:2px") == len(text)  # one mark a token, one token a character
    settled(at.segmented_control(key="data_statistics").set_value("Length").run())
    assert "bytes" in shown(at)


def test_a_second_tokenizer_can_be_chosen_to_look_through(tiny_text: Path) -> None:
    for kind in ("byte", "char"):
        prepare(DataConfig(corpus=str(tiny_text), tokenizer=TokenizerConfig(kind=kind)), 8)  # type: ignore[arg-type]
    at = look_at(open_page(), str(tiny_text))
    choice = at.selectbox(key="data_dataset_choice")
    assert len(choice.options) == 2
    other = next(d.id for d in list_datasets() if d.tokenizer_kind == "byte")
    settled(choice.set_value(other).run())
    assert "Bytes 256" in shown(at)


def test_train_on_this_takes_text_and_tokenizer_to_configure(tiny_text: Path) -> None:
    prepare(DataConfig(corpus=str(tiny_text), tokenizer=TokenizerConfig(kind="byte"), val_fraction=0.2), 8)
    at = look_at(open_page(), str(tiny_text))
    settled(at.button(key="look_train").click().run())
    draft = at.session_state["configure"].draft
    assert form.get(draft, "data.corpus") == str(tiny_text)
    assert form.get(draft, "data.tokenizer.kind") == "byte"
    assert form.get(draft, "data.val_fraction") == 0.2
    assert any("New run" in e.proto.body for e in at.get("html"))


# ---------------------------------------------------------------- bad texts
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such text"),
        (b"", "the file is empty"),
        (b"  \n ", "the text is empty"),
        (b"\x89PNG\x00\x00" * 50, "is binary"),
        (b"ok \xff\xfe bad", "is not UTF-8"),
    ],
)
def test_an_unusable_text_is_one_line_and_the_page_stays(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    at = look_at(open_page(), str(path))
    assert words in shown(at)
    press_prepare(at)
    assert shown(at).count(words) == 2  # beside Prepare, and where the text would be
    assert list_datasets() == []
    look_at(at, "plays")
    assert "Nothing is prepared yet" in shown(at)


def test_a_directory_is_no_text(tmp_path: Path) -> None:
    assert "is a directory" in shown(look_at(open_page(), str(tmp_path)))


class Upload:
    """A file as the uploader gives it."""

    def __init__(self, name: str, content: bytes, size: int | None = None) -> None:
        self.name, self.content = name, content
        self.size = len(content) if size is None else size

    def getvalue(self) -> bytes:
        return self.content


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        (Upload("empty.txt", b""), "empty.txt"),
        (Upload("photo.jpg", b"\xff\xd8\x00\x01" * 40), "photo.jpg"),
        (Upload("huge.txt", b"x", size=51 << 20), "more than 50 MiB"),
    ],
)
def test_a_bad_upload_is_told_and_nothing_is_kept(upload: Upload, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session: dict[str, Any] = {"data_upload": upload}
    monkeypatch.setattr(corpus_view.st, "session_state", session)
    corpus_view._keep_upload()
    assert words in session[corpus_view.ERROR]
    assert list_uploads() == []
    assert corpus_view.CHOSEN not in session


def test_an_upload_is_kept_and_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    session: dict[str, Any] = {"data_upload": Upload("../my poem.txt", b"Fire & <ice>\n" * 20)}
    monkeypatch.setattr(corpus_view.st, "session_state", session)
    corpus_view._keep_upload()
    (path,) = list_uploads()
    assert session[corpus_view.CHOSEN] == str(path)


# ---------------------------------------------------------------- a look at tokens
@given(st.text(max_size=60))
def test_pieces_are_the_tokens_in_order(text: str) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), "abc")
    pieces = text_view.pieces(tokenizer, text)
    assert [token for token, _ in pieces] == list(text.encode())
    if text.isascii():
        assert "".join(piece for _, piece in pieces) == text


def test_bytes_of_a_cut_character_are_written_as_hex() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), "abc")
    assert [piece for _, piece in text_view.pieces(tokenizer, "é")] == ["\\xc3", "\\xa9"]


@given(st.text(max_size=40))
def test_text_can_never_become_markup(text: str) -> None:
    hostile = f"<script>{text}</script><img src=x onerror=alert(1)>"
    for html in (
        text_view.text_html(hostile),
        text_view.tokens_html([(1, hostile)]),
        text_view.frequent_html(text_view.TokenCounts(1, 1, ((hostile, 1),), ((1, 1),))),
    ):
        assert "<script" not in html
        assert "<img" not in html


def test_counts_agree_with_a_count_by_hand(tiny_text: Path) -> None:
    dataset = prepare(DataConfig(corpus=str(tiny_text), tokenizer=TokenizerConfig(kind="byte")), 8)
    counts = text_view.count_tokens(dataset)
    values, times = np.unique(np.array(dataset.tokens("train")), return_counts=True)
    assert counts.used == len(values)
    assert counts.counted == dataset.train_tokens == times.sum()
    assert counts.top[0] == (chr(values[times.argmax()]), times.max())
    assert counts.lengths == ((1, dataset.train_tokens),)


def test_the_command_repeats_the_form() -> None:
    command = corpus_view.prepare_command("my texts/a.txt", "bpe", 1024, 0.1)
    assert shlex.split(command)[2] == "my texts/a.txt"
    assert command.endswith("--tokenizer bpe --vocab-size 1024 --val-fraction 0.1")
    assert "--vocab-size" not in corpus_view.prepare_command("austen", "char", 1024, 0.1)
