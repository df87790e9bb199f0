"""`muomni config`: the JSON Schema of recipes, a resolved recipe, the presets."""

import json
from pathlib import Path
from typing import Annotated

import typer

command = typer.Typer(
    help="Print the JSON Schema of recipes, a resolved recipe, or the table of presets.", no_args_is_help=True
)


@command.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value; may be repeated.")] = None,
) -> None:
    """Print a recipe as JSON, everything it extends and every default filled in."""
    from muomni.config import load_recipe

    print(load_recipe(recipe, changes or ()).model_dump_json(indent=2))
