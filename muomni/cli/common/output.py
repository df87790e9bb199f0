"""What commands print and write: replies as they come, tables, JSON, files."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muomni.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from muomni.infer import Chunk, Timing


def print_reply(stream: Iterable["Chunk"], hear: Callable[["Chunk"], None] | None = None) -> None:
    """Writes the chunks to standard output as they come, then a line end.

    A terminal gets no control characters: it would obey them.

    Args:
        stream: of one reply.
        hear: told each chunk once its text is written.
    """
    terminal = sys.stdout.isatty()
    for chunk in stream:
        text = chunk.text
        sys.stdout.write("".join(c for c in text if c.isprintable() or c in "\n\t") if terminal else text)
        sys.stdout.flush()
        if hear is not None:
            hear(chunk)
    print(flush=True)


def speed(timing: "Timing") -> str:
    """For example `23 tokens, 145 tokens/s`."""
    tokens = "1 token" if timing.new_tokens == 1 else f"{timing.new_tokens} tokens"
    return f"{tokens}, {timing.tokens_per_s:.3g} tokens/s" if timing.tokens_per_s else tokens


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Prints JSON: with the characters as they are where standard output can hold them, else all of it in ASCII."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    print(text)


def wide_console() -> "Console":
    """A console that does not squeeze tables where the width is not known."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, left: Sequence[str] = ()
) -> None:
    """Prints a table; its columns are right-aligned but for those of `left`."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title and escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    wide_console().print(table)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names what could not be written in the block.

    Raises:
        UserError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
