"""Scaling of the loss for float16, whose smallest numbers are larger than many gradients. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

START, LARGEST = 2.0**16, 2.0**24
PATIENCE = 2000  # finite steps before a larger scale is tried


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2), with the usual constants.

    Gradients of the scaled loss are divided by `scale` before they are used. A step whose gradients overflowed is
    left out and the scale halved; after 2,000 steps without it is doubled.
    """

    def __init__(self) -> None:
        self.scale = START
        self._good = 0

    @property
    def exhausted(self) -> bool:
        """Whether even the loss itself, unscaled, overflows: then it is not the scale's fault."""
        return self.scale < 1.0

    def update(self, finite: bool) -> None:
        """After a step: learn from whether its gradients were finite."""
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self._good == PATIENCE:
            self.scale, self._good = min(2 * self.scale, LARGEST), 0

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {"scale": self.scale, "good": self._good}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.scale, self._good = float(state["scale"]), int(state["good"])
