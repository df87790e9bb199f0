"""`muomni config`: the JSON Schema of recipes, a resolved recipe, the presets."""

import json
from pathlib import Path
from typing import Annotated

import typer

from muomni.errors import UserError

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
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


@command.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value; may be repeated."),
    ] = None,
) -> None:
    """Print a recipe as JSON, with what it extends and every default filled in; what is off is left out.

    Example: muomni config show text-tiny --set data.train=book.txt
    """
    from muomni.config import load_recipe

    print(load_recipe(recipe, changes or ()).model_dump_json(indent=2, exclude={"schema_"}, exclude_none=True))


@command.command()
def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        print(json.dumps(rows, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        *(heading.replace("_", " ") for heading in rows[0]), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
    Console().print(table)
