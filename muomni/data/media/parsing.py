"""What libraries raise on content that they were not made for, as one error; and names as messages show them."""

from collections.abc import Iterator
from contextlib import contextmanager

from muomni.errors import MediaError

_LONGEST_NAME = 300


@contextmanager
def parsing(name: str, what: str) -> Iterator[None]:
    """Turns whatever a parser of foreign bytes raises into a MediaError.

    Args:
        name: the file, or archive and member, as messages call it.
        what: is wrong with it; the parser's reason follows.

    Raises:
        MediaError: naming the file.
    """
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Exception as error:
        raise MediaError(f"{name}: {what}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an exception says, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shown(" ".join(words.split()))


def shown(name: str) -> str:
    """A name for a message: what cannot be printed is escaped, and the middle of a very long one is left out."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
