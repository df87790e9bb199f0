"""Recipes from files: JSON with comments and trailing commas, `extends`, and `--set a.b=value`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import json5

from muomni.config.base import parse
from muomni.config.recipe import Recipe
from muomni.errors import ConfigError

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, or a bundled recipe by name, and applies `overrides`.

    Args:
        name_or_path: a path, or the name of a bundled recipe such as `text-tiny`.
        overrides: `a.b=value` each; the value is JSON where it parses as such, else a string.

    Raises:
        ConfigError: naming file, key, value and what is allowed.
    """
    path = find_recipe(name_or_path)
    values = _resolve(path, ())
    origin = str(path)
    for override in overrides:
        values = merge(values, _as_change(override))
        origin = f"{path} with --set"
    return parse(Recipe, values, origin)


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by path or by bundled name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    bundled = RECIPES / f"{name_or_path}.json"
    if bundled.is_file():
        return bundled
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.json")))
    raise ConfigError(f"no recipe {name_or_path!r}: neither a file nor one of the bundled recipes ({known})")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object with `//` and `/* */` comments and trailing commas.

    Raises:
        ConfigError: the file is missing, no UTF-8, does not parse, or is no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        value = json5.loads(text, allow_duplicate_keys=False)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}; a recipe is an object {{...}}")
    return value


def _resolve(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values laid over those of the recipe it extends."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: extends itself: {' -> '.join(p.name for p in (*seen, path))}")
    values = read_json(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends = {parent!r}: must be the path or name of a recipe")
    beside = path.parent / parent
    base = beside if beside.is_file() else find_recipe(parent)
    return merge(_resolve(base, (*seen, path)), values)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, object by object; lists and plain values are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    # Two keys that exclude each other: the later file's choice drops the earlier one's.
    for first, second in (("max_steps", "epochs"), ("preset", "init_from")):
        if first in merged and second in merged and (first in changes) != (second in changes):
            del merged[second if first in changes else first]
    return merged


def _as_change(override: str) -> dict[str, Any]:
    """`a.b=value` as `{"a": {"b": value}}`."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as key=value, for example optimizer.lr=3e-4")
    try:
        value = json5.loads(text)
    except ValueError:
        value = text
    change: Any = value
    for part in reversed(key.strip().split(".")):
        change = {part: change}
    return dict(change)
