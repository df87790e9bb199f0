"""Turns validation errors into plain words: source, key, value, and what is allowed."""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]


class Layer(NamedTuple):
    """The values of one source, a file or `--set`, before they are merged."""

    origin: str
    values: dict[str, Any]


class Hint(NamedTuple):
    """Annotation of a field: the remedy to name when the field is missing."""

    text: str


# What pydantic's error types mean in a JSON file. `{...}` is filled from the error's context.
_ALLOWED = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text in quotes",
    "string_unicode": "must be UTF-8: rename the file or folder",
    "tuple_type": "must be a list [...]",
    "list_type": "must be a list [...]",
    "dict_type": "must be an object {{...}}",
    "model_type": "must be an object {{...}}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "union_tag_invalid": "must be {expected_tags}",
    "conflict": "{message}",
}


def in_words(error: ValidationError, model: type[BaseModel], origin: str, layers: tuple[Layer, ...]) -> str:
    """The message: one line for each problem.

    Args:
        error: of pydantic.
        model: the configuration class that was validated.
        origin: names the source of values that no layer gives.
        layers: see `muomni.config.parse`.
    """
    problems = error.errors()
    # A list whose only item is invalid is also reported as too short: that line is dropped.
    parents = {problem["loc"][:-1][:end] for problem in problems for end in range(len(problem["loc"]))}
    told = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in parents]
    return "\n".join(_line(problem, model, origin, layers) for problem in told)


def _line(problem: ErrorDetails, model: type[BaseModel], origin: str, layers: tuple[Layer, ...]) -> str:
    at: Location = problem["loc"]
    context = {key: f"{part:g}" if isinstance(part, float) else part for key, part in problem.get("ctx", {}).items()}
    if problem["type"] == "missing":
        missing, hint = _first_required(model, at)
        missing = _walk(model, missing)[1]
        return f"{_origin(missing, origin, layers)}: {_dotted(missing)} is missing{hint}"
    value = problem.get("input")
    if problem["type"] == "conflict":
        keys = str(context["key"]).split(".")
        at, value = (*at, *(int(key) if key.isdigit() else key for key in keys)), problem["ctx"]["value"]
        value = int(value) if isinstance(value, float) and value.is_integer() else value
    if problem["type"] == "union_tag_invalid":
        at, value = (*at, "kind"), context["tag"]
    if problem["type"] == "extra_forbidden":
        message = _unknown(model, at)
    elif problem["type"] in _ALLOWED:
        message = _ALLOWED[problem["type"]].format(**context)
    else:
        message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error" and (near := _nearest(value, _options(context["expected"]))):
        message += f"; did you mean {near!r}?"
    at = _walk(model, at)[1]
    key, source = f"{_dotted(at)} = " if at else "", _origin(at, origin, layers)
    if problem["type"] == "conflict":
        # Either value may be the wrong one, so the error names both sources.
        for other in re.findall(r"[a-z]+(?:[._][a-z]+)+", message):
            above = _origin((*problem["loc"], *other.split(".")), source, layers)
            message += f"; {other} comes from {above}" if above != source else ""
    return f"{source}: {key}{_short(value)}: {message}"


def _unknown(model: type[BaseModel], at: Location) -> str:
    """What to write in place of an unknown key: a similar key, the same key elsewhere, or the list of known keys."""
    key = str(at[-1])
    here, above = _walk(model, at[:-1])
    known = _names(here) if here else []
    if near := _nearest(key, known):
        return f"unknown key; did you mean {near}?"
    elsewhere = [_dotted(path) for path in _all_paths(model) if path[-1] == key and path != (*above, key)]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; known here: {', '.join(sorted(known))}"


def _first_required(model: type[BaseModel], at: Location) -> tuple[Location, str]:
    """The key to name when `at` is missing, with its hint: of an object, its first required or hinted field."""
    parent = _walk(model, at[:-1])[0]
    field = parent.model_fields.get(str(at[-1])) if parent else None
    if field is None:
        return at, ""
    below = field.annotation
    if isinstance(below, type) and issubclass(below, BaseModel):
        for name, inner in below.model_fields.items():
            if inner.is_required() or any(isinstance(mark, Hint) for mark in inner.metadata):
                return _first_required(model, (*at, name))
    return at, "".join(f": {mark.text}" for mark in field.metadata if isinstance(mark, Hint))


def _origin(at: Location, origin: str, layers: tuple[Layer, ...]) -> str:
    """The source of the value at `at`: the last layer that has it, or else an object around it."""
    for end in range(len(at), 0, -1):
        for layer in layers[::-1]:
            if _holds(layer.values, at[:end]):
                return layer.origin
    return origin


def _holds(values: Any, at: Location) -> bool:
    for part in at:
        inside = isinstance(values, dict) and part in values
        inside = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        if not inside:
            return False
        values = values[part]
    return True


def _dotted(at: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).removeprefix(".")


def _short(value: Any) -> str:
    """The value as JSON, at most 80 characters; what JSON has no form for by its repr."""
    text: str = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(word: Any, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(str(word), known, n=1)), None)


def _options(expected: str) -> list[str]:
    """The words of pydantic's `'a', 'b' or 'c'`."""
    return [part for part in expected.split("'") if part.strip(" ,") not in ("", "or")]


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _all_paths(model: type[BaseModel], above: Location = ()) -> Iterator[Location]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        below = _model_in(field.annotation)
        if below is not None:
            yield from _all_paths(below, (*above, name))


def _walk(model: type[BaseModel], at: Location) -> tuple[type[BaseModel] | None, Location]:
    """The configuration class of the object at `at` (None where there is none), and `at` as it is in a file.

    pydantic puts the tag of what was chosen among several classes behind the field's name.
    """
    current: type[BaseModel] | None = model
    annotation: Any = None
    path: list[int | str] = []
    for part in at:
        if not isinstance(part, int):  # the class of a list's item was found in the list's annotation
            chosen = _tagged(annotation, part)
            if chosen is not None:
                current, annotation = chosen, None
                continue
            field = current.model_fields.get(part) if current else None
            annotation = field.annotation if field else None
            current = _model_in(annotation)
        path.append(part)
    return current, tuple(path)


def _tagged(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The class that has this tag in a union."""
    arguments = get_args(annotation)
    if any(isinstance(mark, Tag) and mark.tag == tag for mark in arguments):
        return _model_in(arguments[0])
    return next((found for argument in arguments if (found := _tagged(argument, tag))), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _model_in(argument))), None)
