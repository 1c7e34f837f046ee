"""Data: the texts, what they become as tokens, and a look at both."""

import streamlit as st

from dgsgpt.data.dataset import datasets_root, list_datasets
from dgsgpt.ui import corpus_view, text_view
from dgsgpt.ui.atoms import h, head, note, para, section, title_row

datasets = list_datasets()

title_row("Data", "texts, tokenizers, and what they make of each other")
corpus_view.text_cards(datasets)

grid = st.grid(3, min_column_width=430, border=True)
with grid.cell(), st.container(gap="xsmall", key="prepare"):
    corpus_view.prepare_form()
with grid.cell(column_span=2), st.container(gap="xsmall", key="prepared"):
    head("Prepared datasets", note="a text, cut by one tokenizer; made once and found again")
    if datasets:
        h(text_view.datasets_html(datasets, [corpus_view.name_of(d.corpus) for d in datasets]))
        note(f"kept in {datasets_root()}")
    else:
        para("Nothing is prepared yet. Training prepares its text by itself; preparing it here lets you look first.")

section("A look at the text", corpus_view.name_of(corpus_view.chosen()))
corpus_view.look(datasets)
