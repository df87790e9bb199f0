"""Where tables are printed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def wide_console() -> "Console":
    """A console that does not squeeze tables where the width is not known."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
