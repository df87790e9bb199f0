"""What is printed in a terminal: replies as they come, tables."""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from muomni.infer import Chunk, Timing


def say(stream: Iterable["Chunk"], hear: Callable[["Chunk"], None] | None = None) -> None:
    """Writes the pieces to standard output as they come, then a line end.

    A terminal gets no control characters: it would obey them.

    Args:
        hear: told each piece once its text is written.
    """
    terminal = sys.stdout.isatty()
    for piece in stream:
        sys.stdout.write(printable(piece.text) if terminal else piece.text)
        sys.stdout.flush()
        if hear is not None:
            hear(piece)
    print(flush=True)


def printable(text: str) -> str:
    """`text` without control characters other than line end and tab."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def speed(timing: "Timing") -> str:
    """For example `23 tokens, 145 tokens/s`."""
    tokens = "1 token" if timing.new_tokens == 1 else f"{timing.new_tokens} tokens"
    return f"{tokens}, {timing.tokens_per_s:.3g} tokens/s" if timing.tokens_per_s else tokens


def wide_console() -> "Console":
    """A console that does not squeeze tables where the width is not known."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
