"""Text out of tokens: whole characters only, and nothing that belongs to a stop text.

Bytes of a character that is still incomplete wait for the rest, and are dropped if the text ends first.
"""

from __future__ import annotations

import codecs


class TextBuffer:
    """Bytes in, whole characters out; holds back what may be the start of a stop text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, data: bytes) -> str:
        """Text that is now certain to belong to the output."""
        self._held += self._decoder.decode(data)
        ends = [place for place in map(self._held.find, self._stops) if place >= 0]
        if ends:
            self.stopped = True
            self._held = self._held[: min(ends)]
            return self.rest()
        return self._certain()

    def resume(self, data: bytes) -> str:
        """Take in what was written before and give what is certain of it; a stop text in it ends nothing any more."""
        before = self._decoder.decode(data)
        past = max((before.rfind(stop) + len(stop) for stop in self._stops if stop in before), default=0)
        self._held = before[past:]
        return before[:past] + self._certain()

    def _certain(self) -> str:
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready

    def rest(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def whole_text(data: bytes) -> str:
    """The characters that `data` has in full, as `TextBuffer` gives them."""
    buffer = TextBuffer(())
    return buffer.add(data) + buffer.rest()


__all__ = ["TextBuffer", "whole_text"]
