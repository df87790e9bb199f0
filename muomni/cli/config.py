"""`muomni config`: the JSON Schema of recipes, a resolved recipe, the presets."""

import json
from pathlib import Path
from typing import Annotated

import typer

from muomni.cli.common import options
from muomni.cli.common.output import print_json, print_table, writing

command = typer.Typer(
    help="Recipes and presets: JSON Schema, a recipe with every default filled in, sizes.\n\n"
    "Example: muomni config show text-tiny --set data.train=book.txt",
    no_args_is_help=True,
)


@command.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Print the JSON Schema of recipes.

    Editors use the copy beside the bundled recipes when a recipe begins with
    "$schema": "PATH/recipe.schema.json".
    """
    from muomni.config import recipe_schema

    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    with writing(out):
        out.write_text(text, encoding="utf-8")


@command.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    changes: options.Set = None,
) -> None:
    """Print a recipe as JSON, with what it extends and every default filled in; what is off is left out.

    Example: muomni config show text-tiny --set data.train=book.txt
    """
    from muomni.config import load_recipe

    print(load_recipe(recipe, changes or ()).model_dump_json(indent=2, exclude={"schema_"}, exclude_none=True))


@command.command()
def presets(
    as_json: options.Json = False,
) -> None:
    """Print the model presets and their sizes."""
    from muomni.config import PRESET_NAMES, preset

    rows = [
        {
            "preset": name,
            "parameters": thinker.num_parameters(),
            "layers": thinker.num_hidden_layers,
            "width": thinker.hidden_size,
            "heads": thinker.num_attention_heads,
            "kv_heads": thinker.num_key_value_heads,
            "context": thinker.max_position_embeddings,
            "vocabulary": thinker.vocab_size,
        }
        for name in PRESET_NAMES
        for thinker in (preset(name).thinker,)
    ]
    if as_json:
        print_json(rows, indent=2)
    else:
        cells = [[f"{value:,}" if isinstance(value, int) else value for value in row.values()] for row in rows]
        print_table([heading.replace("_", " ") for heading in rows[0]], cells, left=("preset",))
