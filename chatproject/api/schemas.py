"""What may be asked on `/v1`, and how a body of bytes becomes it.

Fields nobody knows are left out, as OpenAI's own service does; fields we know and cannot serve are refused by name,
because an answer that silently ignored them would look right and be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from chatproject.api.errors import ApiError
from chatproject.contract.messages import MAX_TOP_LOGPROBS, Role, Turn
from chatproject.generations.params import MAX_SEED, Params, is_storable, parse_params

MAX_MESSAGES: Final = 2_000

_Request = TypeVar("_Request", bound="_Sampling")
_ROLES: Final[dict[str, Role]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant"
}  # fmt: skip


def _text(value: Any) -> Any:
    """Join a list of text parts; refuse what is not text."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
            named = f"a part of type {str(kind)[:40]!r}" if kind else "a part without a type"
            raise ValueError(f"only text can be read here, not {named}")
        texts.append(part["text"])
    return "".join(texts)


def _storable(value: Any) -> Any:
    if isinstance(value, str) and not is_storable(value):
        raise ValueError("the text may not hold NUL or broken Unicode")
    return value


def _seed(value: Any) -> Any:
    # OpenAI takes any 64-bit number, ours are not negative; the same seed stays the same seed.
    return value & MAX_SEED if isinstance(value, int) and not isinstance(value, bool) and value < 0 else value


Text = Annotated[str, BeforeValidator(_storable), BeforeValidator(_text)]
Slug = Annotated[str, StringConstraints(min_length=1, max_length=200), BeforeValidator(_storable)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(_Schema):
    """What a stream carries beside the text."""

    include_usage: bool | None = None


class ChatMessage(_Schema):
    """One turn of the conversation as the client holds it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    def turn(self) -> Turn:
        """Return the turn as the engine knows it: a developer speaks as the system."""
        return Turn(role=_ROLES[self.role], text=self.content)


class _Sampling(_Schema):
    # Known to OpenAI's clients at this address only, and not served; the value says which setting asks for nothing.
    cannot: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}

    model: Slug | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: Annotated[int | None, BeforeValidator(_seed)] = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Any = None
    top_k: int | None = None  # this and the next two are ours
    min_p: float | None = None
    repetition_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def params(self) -> Params:
        """Return the sampling wishes. Raises Refused(bad_params) that names the field."""
        return parse_params(
            {
                "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self._most(), "seed": self.seed,
                "stop": self.stop, "presence_penalty": self.presence_penalty,
                "frequency_penalty": self.frequency_penalty, "logit_bias": self.logit_bias, "top_k": self.top_k,
                "min_p": self.min_p, "repetition_penalty": self.repetition_penalty, "logprobs": self._num_logprobs(),
            },
            has_logprobs=True,
        )  # fmt: skip

    def _num_logprobs(self) -> int | None:
        return None

    def _most(self) -> int | None:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Sampling):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None

    def _num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError("top_logprobs is only allowed when logprobs is true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _most(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def turns(self) -> tuple[Turn, ...]:
        """Return the conversation."""
        return tuple(message.turn() for message in self.messages)


class CompletionRequest(_Sampling):
    """The body of `/v1/completions`: the prompt is one user turn, because only chat models are served."""

    cannot: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"logprobs": lambda value: value is None}

    prompt: Annotated[str, BeforeValidator(_storable), BeforeValidator(lambda value: _only(value))]

    def turns(self) -> tuple[Turn, ...]:
        """Return the prompt as the one turn it is."""
        return (Turn(role="user", text=self.prompt),)


def parse(schema: type[_Request], body: bytes) -> _Request:
    """Read a request. Raises ApiError(400) that names the field."""
    fields = load_json(body)
    for name, is_neutral in {**_CANNOT, **schema.cannot}.items():
        if name in fields and not is_neutral(fields[name]):
            raise ApiError(f"{name} is not supported by this service. Leave it out.", param=name, code="unsupported")
    for index, message in enumerate(_list(fields.get("messages"))):
        _refuse_tools(index, message)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        _raise_named(error)


def load_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``. Raises ApiError(400); never anything else, whatever came."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ApiError("The body is not UTF-8.") from error
    except RecursionError as error:
        raise ApiError("The body is nested too deeply.") from error
    except ValueError as error:
        raise ApiError(f"The body is not JSON: {str(error)[:120]}.") from error
    if not isinstance(value, dict):
        raise ApiError("The body must be a JSON object.")
    return value


def unknown_field(name: str, known: Iterable[str]) -> ApiError:
    """Return the error for a field that a closed body does not have."""
    text = f"The field {name[:40]!a} is unknown. Known: {', '.join(known)}."
    return ApiError(text, code="bad_params", param=name)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _only(value: Any) -> Any:
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], str):
            raise ValueError("one text is taken at a time, not several and not token ids")
        return value[0]
    return value


def _empty(value: Any) -> bool:
    return value is None or value in ([], {}, "")


# Known to OpenAI's clients, and each would change the answer. The value says which setting asks for nothing.
_CANNOT: Final[Mapping[str, Callable[[Any], bool]]] = {
    "n": lambda value: value is None or (value == 1 and not isinstance(value, bool)),
    "best_of": lambda value: value in (None, 1),
    "tools": _empty,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "functions": _empty,
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": lambda value: value is None or (isinstance(value, dict) and value.get("type") == "text"),
    "audio": lambda value: value is None,
    "modalities": lambda value: value in (None, ["text"]),
    "web_search_options": lambda value: value is None,
    "echo": lambda value: value in (None, False),
    "suffix": _empty,
}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _refuse_tools(index: int, message: Any) -> None:
    if not isinstance(message, dict):
        return
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise ApiError(
            "Tools and functions are not supported by this service.", param=f"messages[{index}]", code="unsupported"
        )


def _raise_named(error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ""
    for step in first["loc"]:
        # Names of union members stand in the path too ("str", "list[str]"); the field before them says enough.
        if isinstance(step, str) and path and not step.isidentifier():
            break
        if step in ("str", "int", "float"):
            break
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    text = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    message = f"{path} is missing." if first["type"] == "missing" else f"{path}: {text}."
    raise ApiError(message, param=path or None) from error
