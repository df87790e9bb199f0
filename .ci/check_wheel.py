"""check_wheel.py WHEEL ENVIRONMENT: the installed wheel is whole and works away from the source tree.

Imports each of the wheel's modules first in a process of its own, so that none works only because
another was imported before, and with the optional packages hidden, so that none needs them on import.
"""

import importlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

OPTIONAL = {
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "tensorboard",
    "pynvml",
    "pytest",
    "hypothesis",
    "jsonschema",
}


class Hidden:
    """Import hook: the optional packages are not there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"{name} is hidden: the wheel must import without it", name=name)


def count_failures(checks: Iterable[tuple[Callable[..., None], Sequence[str]]]) -> int:
    """Runs each check in a fork, which does not change what this process has imported; as many at once as cores."""
    running, failures = 0, 0
    for check, arguments in checks:
        if running == (os.cpu_count() or 1):
            failures += os.wait()[1] != 0
            running -= 1
        if os.fork() == 0:
            in_child(check, arguments)
        running += 1
    return failures + sum(os.wait()[1] != 0 for _ in range(running))


def in_child(check: Callable[..., None], arguments: Sequence[str]) -> NoReturn:
    status = 1
    try:
        check(*arguments)
        status = 0
    except BaseException as error:  # noqa: BLE001 - a forked child reports and ends, whatever happened
        print(f"{check.__name__} {arguments[0]}: {type(error).__name__}: {error}", flush=True)
    os._exit(status)


def import_module(name: str, environment: str) -> None:
    file = importlib.import_module(name).__file__ or ""
    if not Path(file).is_relative_to(environment):
        raise ImportError(f"came from {file}, not from the wheel")


def load_recipes(environment: str, *files: str) -> None:
    from muomni.config import bundled_recipes, load_recipe

    bundled = bundled_recipes()
    wanted = {Path(file).stem for file in files if not file.endswith(".schema.json")}
    if not wanted or set(bundled) != wanted:
        raise ImportError(f"the wheel has the recipes {wanted}, the package finds {set(bundled)}")
    for name in bundled:
        load_recipe(name, [f"data.{'speech.' if name.startswith('speak') else ''}train=book.txt"])


def main() -> int:
    wheel, environment = sys.argv[1:]
    files = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("muomni/")]
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files if name.endswith(".py")
    ]
    recipes = [name for name in files if name.startswith("muomni/recipes/") and name.endswith(".json")]
    if "muomni/py.typed" not in files or "muomni/recipes/recipe.schema.json" not in files:
        print("py.typed or the recipes' schema is missing in the wheel")
        return 1
    import torch  # noqa: F401 - the slow part; every fork below has it already

    sys.meta_path.insert(0, Hidden())  # type: ignore[arg-type]
    checks: list[tuple[Callable[..., None], Sequence[str]]] = [(import_module, (name, environment)) for name in modules]
    failures = count_failures([*checks, (load_recipes, (environment, *recipes))])
    print(f"{len(modules)} modules imported one by one, {len(recipes)} files of recipes, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
