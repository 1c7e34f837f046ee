"""The parts of the Data page: cards of texts, the form that prepares one, and what was chosen to look at."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from dgsgpt.config import DataConfig, build_config
from dgsgpt.data.corpora import find_corpus, list_corpora, read_text
from dgsgpt.data.dataset import Dataset
from dgsgpt.data.prepare import list_uploads, prepare, save_upload
from dgsgpt.errors import ConfigError, DataError
from dgsgpt.format import number, plural, size
from dgsgpt.profiles import choose_profile
from dgsgpt.ui import draft, form, state, text_view
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import field_error, h, head, para
from dgsgpt.ui.markup import markup
from dgsgpt.ui.text_view import TokenCounts
from dgsgpt.ui.theme import c

CHOSEN = "data_chosen"  # the text that is looked at: kept when the page is left
ERROR = "data_error"
MAX_UPLOAD_MB = 50
_KINDS = {"bpe": "BPE", "char": "Characters", "byte": "Bytes", "gpt2": "GPT-2", "hf": "Imported"}
_VOCABULARIES = [512, 1024, 2048, 4096, 8192, 16_384, 32_768]


def chosen() -> str:
    """The text that the page looks at now."""
    return str(st.session_state.get(CHOSEN) or list_corpora()[0].name)


def choose(corpus: str) -> None:
    """Look at another text."""
    st.session_state[CHOSEN] = corpus.strip()


def name_of(corpus: str) -> str:
    """A short name for a text: the embedded one's own, else the file's."""
    return corpus if find_corpus(corpus) else Path(corpus).name or corpus


# ---------------------------------------------------------------- cards
def text_cards(datasets: list[Dataset]) -> None:
    """A card for each embedded and each uploaded text."""
    now, uploads = chosen(), list_uploads()
    grid = st.grid(min(4, len(list_corpora()) + len(uploads)), min_column_width=260, gap="small")
    for corpus in list_corpora():
        facts = f"{number(corpus.characters)} characters · {size(corpus.bytes)}"
        with grid.cell():
            _text_card(corpus.name, corpus.title, facts, corpus.description, now, datasets)
    for path in uploads:
        with grid.cell():
            _text_card(str(path), path.name, size(path.stat().st_size), "Your own text, uploaded.", now, datasets)


def _text_card(corpus: str, title: str, facts: str, about: str, now: str, datasets: list[Dataset]) -> None:
    on = corpus == now
    prepared = sum(d.corpus == corpus for d in datasets)
    key = f"text_{name_of(corpus)}"
    with st.container(border=True, height="stretch", gap="xsmall", key=f"{'sel' if on else 'card'}_{key}"):
        head(title)
        note = f"{plural(prepared, 'dataset')} prepared" if prepared else "not prepared yet"
        h(
            markup(
                '<div style="font-size:13px;line-height:19px;min-height:76px;color:{}">{}<br>{}<br>'
                '<span style="color:{}">{}</span></div>',
                c("ink2"), facts, about, c("good" if prepared else "ink3"), f"✓ {note}" if prepared else note,
            )
        )  # fmt: skip
        with st.container(horizontal=True, gap="xsmall"):
            st.button("Look", key=f"look_{key}", disabled=on, on_click=choose, args=(corpus,))
            if st.button("Train on this", key=f"train_{key}", icon=":material/arrow_forward:"):
                train_on(corpus)


def train_on(corpus: str, dataset: Dataset | None = None) -> None:
    """Go to Configure with this text, and with the tokenizer of a prepared dataset."""
    bench = draft.workbench(choose_profile(state.machine()))
    overrides: dict[str, object] = {"data.corpus": corpus}
    if dataset is not None and "requested_tokenizer" not in dataset.meta:  # else it is that of a model
        overrides |= {
            "data.tokenizer.kind": dataset.tokenizer_kind,
            "data.val_fraction": dataset.meta["val_fraction"],
        }
        if dataset.tokenizer_kind == "bpe" and dataset.meta.get("requested_vocab_size"):
            overrides["data.tokenizer.vocab_size"] = dataset.meta["requested_vocab_size"]
    bench.change(form.apply(bench.draft, overrides))
    st.switch_page(page_file("configure"))


# ---------------------------------------------------------------- preparing
def prepare_form() -> None:
    """Text, tokenizer, vocabulary and validation share; then progress, and one line if it cannot be done."""
    head("Prepare", note="text to tokens")
    _text_field()
    with st.container(horizontal=True, gap="small"):
        kind = str(
            st.segmented_control(
                "Tokenizer", [k for k in _KINDS if k != "hf"], default="bpe", required=True,
                format_func=_KINDS.__getitem__, key="data_kind", persist_state="session",
                help=form.SETTINGS["data.tokenizer.kind"].help,
            )
        )  # fmt: skip
    with st.container(horizontal=True, gap="small", wrap=False):
        vocabulary = st.select_slider(
            "Vocabulary", _VOCABULARIES, 4096, format_func=number, key="data_vocab", disabled=kind != "bpe",
            help=form.SETTINGS["data.tokenizer.vocab_size"].help, persist_state="session",
        )  # fmt: skip
        share = st.number_input(
            "Validation share", 0.001, 0.5, 0.1, step=0.01, format="%g", key="data_share", persist_state="session",
            help=form.SETTINGS["data.val_fraction"].help,
        )  # fmt: skip
    given = {
        "corpus": chosen(), "tokenizer": {"kind": kind, "vocab_size": vocabulary}, "val_fraction": float(share or 0.1)
    }  # fmt: skip
    pressed = st.button("Prepare", type="primary", key="data_prepare", icon=":material/play_arrow:")
    place = st.empty()
    if pressed:
        st.session_state.pop(ERROR, None)
        try:
            data = build_config({"data": given}, "data").data
            dataset = _with_progress(data)
        except (ConfigError, DataError) as e:
            st.session_state[ERROR] = str(e)
        else:
            st.session_state["data_dataset"] = dataset.id
            st.rerun()
    if message := st.session_state.get(ERROR):
        with place:
            field_error(message)
    st.code(prepare_command(chosen(), kind, int(vocabulary), float(share or 0.1)), language="bash", wrap_lines=True)


def _text_field() -> None:
    known = [*(corpus.name for corpus in list_corpora()), *map(str, list_uploads())]
    now = chosen()
    if st.session_state.get("data_text") != now:
        st.session_state["data_text"] = now
    st.selectbox(
        "Text", known if now in known else [*known, now], key="data_text", format_func=name_of, accept_new_options=True,
        help="An embedded text, an upload, or the path of a UTF-8 text file on this machine: type it and press Enter.",
        on_change=_write_text,
    )  # fmt: skip
    st.file_uploader(
        "Your own text", key="data_upload", max_upload_size=MAX_UPLOAD_MB, on_change=_keep_upload,
        help=f"UTF-8 text, at most {MAX_UPLOAD_MB} MB; it stays on this machine.",
    )  # fmt: skip


def _write_text() -> None:
    st.session_state.pop(ERROR, None)
    choose(st.session_state["data_text"] or "")


def _keep_upload() -> None:
    file = st.session_state["data_upload"]
    if file is None:
        return
    try:
        if file.size > MAX_UPLOAD_MB << 20:  # the browser's own limit can be passed by
            raise DataError(f"{file.name}: {size(file.size)} is more than {MAX_UPLOAD_MB} MiB; give its path instead")
        path = save_upload(file.name, file.getvalue())
    except DataError as e:
        st.session_state[ERROR] = str(e)
        return
    st.session_state.pop(ERROR, None)
    choose(str(path))


def _with_progress(data: DataConfig) -> Dataset:
    progress = st.progress(0.0, "Reading the text")

    def report(stage: str, done: float) -> None:
        progress.progress(min(1.0, max(0.0, done)), stage.capitalize())

    try:
        return prepare(data, block_size=1, progress=report)
    finally:
        progress.empty()


def prepare_command(corpus: str, kind: str, vocabulary: int, share: float) -> str:
    """The command that prepares the same dataset."""
    size_option = ["--vocab-size", str(vocabulary)] if kind == "bpe" else []
    words = ["dgsgpt", "prepare", corpus, "--tokenizer", kind, *size_option, "--val-fraction", f"{share:g}"]
    return shlex.join(words)


# ---------------------------------------------------------------- looking
@st.cache_data(max_entries=16, show_spinner="Reading the text")
def _beginning(corpus: str, stamp: tuple[int, int] | None) -> tuple[str, int]:
    text = read_text(corpus)
    return text[: text_view.LOOK_CHARACTERS], len(text)


def beginning(corpus: str) -> tuple[str, int]:
    """The first part of a text, and how many characters it has.

    Raises:
        DataError: it cannot be read or used.
    """
    try:
        stat = Path(corpus).expanduser().stat()
    except (OSError, ValueError):  # embedded, or a path that the reader refuses with a reason
        return _beginning(corpus, None)
    return _beginning(corpus, (stat.st_mtime_ns, stat.st_size))


@st.cache_data(max_entries=16, show_spinner="Counting tokens")
def _counts(fingerprint: str, _dataset: Dataset) -> TokenCounts:
    return text_view.count_tokens(_dataset)


def look(datasets: list[Dataset]) -> None:
    """The chosen text and its tokens; one line when it cannot be read."""
    corpus = chosen()
    try:
        text, characters = beginning(corpus)
        own = [d for d in datasets if d.corpus == corpus]
        with st.grid(4, min_column_width=300, border=True) as grid:
            with grid.cell(column_span=1 if own else 2), st.container(gap="xsmall"):
                head("Text", note=f"first {number(len(text))} of {number(characters)} characters")
                h(text_view.text_html(text))
            if not own:
                with grid.cell(column_span=2), st.container(gap="xsmall"):
                    head("Tokens", note="not prepared yet")
                    para(f"Prepare {name_of(corpus)} to see how it is cut into tokens.")
                return
            with grid.cell(), st.container(gap="xsmall"):
                dataset = _tokens(own, text)
            with grid.cell(column_span=2), st.container(gap="xsmall"):
                _statistics(_counts(dataset.fingerprint, dataset))
    except DataError as e:
        field_error(str(e))


def _tokens(own: list[Dataset], text: str) -> Dataset:
    by_id = {d.id: d for d in own}
    if st.session_state.get("data_dataset") not in by_id:
        st.session_state["data_dataset"] = own[0].id
    if len(own) > 1:
        st.selectbox(
            "Tokenizer of", list(by_id), key="data_dataset_choice", label_visibility="collapsed",
            index=list(by_id).index(st.session_state["data_dataset"]),
            format_func=lambda i: f"{_KINDS[by_id[i].tokenizer_kind]} {number(by_id[i].vocab_size)}",
            on_change=lambda: st.session_state.update(data_dataset=st.session_state["data_dataset_choice"]),
        )  # fmt: skip
    dataset = by_id[st.session_state["data_dataset"]]
    parts = text_view.pieces(dataset.tokenizer, text)
    kind = f"{_KINDS[dataset.tokenizer_kind]} {number(dataset.vocab_size)}"
    head("Tokens", note=f"the same text in {number(len(parts))} tokens, {kind}")
    h(text_view.tokens_html(parts, 280 if len(own) > 1 else 330))
    if st.button("Train on this", key="look_train", icon=":material/arrow_forward:"):
        train_on(dataset.corpus, dataset)
    return dataset


def _statistics(counts: TokenCounts) -> None:
    showing: dict[str, Callable[[TokenCounts], object]] = {
        "Most frequent": text_view.frequent_html,
        "Length": text_view.lengths_html,
    }
    head("Token statistics", note=f"{number(counts.used)} tokens used, in {number(counts.counted)}")
    shown = st.segmented_control(
        "Statistics", list(showing), default="Most frequent", required=True, label_visibility="collapsed",
        key="data_statistics",
    )  # fmt: skip
    h(showing[str(shown)](counts))
