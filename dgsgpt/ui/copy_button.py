"""A button that copies a text to the clipboard of whoever looks at the page."""

from __future__ import annotations

import streamlit as st

_HTML = """
<button type="button" class="copy"></button>
"""
_CSS = """
.copy { border: 0; padding: 4px 0; background: none; color: var(--st-text-color); font-family: var(--st-font);
  font-size: 12.25px; line-height: 20px; cursor: pointer; white-space: nowrap; border-radius: 4px; }
.copy:hover, .copy:focus-visible { color: var(--st-primary-color); }
.copy:disabled { opacity: .4; cursor: default; color: var(--st-text-color); }
"""
_JS = """
// A page that is not served by https or this machine has no clipboard: then an invisible field is copied from.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  field.style.position = "fixed";
  field.style.opacity = "0";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("not allowed");
}

export default function ({ parentElement, data }) {
  const button = parentElement.querySelector(".copy");
  if (button.dataset.busy !== "1") button.textContent = "Copy";
  button.disabled = !data.text;
  button.onclick = async () => {
    button.dataset.busy = "1";
    try { await copy(data.text); button.textContent = "Copied"; }
    catch { button.textContent = "Not allowed"; }
    setTimeout(() => { button.dataset.busy = ""; button.textContent = "Copy"; }, 1500);
  };
}
"""


def draw(key: str, text: str) -> None:
    """The button; disabled where there is nothing to copy."""
    mount = st.components.v2.component("dgsgpt_copy", html=_HTML, css=_CSS, js=_JS)
    mount(key=key, data={"text": text}, width="content")
