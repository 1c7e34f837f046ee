"""Keeps the collector of reference cycles from walking through all imported modules after every run of a page.

Streamlit collects after each run, each refresh of a fragment included, and most of what the collector looks at then is
code that lives as long as the server: 80 ms of a core with the dashboard's modules, 145 ms with torch.
"""

from __future__ import annotations

import gc
import sys

_modules = 0


def settle() -> bool:
    """After new modules were imported, set all that is there aside for good; True when that was done now."""
    global _modules
    if len(sys.modules) == _modules:
        return False
    _modules = len(sys.modules)
    gc.collect()  # cycles that are garbage already would never be freed
    gc.freeze()
    return True
