"""The dialog that writes a checkpoint as a folder for Hugging Face's `transformers` and what reads it."""

from __future__ import annotations

import shlex
from pathlib import Path

import streamlit as st

from dgsgpt.errors import DgsgptError
from dgsgpt.runs import RUN_ID
from dgsgpt.ui import atoms, dialogs, state
from dgsgpt.ui.checkpoint_list import Entry, told

DTYPES = {"float32": "float32, exact", "bfloat16": "bfloat16, half the size", "float16": "float16, half the size"}


def exports_folder() -> Path:
    """Where exports go: beside the runs."""
    return state.root().parent / "exports"


def folder_problem(name: str) -> str | None:
    """Why a folder cannot have this name; None when it can."""
    if not RUN_ID.fullmatch(name):
        return "A name is 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit."
    if (exports_folder() / name).exists():
        return f"{name} is there already; choose another name."
    return None


@st.dialog("Export for Hugging Face", width="medium", on_dismiss=dialogs.close)
def export_dialog(picked: list[Entry]) -> None:
    """Folder and number format, then the path and what to do with it."""
    if not picked:
        atoms.para("It is not there any more.")
        return
    entry = picked[0]
    if done := dialogs.kept().get("exported"):
        _written(Path(done))
        return
    atoms.note(entry.label)
    name = st.text_input("Folder", f"{entry.run.id}-{entry.step}"[:64], key=f"ck_export_name_{entry.ref}") or ""
    problem = folder_problem(name.strip())
    if problem:
        atoms.field_error(problem)
    atoms.note(f"in {exports_folder()}")
    dtype = st.selectbox("Numbers", list(DTYPES), format_func=DTYPES.__getitem__, key="ck_export_dtype") or "float32"
    target = exports_folder() / name.strip()
    st.code(
        shlex.join(["dgsgpt", "export", entry.ref, str(target), "--dtype", dtype]), language="bash", wrap_lines=True
    )
    if "export" in dialogs.problems():
        atoms.error_card(dialogs.problems()["export"], "Nothing was written.")
    if st.button("Export", type="primary", icon=":material/ios_share:", key="ck_export_go", disabled=bool(problem)):
        _export(entry, target, dtype)
        st.rerun(scope="app")


def _export(entry: Entry, target: Path, dtype: str) -> None:
    from dgsgpt.interop.hf_export import write_hf

    slot, bar = st.empty(), st.progress(0.0)

    def report(stage: str, share: float) -> None:
        with slot:
            atoms.note(stage)
        bar.progress(min(1.0, max(0.0, share)))

    dialogs.problem("export", None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        dialogs.kept()["exported"] = str(write_hf(entry.info.path, target, dtype=dtype, progress=report))
    except DgsgptError as error:
        dialogs.problem("export", told(error, entry))
    except OSError as error:
        dialogs.problem("export", f"{target.parent}: cannot be written: {error.strerror or error}")


def _written(path: Path) -> None:
    atoms.h(atoms.tag("✓ written", "good"))
    st.code(str(path), language=None, wrap_lines=True)
    atoms.para("Opened by transformers as it is, without code of ours:")
    st.code(
        f"from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(path)!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(path)!r})",
        language="python", wrap_lines=True,
    )  # fmt: skip
    atoms.para("Made a GGUF file for llama.cpp and Ollama:")
    convert = ["python", "convert_hf_to_gguf.py", str(path), "--outfile", f"{path.name}.gguf"]
    st.code(shlex.join(convert), language="bash", wrap_lines=True)
    if st.button("Done", key="ck_export_done"):
        dialogs.close()
        st.rerun()
