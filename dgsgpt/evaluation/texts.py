"""Which text a name stands for when a model is judged on it."""

from __future__ import annotations

from dgsgpt.data.corpora import read_text
from dgsgpt.data.prepare import list_datasets
from dgsgpt.data.text import split_text


def validation_text(corpus: str, val_fraction: float) -> str:
    """The end of a corpus that training on it with this `val_fraction` leaves out.

    `corpus` is an embedded corpus, the path of a text file or the id of a prepared dataset, whose own split is used.

    Raises:
        DataError: there is no such corpus, or it cannot be read.
    """
    for dataset in list_datasets():
        if dataset.id == corpus:
            return dataset.tokenizer.decode(dataset.tokens("val").tolist())
    return split_text(read_text(corpus), val_fraction)[1]
