"""The dialog that brings other programs' models here: from a path on this machine, or uploaded."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import streamlit as st

from dgsgpt.errors import CheckpointError, DgsgptError
from dgsgpt.ui import atoms, dialogs, state
from dgsgpt.ui import checkpoint_table as table

if TYPE_CHECKING:
    from streamlit.runtime.uploaded_file_manager import UploadedFile

    from dgsgpt.interop.keep import Imported

FROM = {"path": "A path on this machine", "upload": "Upload"}
GIVEN = {"n_head": "Attention heads (n_head)", "moe_k": "Experts a token (moe_k)"}
TYPES = ["pth", "pt", "bin", "ckpt", "gguf", "safetensors", "json", "txt", "model", "jinja"]
_TORCH = (".pth", ".pt", ".ckpt", ".bin")
_WHAT = "a .pth file with its text, a .gguf file, or all files of a Hugging Face folder with its config.json"


# ---------------------------------------------------------------- what was uploaded
def source_among(names: Sequence[str]) -> tuple[str | None, str | None]:
    """The model among uploaded files, and the text of its vocabulary; a model of None is the whole folder.

    Raises:
        CheckpointError: there is no model among them, or more than one.
    """
    plain = [PurePosixPath(name.replace("\\", "/")).name for name in names]
    twice = {name for name in plain if plain.count(name) > 1}
    if twice or any(name in ("", ".", "..") for name in plain):
        raise CheckpointError(f"{min(twice, default='a file without a name')} was given twice; choose {_WHAT}")
    if "config.json" in plain:
        return None, None
    models = [name for name in plain if name.lower().endswith((".gguf", *_TORCH))]
    texts = [name for name in plain if name.lower().endswith(".txt")]
    if len(models) != 1 or len(texts) > 1:
        raise CheckpointError(f"{len(models)} models and {len(texts)} texts among the files; choose {_WHAT}")
    return models[0], texts[0] if texts else None


def keep_uploads(uploads: Sequence[UploadedFile], folder: Path) -> tuple[Path, Path | None]:
    """Write uploaded files into an empty folder; returns the model's path and its vocabulary's.

    Raises:
        CheckpointError: there is no model among them.
    """
    model, vocab = source_among([upload.name for upload in uploads])
    for upload in uploads:
        with (folder / PurePosixPath(upload.name.replace("\\", "/")).name).open("wb") as f:
            f.write(upload.getbuffer())
    return folder / model if model else folder, folder / vocab if vocab else None


def asked_for(message: str) -> list[str]:
    """The settings that a reader's error asks for, e.g. `n_head` in "… --set n_head=4"."""
    return [name for name in GIVEN if re.search(rf"\b{name}\b", message)]


# ---------------------------------------------------------------- the dialog
@st.dialog("Import a model", width="medium", on_dismiss=dialogs.close)
def import_dialog() -> None:
    """Where it is, what it shall be called, and what its file does not tell."""
    atoms.para(
        "A .pth of the original DGS-GPT, a Hugging Face folder (GPT-2, Llama, Mistral, Mixtral, Qwen), a .gguf, or a "
        "checkpoint folder of dgsgpt. Nothing in it is executed."
    )
    origin = st.segmented_control(
        "From", list(FROM), default="path", required=True, format_func=FROM.__getitem__, key="ck_import_from",
        label_visibility="collapsed",
    )  # fmt: skip
    uploads: list[UploadedFile] = []
    path = vocab = ""
    if origin == "upload":
        uploads = _upload_field()
    else:
        path = st.text_input("File or folder", key="ck_import_path", placeholder="/path/to/model").strip()
        vocab = st.text_input(
            "Vocabulary, for a .pth", key="ck_import_vocab", placeholder="/path/to/vocab.txt",
            help="The text that the old program was trained on: its characters are the model's vocabulary.",
        ).strip()  # fmt: skip
    name = st.text_input("Name of the run", key="ck_import_name", placeholder="after the file").strip()
    error = dialogs.problems().get("import", "")
    given = _given_fields(asked_for(error))
    st.code(command(path or "PATH", name or "NAME", vocab, given), language="bash", wrap_lines=True)
    if error:
        atoms.error_card(error, "Nothing was imported; the fields are as you left them.")
    ready = bool(uploads or path)
    help_ = None if ready else "Give a path or choose files first."
    if st.button(
        "Import", type="primary", icon=":material/download:", key="ck_import_go", disabled=not ready, help=help_
    ):
        _import(
            Path(path).expanduser() if path else None, uploads, name, Path(vocab).expanduser() if vocab else None, given
        )
        st.rerun(scope="app")


def _upload_field() -> list[UploadedFile]:
    limit = int(st.get_option("server.maxUploadSize"))
    uploads = st.file_uploader(
        "Files", TYPES, accept_multiple_files=True, key="ck_import_files",
        help="A .pth with its vocab.txt, all files of a Hugging Face folder, or one .gguf.",
    )  # fmt: skip
    atoms.note(
        f"Up to {limit} MiB a file: this is the server's limit. A larger one is given as a path, which copies nothing."
    )
    return list(uploads or [])


def _given_fields(wanted: Sequence[str]) -> dict[str, int]:
    """What a .pth without a config leaves open; unfolded when the reader has asked for it."""
    given: dict[str, int] = {}
    with st.expander("What a .pth without a config does not tell", expanded=bool(wanted)):
        with st.container(horizontal=True, gap="small"):
            for name, label in GIVEN.items():
                value = st.number_input(label, 1, 4096, None, key=f"ck_import_{name}", placeholder="not given")
                if value is not None:
                    given[name] = int(value)
        for name in wanted:
            if name not in given:
                atoms.field_error(f"{GIVEN[name]} is asked for.")
    return given


def command(source: str, name: str, vocab: str, given: Mapping[str, int]) -> str:
    """The command that does the same."""
    words = ["dgsgpt", "import", source, name]
    words += ["--vocab", vocab] if vocab else []
    for key, value in given.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def _import(
    path: Path | None, uploads: Sequence[UploadedFile], name: str, vocab: Path | None, given: Mapping[str, int]
) -> None:
    """Read the model and keep it; what is wrong stays in the dialog, what was made is picked."""
    from dgsgpt.interop.keep import import_model

    slot, bar = st.empty(), st.progress(0.0)

    def report(stage: str, share: float) -> None:
        with slot:
            atoms.note(stage)
        bar.progress(min(1.0, max(0.0, share)))

    dialogs.problem("import", None)
    with tempfile.TemporaryDirectory(prefix="dgsgpt-import-") as folder:
        try:
            if path is None:
                path, vocab = keep_uploads(uploads, Path(folder))
            done = import_model(path, state.root(), name or None, vocab=vocab, given=given, progress=report)
        except DgsgptError as error:
            dialogs.problem("import", str(error).replace(f"{folder}/", ""))
        else:
            _done(done)


def _done(done: Imported) -> None:
    step = done.checkpoint.name.removeprefix("step_").lstrip("0") or "0"
    ref = f"{done.run.id}@{step}"
    table.repick([ref])
    dialogs.close()
