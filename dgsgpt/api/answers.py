"""What a client is sent: whole answers, and the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dgsgpt.api.engine import Served
from dgsgpt.api.logprobs import Scored
from dgsgpt.api.schema import CHAT_TEMPLATE, Order
from dgsgpt.api.writing import Event, Finished, Piece, Tally

Json = dict[str, Any]


def model_object(served: Served) -> Json:
    """A model as it stands in the list of models; `description` and `context_tokens` are ours."""
    return {
        "id": served.id,
        "object": "model",
        "created": served.created,
        "owned_by": "dgsgpt",
        "description": f"GPT trained with dgsgpt; chat: {CHAT_TEMPLATE}",
        "context_tokens": served.checkpoint.config.model.block_size,
    }


def server_event(value: Json | str) -> bytes:
    """One event of a stream; ASCII, so that no line separator of Unicode can cut it."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode("ascii")


class Answer(ABC):
    """One answer as it grows. `seed` and `cropped_tokens` of a choice are ours."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, order: Order, tally: Tally) -> None:
        self._order, self._tally = order, tally
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": order.model}
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[Scored]] = {}
        self._ends: dict[int, Finished] = {}

    # ------------------------------------------------------------ whole
    def add(self, event: Event) -> None:
        """Take up what was written."""
        if isinstance(event, Piece):
            self._texts.setdefault(event.index, []).append(event.text)
            self._tokens.setdefault(event.index, []).extend(event.tokens)
        elif isinstance(event, Finished):
            self._ends[event.index] = event

    def whole(self) -> Json:
        """The answer, once all choices have ended."""
        choices = [
            self.choice("".join(self._texts.get(index, [])), self._tokens.get(index, []), end)
            for index, end in sorted(self._ends.items())
        ]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self._usage()}

    # ------------------------------------------------------------ stream
    def chunks(self, event: Event) -> list[Json]:
        """What to send for an event."""
        if isinstance(event, Piece):
            return [self._chunk([choice]) for choice in self.pieces(event)]
        if isinstance(event, Finished):
            return [self._chunk([choice]) for choice in self.ends(event)]
        return []

    def last_chunks(self) -> list[Json]:
        """The count of tokens, if it was asked for."""
        return [{**self._chunk([]), "usage": self._usage()}] if self._order.include_usage else []

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        return {**chunk, "usage": None} if self._order.include_usage else chunk

    def _usage(self) -> Json:
        prompt, written = self._tally.prompt_tokens, self._tally.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    # ------------------------------------------------------------ what the two kinds differ in
    @abstractmethod
    def choice(self, text: str, tokens: list[Scored], end: Finished) -> Json:
        """A whole choice."""

    @abstractmethod
    def pieces(self, piece: Piece) -> list[Json]:
        """Choices of the chunks for a piece of text."""

    @abstractmethod
    def ends(self, end: Finished) -> list[Json]:
        """Choices of the chunks for the end of a choice."""


class CompletionAnswer(Answer):
    """Answer to `/v1/completions`."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def choice(self, text: str, tokens: list[Scored], end: Finished) -> Json:
        """Text, figures and end of a choice."""
        return {**self._text(end.index, text, tokens), **_ending(end)}

    def pieces(self, piece: Piece) -> list[Json]:
        """The text."""
        return [self._text(piece.index, piece.text, piece.tokens)]

    def ends(self, end: Finished) -> list[Json]:
        """An empty text with the reason."""
        return [{"index": end.index, "text": "", "logprobs": None, **_ending(end)}]

    def _text(self, index: int, text: str, tokens: list[Scored]) -> Json:
        figures = None
        if self._order.logprobs is not None:
            figures = {
                "tokens": [scored.token for scored in tokens],
                "token_logprobs": [scored.logprob for scored in tokens],
                "top_logprobs": [scored.top for scored in tokens],
                "text_offset": [scored.offset for scored in tokens],
            }
        return {"index": index, "text": text, "logprobs": figures, "finish_reason": None}


class ChatAnswer(Answer):
    """Answer to `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, order: Order, tally: Tally) -> None:
        super().__init__(order, tally)
        self._begun: set[int] = set()

    def choice(self, text: str, tokens: list[Scored], end: Finished) -> Json:
        """The assistant's message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": end.index, "message": message, "logprobs": None, **_ending(end)}

    def pieces(self, piece: Piece) -> list[Json]:
        """More of the message, after its role."""
        return [*self._role(piece.index), self._delta(piece.index, {"content": piece.text})]

    def ends(self, end: Finished) -> list[Json]:
        """No more of the message, and the reason."""
        return [*self._role(end.index), {**self._delta(end.index, {}), **_ending(end)}]

    def _role(self, index: int) -> list[Json]:
        if index in self._begun:
            return []
        self._begun.add(index)
        return [self._delta(index, {"role": "assistant", "content": ""})]

    @staticmethod
    def _delta(index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _ending(end: Finished) -> Json:
    return {"finish_reason": end.reason, "seed": end.seed, "cropped_tokens": end.cropped}


__all__ = ["Answer", "ChatAnswer", "CompletionAnswer", "Json", "model_object", "server_event"]
