"""What a client may ask, and what is refused.

Fields are those of OpenAI's completions and chat completions. A field that would change the result and that we do not
have is refused unless it has the value that changes nothing; fields about accounts and bookkeeping are ignored. `top_k`
is an extension. A field that is null counts as not given.

Choice k of a prompt is written with the seed `seed + k`, so each is what that seed gives alone.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dgsgpt.api.problems import ApiError

MAX_NEW_TOKENS = 1_000_000
MAX_CHOICES = 64
_MAX_STOP = 256
_SHOWN = 80

# What they say does not touch the text that is written.
_IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
# Values that ask for nothing beyond plain writing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
_NEUTRAL_CHAT = {**_NEUTRAL, "logprobs": (False,), "top_logprobs": (0,)}

Prompt = str | list[int]


@dataclass(frozen=True)
class Order:
    """One request in our own terms: `n` texts for each prompt, by the same rules.

    `logprobs` is how many alternatives to tell for each token, None for no figures at all. `reply` drops the space
    that follows the template's colon.
    """

    model: str
    prompts: list[Prompt]
    n: int
    max_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    stop: tuple[str, ...]
    seed: int | None
    stream: bool
    include_usage: bool
    echo: bool = False
    logprobs: int | None = None
    reply: bool = False


# ---------------------------------------------------------------- fields
def _stops(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(t, str) and t for t in texts):
        raise ValueError("must be a text or up to 4 texts that are not empty")
    if max(map(len, texts), default=0) > _MAX_STOP:
        raise ValueError(f"must have at most {_MAX_STOP} characters a text")
    return texts


def _prompts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(map(_is_id, value)):
            return [value]
        if all(isinstance(item, list) and all(map(_is_id, item)) for item in value):
            return value
    raise ValueError("must be a text, a list of texts, a list of token ids, or a list of lists of token ids")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _content(value: Any) -> Any:
    """Text as such or in parts of type text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
        return "".join(part["text"] for part in value)
    raise ValueError("must be a text or a list of parts of type text; these models read nothing else")


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _StreamOptions(_Fields):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers, which a loopback address does not have


class _Request(_Fields):
    model: str
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=16)
    stop: Annotated[list[str], BeforeValidator(_stops)] = []
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    def common(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "n": self.n,
            "temperature": self.temperature,
            "top_p": self.top_p if self.top_p < 1 else None,
            "top_k": self.top_k,
            "seed": self.seed,
            "stream": self.stream,
            "include_usage": self.stream_options.include_usage,
        }


class _Completion(_Request):
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    max_tokens: int = Field(16, ge=0, le=MAX_NEW_TOKENS)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens=0 writes nothing; give 1 or more, or echo=true to judge the prompt")
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of={self.best_of} is not offered; leave it out and choose among n choices yourself")
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise ValueError(f"{len(self.prompt)} prompts of n={self.n} are over {MAX_CHOICES} texts; ask for fewer")
        return self


class _Message(_Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]
    name: str | None = None


class _Chat(_Request):
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int = Field(512, ge=1, le=MAX_NEW_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)


# ---------------------------------------------------------------- reading
def completion_order(body: Any) -> Order:
    """The order of a request for completions.

    Raises:
        ApiError: 400, a field is unknown, of another type, or out of bounds.
    """
    asked = _read(_Completion, body, _NEUTRAL)
    return Order(
        **asked.common(),
        prompts=asked.prompt,
        max_tokens=asked.max_tokens,
        stop=tuple(asked.stop),
        echo=asked.echo,
        logprobs=asked.logprobs,
    )


def chat_order(body: Any) -> Order:
    """The order of a request for chat completions: `chat_prompt` of its messages, up to the user's next turn.

    Raises:
        ApiError: 400, a field is unknown, of another type, or out of bounds.
    """
    asked = _read(_Chat, body, _NEUTRAL_CHAT)
    return Order(
        **asked.common(),
        prompts=[chat_prompt([(m.role, m.content) for m in asked.messages])],
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        stop=(*asked.stop, CHAT_STOP),
        reply=True,
    )


_SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
CHAT_STOP = "\nUser:"
CHAT_TEMPLATE = "a base model, not trained to converse: messages become lines `User: …`, then `Assistant:`"


def chat_prompt(messages: list[tuple[str, str]]) -> str:
    r"""Messages (role, text) as a text to continue: `System: …\nUser: …\nAssistant: …\nUser: …\nAssistant:`."""
    return "".join(f"{_SPEAKERS[role]}: {text}\n" for role, text in messages) + "Assistant:"


_AnyRequest = TypeVar("_AnyRequest", bound=_Request)


def _read(kind: type[_AnyRequest], body: Any, neutral: dict[str, tuple[Any, ...]]) -> _AnyRequest:
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a {type(body).__name__}; it must be a JSON object with the field model")
    given = {name: value for name, value in body.items() if value is not None and name not in _IGNORED}
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in kind.model_fields:
            fields[name] = value
        elif name not in neutral:
            near = difflib.get_close_matches(name, kind.model_fields, 1)
            hint = f"did you mean {near[0]}" if near else "leave it out"
            raise ApiError(400, f"{_short(name)} is not a field we know; {hint}", param=name[:_SHOWN], code="unknown")
        elif (isinstance(value, bool) and not isinstance(neutral[name][0], bool)) or value not in neutral[name]:
            message = f"{name}={_short(value)} is not offered; leave it out or give {neutral[name][0]!r}"
            raise ApiError(400, message, param=name, code="unsupported")
    try:
        return kind.model_validate(fields)
    except ValidationError as e:
        raise _told(e) from None


def _told(problem: ValidationError) -> ApiError:
    """The first problem in one line: field, value, rule."""
    first = problem.errors(include_url=False)[0]
    param = ".".join(map(str, first["loc"])) or None
    rule = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing; give it", param=param)
    if param is None:
        return ApiError(400, rule)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{_short(param)} is not a field we know; leave it out", param=param[:_SHOWN])
    return ApiError(400, f"{param}={_short(first['input'])} {rule}", param=param[:_SHOWN])


def _short(value: Any) -> str:
    text = repr(value[: 4 * _SHOWN] if isinstance(value, str | list) else value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


__all__ = [
    "CHAT_STOP",
    "CHAT_TEMPLATE",
    "MAX_CHOICES",
    "MAX_NEW_TOKENS",
    "Order",
    "Prompt",
    "chat_order",
    "chat_prompt",
    "completion_order",
]
