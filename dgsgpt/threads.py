"""How torch's CPU threads wait for each other.

By default an OpenMP thread that has nothing to do burns its core in a loop. When anything else wants a core (the
dashboard, the browser, a second run), the threads then wait for one that is not scheduled, and a step can take ten
times as long. Giving the core back after a short spin costs next to nothing on an idle machine.
"""

from __future__ import annotations

from collections.abc import MutableMapping

# GNU OpenMP (torch on Linux): turns of the waiting loop. Intel's and LLVM's (macOS, Windows): milliseconds.
_SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


def wait_politely(environment: MutableMapping[str, str]) -> None:
    """Set short spins in an environment, before torch is loaded in it; what the user has chosen stays."""
    if "OMP_WAIT_POLICY" in environment:
        return
    for name, value in _SHORT_SPIN.items():
        environment.setdefault(name, value)
