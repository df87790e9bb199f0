"""Tools of a chat: what a request says of them, what a reply has to follow, and the calls in a reply's text.

The model writes a call as its template shows it: `<tool_call>`, a line of JSON with `name` and `arguments`,
`</tool_call>`.
"""

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from muomni.infer.structured import SPACE
from muomni.serve.errors import ApiError

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
MOST_TOOLS = 128
# Calls of one reply; what follows stays text.
_MOST_CALLS = 64
# Of the arguments of a call.
_MOST_LEVELS = 64
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(BaseModel):
    """What may be called.

    Attributes:
        name: of 1 to 64 letters, digits, _ and -.
        description: for the model.
        parameters: JSON schema of the arguments, an object.
        strict: the arguments of a call follow the schema.
    """

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function, the only kind of tool there is."""

    type: Literal["function"]
    function: Function


class ChosenFunction(BaseModel):
    """The name of a function."""

    name: _Name


class ToolChoice(BaseModel):
    """The function that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


class ToolRequest(BaseModel):
    """The part of a request that is about tools.

    Attributes:
        tools: that may be called.
        tool_choice: none, auto (the default), required, or the one function to call.
        parallel_tool_calls: False allows one call in a reply.
    """

    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        chosen = self.tool_choice
        if isinstance(chosen, ToolChoice) and chosen.function.name not in names:
            raise ValueError(f"tool_choice: there is no tool {chosen.function.name!r}")
        if chosen == "required" and not names:
            raise ValueError("tool_choice: required needs tools")
        return self

    @property
    def offered(self) -> list[Function]:
        """What the model may call."""
        return [] if self.tool_choice == "none" else [tool.function for tool in self.tools or ()]

    @property
    def call_grammar(self) -> str | None:
        """What a reply has to follow, in llguidance's form of Lark; None where any text may come."""
        functions, several = self.offered, self.parallel_tool_calls is not False
        chosen = self.tool_choice
        if isinstance(chosen, ToolChoice):
            functions, several = [each for each in functions if each.name == chosen.function.name], False
        if not functions:
            return None
        if chosen == "required" or isinstance(chosen, ToolChoice):
            start = [f'start: CALL body ("\\n" CALL body){{0,{_MOST_CALLS - 1}}}' if several else "start: CALL body"]
            return "\n".join([*start, f'CALL: "{_OPEN}"', *_bodies(functions, forced=True)])
        if several and not any(each.strict for each in functions):
            return None
        start = ["start: (begin body)* TEXT" if several else "start: TEXT | begin body"]
        start += [f'begin[lazy]: TEXT "{_OPEN}"', r"TEXT: /(.|\n)*/"]
        return "\n".join(["%llguidance {}", *start, *_bodies(functions, forced=False)])

    def parser(self) -> "CallParser":
        """Finds the calls of one reply."""
        return CallParser({each.name for each in self.offered})


def _bodies(functions: Sequence[Function], *, forced: bool) -> Iterator[str]:
    yield "body: " + " | ".join(f"body_{number}" for number in range(len(functions)))
    for number, function in enumerate(functions):
        schema = function.parameters if forced or function.strict else None
        schema = {"type": "object", **(schema or {}), "x-guidance": {"whitespace_pattern": SPACE}}
        head = json.dumps(f'\n{{"name": "{function.name}", "arguments": ')
        tail = json.dumps("}\n" + _CLOSE)
        yield f"body_{number}: {head} %json {json.dumps(schema)} {tail}"


def template_tools(functions: Sequence[Function]) -> list[dict[str, Any]]:
    """Tools as templates take them."""
    return [
        {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
        for function in functions
    ]


def template_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The `tool_calls` of an earlier message as templates take them: with arguments as an object.

    Raises:
        ApiError: a call has no name, or arguments that are no text.
    """
    result = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        text = function.get("arguments", "") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not isinstance(text, str):
            message = f"{where}.tool_calls: each needs function.name and function.arguments, both texts"
            raise ApiError(400, message, param=f"{where}.tool_calls", code="invalid_value")
        try:
            arguments: Any = json.loads(text or "{}")
        except (ValueError, RecursionError):
            arguments = text
        if _is_deep(arguments):
            message = f"{where}.tool_calls: arguments may be nested {_MOST_LEVELS} levels deep"
            raise ApiError(400, message, param=f"{where}.tool_calls", code="invalid_value")
        result.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return result


class CallParser:
    """Finds the calls in a reply's text, however it is cut into pieces; what is no whole call stays text.

    Args:
        names: of the functions there are.

    Attributes:
        calls: found so far, in OpenAI's form.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.calls: list[dict[str, Any]] = []
        self._names = names
        self._held = ""
        self._space = ""  # before a call, if it becomes one
        self._inside = False
        self._searched = 0  # of what is held, in a call: its end is not before

    def push(self, text: str) -> Iterator[str | dict[str, Any]]:
        """Takes a piece in: gives the text and the calls that are certain now."""
        self._held += text
        while step := (self._call if self._inside else self._text)():
            yield from step

    def finish(self) -> str:
        """What is left at the end: text, as no call can be completed."""
        held, self._held = self._held, ""
        if self._inside:
            return self._space + _OPEN + held
        return "" if self.calls and not held.strip() else held

    def _text(self) -> list[str | dict[str, Any]]:
        """Text up to the next call; white space before a call is none of it."""
        before, mark, behind = self._held.partition(_OPEN)
        if mark and len(self.calls) < _MOST_CALLS:
            text = before.rstrip()
            self._held, self._inside, self._searched, self._space = behind, True, 0, before[len(text) :]
            return [text]
        length = len(self._held)
        most = min(len(_OPEN) - 1, length)
        keep = next(n for n in range(most, -1, -1) if _OPEN.startswith(self._held[length - n :]))
        sure = self._held[: length - keep].rstrip()
        self._held = self._held[len(sure) :]
        return [sure] if sure else []

    def _call(self) -> list[str | dict[str, Any]]:
        end = self._held.find(_CLOSE, self._searched)
        if end < 0:
            self._searched = max(self._searched, len(self._held) - len(_CLOSE) + 1)
            return []
        raw = self._held[:end]
        try:
            value: Any = json.loads(raw, strict=False, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            if "Unterminated string" in str(error):  # the mark is part of an argument
                self._searched = end + len(_CLOSE)
                return self._call()
            value = None
        self._held, self._inside = self._held[end + len(_CLOSE) :], False
        call = self._made(value)
        if call is None:
            return [f"{self._space}{_OPEN}{raw}{_CLOSE}"]
        self.calls.append(call)
        return [call]

    def _made(self, value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return None
        name, arguments = value.get("name"), value.get("arguments", {})
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        if _is_deep(arguments):
            return None
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


def _is_deep(value: Any, levels: int = _MOST_LEVELS) -> bool:
    """Whether it is nested deeper than may be: everything that reads it again would do so recursively."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(each, levels - 1) for each in inner)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
