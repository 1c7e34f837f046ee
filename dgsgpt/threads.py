"""How torch's CPU threads wait for each other when they share the machine.

By default an OpenMP thread that has nothing to do burns its core in a loop. When something else wants the core (the
dashboard, the browser, a second run), the others then wait for a partner that is not scheduled. Measured on two cores
with the demo: beside a dashboard that is watched, short spins take 21 to 23 s instead of 26 s for 150 steps; with one
core kept busy, 0.2 to 0.3 s a step instead of 0.25 to 0.45 s; on an otherwise idle machine they cost about 15 %. So
they are for runs that the dashboard or `--detach` starts, not for `dgsgpt train` in the foreground.
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
