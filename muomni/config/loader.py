"""Recipes from files: JSON with comments and trailing commas, `extends`, and `--set a.b=value` or `--set @FILE`."""

import difflib
import json
import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from muomni.config.base import parse
from muomni.config.recipe import Recipe
from muomni.config.validation_errors import Layer
from muomni.errors import ConfigError
from muomni.files import exists

RECIPES = Path(__file__).parent.parent / "recipes"
_MAX_BYTES = 256 * 1024
# The default folder of runs.
RUNS = Path("runs")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, or a bundled recipe by name, and applies `overrides`.

    Args:
        name_or_path: a path, or the name of a bundled recipe such as `text-tiny`.
        overrides: `a.b=value` each; the value is JSON where it parses as such, else a string. `@FILE` is all of a
            file's keys, such as those of a `tuned.json`.

    Raises:
        ConfigError: naming file, key, value and what is allowed.
    """
    path = find_recipe(name_or_path)
    layers = (*_read_with_parents(path, ()), *(layer for override in overrides for layer in _override(override)))
    values: dict[str, Any] = reduce(merge, (layer.values for layer in layers), {})
    return parse(Recipe, values, str(path), layers)


def find_run(recipe: str, overrides: Sequence[str], run: Path | None) -> tuple[Recipe, Path]:
    """The recipe and the run folder.

    Args:
        recipe: a file, a bundled recipe's name or a run folder.
        overrides: as of `load_recipe`.
        run: the folder, if it was named.

    Raises:
        ConfigError: as `load_recipe`.
    """
    stored = Path(recipe) / "recipe.json"
    if stored.is_file():
        return load_recipe(str(stored), overrides), run or Path(recipe)
    stage = load_recipe(recipe, overrides)
    return stage, run or RUNS / stage.name


def bundled_recipes() -> dict[str, Path]:
    """Name and file of the recipes that come with the package."""
    files = (file for file in RECIPES.glob("*.json") if not file.name.endswith(".schema.json"))
    return {file.stem: file for file in sorted(files)}


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by path or by bundled name."""
    bundled = bundled_recipes()
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name too long for the file system, for example
        raise ConfigError(f"{name_or_path[:80]}: cannot be read: {error.strerror}") from None
    if name_or_path in bundled:
        return bundled[name_or_path]
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; a recipe is a JSON file")
    near = difflib.get_close_matches(name_or_path, bundled, n=1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(bundled)}"
    raise ConfigError(f"no recipe {name_or_path!r}: neither a file nor a bundled recipe; {advice}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object with `//` and `/* */` comments and trailing commas.

    Raises:
        ConfigError: the file is missing, larger than 256 KiB, not UTF-8, does not parse, repeats a
            key, or is not an object; a syntax error says line and column.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {_MAX_BYTES // 1024} KiB: not a configuration")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        value = _loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not valid JSON: brackets nested too deep") from None
    except ValueError as error:
        raise ConfigError(_syntax_error(path, text, str(error))) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}, not an object {{...}}")
    return value


class _NotUnicodeError(ValueError):
    """Text that UTF-8 cannot encode, such as the name of a file in another encoding."""


def _loads(text: str) -> Any:
    try:
        # json5 is written in Python: for plain JSON, as in every model's folder, it takes a hundred times as long.
        return _with_pairs_joined(json.loads(text, object_pairs_hook=_without_repeats))
    except ValueError:
        import json5

        return _with_pairs_joined(json5.loads(text, allow_duplicate_keys=False))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _with_pairs_joined(value: Any) -> Any:
    """Joins surrogate pairs, which JSON writes for characters such as emoji; json5 leaves both halves."""
    if isinstance(value, str) and not value.isascii():
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _NotUnicodeError(f"half a character in {value!r}") from None
    if isinstance(value, list):
        return [_with_pairs_joined(item) for item in value]
    if isinstance(value, dict):
        return {_with_pairs_joined(key): _with_pairs_joined(item) for key, item in value.items()}
    return value


def _syntax_error(path: Path, text: str, message: str) -> str:
    """`path:line:column: ...` from json5's words; it gives no place for a repeated key."""
    if not text.strip():
        return f"{path}: is empty; write at least {{}}"
    place = re.fullmatch(r"<string>:(\d+) (.*) at column (\d+)", message, flags=re.DOTALL)
    if place:
        message = place[2].replace("\n", "\\n")
    where = f"{path}:{place[1]}:{place[3]}" if place else str(path)
    return f"{where}: not valid JSON: {message[0].lower()}{message[1:]}"


def _read_with_parents(path: Path, below: tuple[Path, ...]) -> tuple[Layer, ...]:
    """The file's values, preceded by those of the recipes it extends, the outermost first."""
    if path.resolve() in (file.resolve() for file in below):
        raise ConfigError(f"{path}: extends itself: {' -> '.join(str(file) for file in (*below, path))}")
    return layers_of(read_json(path), str(path), path, below)


def layers_of(values: dict[str, Any], origin: str, path: Path, below: tuple[Path, ...] = ()) -> tuple[Layer, ...]:
    """The values, preceded by those of the recipes that they extend, the outermost first.

    Args:
        values: of a recipe.
        origin: names them in errors.
        path: of their file; `extends` is relative to its folder.
        below: files that extend this one.

    Raises:
        ConfigError: what they extend is missing, or extends itself.
    """
    values = dict(values)
    parent = values.pop("extends", None)
    own = Layer(origin, values)
    if parent is None:
        return (own,)
    if not isinstance(parent, str):
        raise ConfigError(f"{origin}: extends = {parent!r}: must be the path or name of a recipe, in quotes")
    beside = path.parent / parent
    try:
        base = beside if exists(beside) and beside.is_file() else find_recipe(parent)
    except ConfigError as error:
        raise ConfigError(f"{origin}: extends: {error}") from None
    return (*_read_with_parents(base, (*below, path)), own)


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


def _override(text: str) -> tuple[Layer, ...]:
    """The layers of one `--set`."""
    if text.startswith("@"):
        return _read_with_parents(Path(text[1:]), ())
    return (Layer("--set", as_change(text)),)


def as_change(override: str) -> dict[str, Any]:
    """Parses `a.b=value` into `{"a": {"b": value}}`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: write it as key=value, for example optimizer.lr=3e-4")
    try:
        value = _loads(text)
    except _NotUnicodeError:
        raise ConfigError(f"--set: {key} = {text}: must be UTF-8: rename the file or folder") from None
    except (ValueError, RecursionError):
        value = text
    change: Any = value
    for part in reversed(parts):
        change = {part: change}
    return dict(change)
