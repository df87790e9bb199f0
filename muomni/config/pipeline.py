"""Pipelines: stages one after another in one run folder, from a file like a recipe's.

A stage is a recipe (with `extends`, as any), or a command of `muomni` that prepares data. In the texts of a stage
`${NAME}` stands for the folder of an earlier stage, and `${run}` for the pipeline's own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from muomni.config.base import Frozen, parse
from muomni.config.loader import as_change, find_recipe, layers_of, merge, read_json
from muomni.config.recipe import Recipe
from muomni.errors import ConfigError

STORED = "pipeline.json"
# Commands that write data, or judge what came out.
COMMANDS = ("data", "eval", "quantize", "export")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PLACE = re.compile(r"\$\{([^}]*)\}")


class CommandSpec(Frozen):
    """A stage that is a command of `muomni`."""

    name: str
    """Of the stage, and of its folder."""
    command: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """For example `["data", "speech", "stories.jsonl", "--out", "${run}/pairs"]`."""


@dataclass(frozen=True)
class Stage:
    """One stage, with its places filled in.

    Attributes:
        name: unique in the pipeline.
        folder: where its run lies.
        work: the recipe, or the words of a command.
    """

    name: str
    folder: Path
    work: Recipe | tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """Stages in their order.

    Attributes:
        name: of the pipeline.
        run: its folder.
        stages: at least one.
        values: what the file holds, with the changes, to be stored in the run folder.
    """

    name: str
    run: Path
    stages: tuple[Stage, ...]
    values: Mapping[str, Any]


def is_pipeline(name_or_path: str) -> bool:
    """Whether a file, a bundled name or a run folder is a pipeline's."""
    if Path(name_or_path, STORED).is_file():
        return True
    if Path(name_or_path).is_dir():
        return False
    return "stages" in read_json(find_recipe(name_or_path))


def load_pipeline(name_or_path: str, overrides: Sequence[str] = (), run: Path | None = None) -> Pipeline:
    """Reads a pipeline, and checks all of its stages before the first one begins.

    Args:
        name_or_path: a file, a bundled name, or the run folder of a pipeline.
        overrides: `STAGE.KEY=VALUE` each.
        run: the folder; `runs/NAME`, or the folder that was given, when left out.

    Raises:
        ConfigError: naming file, stage, key, value and what is allowed.
    """
    stored = Path(name_or_path, STORED)
    path = stored if stored.is_file() else find_recipe(name_or_path)
    values = dict(read_json(path))
    name = values.get("name", path.stem)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: name = {name!r}: must be a text")
    if unknown := values.keys() - {"name", "stages", "$schema"}:
        raise ConfigError(f"{path}: {min(unknown)}: unknown key; a pipeline has name and stages")
    stages = values["stages"]
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{path}: stages: must be a list of objects, at least one")
    changes = _by_stage(overrides, [str(stage.get("name")) for stage in stages])
    folder = run or (Path(name_or_path) if stored.is_file() else Path("runs") / name)
    made: list[Stage] = []
    kept: list[dict[str, Any]] = []
    for number, stage in enumerate(stages, 1):
        where = f"{path}: stages[{number - 1}]"
        stage_name = _checked_name(stage.get("name"), where, made)
        places = {"run": str(folder), **{one.name: str(one.folder) for one in made}}
        stage = merge(stage, changes.get(stage_name, {}))
        kept.append(stage)
        work = _work(_filled(stage, places, where), where, path)
        made.append(Stage(stage_name, folder / f"{number:02d}-{stage_name}", work))
    return Pipeline(name, folder, tuple(made), {"name": name, "stages": kept})


def _checked_name(name: Any, where: str, before: Sequence[Stage]) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "run":
        raise ConfigError(f'{where}.name = {name!r}: must be a name of small letters, digits, "-" and "_", not "run"')
    if name in (stage.name for stage in before):
        raise ConfigError(f"{where}.name = {name!r}: an earlier stage has this name")
    return name


def _by_stage(overrides: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    for override in overrides:
        change = as_change(override)
        stage, values = next(iter(change.items()))
        if stage not in names or not isinstance(values, dict):
            raise ConfigError(f"--set {override}: begin with a stage, STAGE.KEY=VALUE; stages: {', '.join(names)}")
        changes[stage] = merge(changes.get(stage, {}), values)
    return changes


def _filled(value: Any, places: Mapping[str, str], where: str) -> Any:
    """The value with its places filled in."""
    if isinstance(value, dict):
        return {key: _filled(inner, places, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, places, where) for inner in value]
    if not isinstance(value, str):
        return value

    def place(found: re.Match[str]) -> str:
        if found[1] not in places:
            raise ConfigError(f"{where}: {found[0]}: no earlier stage has this name; there are {', '.join(places)}")
        return places[found[1]]

    return _PLACE.sub(place, value)


def _work(stage: dict[str, Any], where: str, path: Path) -> Recipe | tuple[str, ...]:
    if "command" in stage:
        words = parse(CommandSpec, stage, where).command
        if words[0] not in COMMANDS:
            raise ConfigError(f"{where}.command: {words[0]!r}: must be a command of {', '.join(COMMANDS)}")
        return words
    layers = layers_of(stage, where, path)
    values: dict[str, Any] = reduce(merge, (layer.values for layer in layers), {})
    return parse(Recipe, values, where, layers)
