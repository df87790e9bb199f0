"""The documents of a recipe: read from files and data sets, or made."""

from collections.abc import Iterator, Sequence

from muomni.config import AnySource, SyntheticSpec
from muomni.data.sources.readers import Document, Keep, Report
from muomni.data.sources.sources import read_documents, source_files, text_size
from muomni.data.synthetic.world import open_world
from muomni.data.text.chat import check_messages, text_of
from muomni.errors import DataError

# What the work of making an item is worth beside reading, and how much text it holds, in bytes.
_ITEM_BYTES = 2000
_ITEM_TEXT_BYTES = 60


def iter_documents(
    sources: Sequence[AnySource], report: Report = lambda _: None, share: float = 1.0
) -> Iterator[Document]:
    """The documents of all sources, in a fixed order.

    Args:
        sources: in this order.
        report: called with the number of bytes read since the last call.
        share: which part of the rows (of plain text: pieces) to take, spread evenly over each file;
            the others are passed over without being parsed or made.

    Raises:
        DataError: naming file and line, row or byte.
        UserError: a synthesiser is needed and not installed.
    """
    for spec in sources:
        if isinstance(spec, SyntheticSpec):
            yield from _made_documents(spec, report, _every(share))
        else:
            yield from read_documents(spec, report, _every(share))


def _made_documents(spec: SyntheticSpec, report: Report, keep: Keep) -> Iterator[Document]:
    with open_world(spec) as world:
        for number in filter(keep, range(spec.count)):
            origin = f"{spec.path}: item {number}"
            messages = check_messages(world.item(number).messages, origin, DataError, inputs=("image", "audio"))
            report(_ITEM_BYTES)
            yield Document(None, messages, origin)


def total_bytes(sources: Sequence[AnySource]) -> int:
    """Bytes that `iter_documents` reports on: of all files on disk, and what making items is worth."""
    return sum(
        spec.count * _ITEM_BYTES
        if isinstance(spec, SyntheticSpec)
        else sum(file.size for file in source_files(spec) or ())
        for spec in sources
    )


def iter_texts(sources: Sequence[AnySource], max_bytes: int) -> Iterator[str]:
    """Texts for the tokenizer to learn from: about `max_bytes` of UTF-8, spread over all sources.

    Of a conversation each message's content is a text. The whole corpus is read once, but only what
    is taken is parsed.
    """
    size = sum(
        spec.count * _ITEM_TEXT_BYTES if isinstance(spec, SyntheticSpec) else text_size(spec) for spec in sources
    )
    keep = _every(min(1.0, max_bytes / size) if size else 1.0)
    left = max_bytes
    for spec in sources:
        for text in _made_texts(spec, keep) if isinstance(spec, SyntheticSpec) else _read_texts(spec, keep):
            left -= len(text.encode())
            yield text
            if left <= 0:
                return


def _read_texts(spec: AnySource, keep: Keep) -> Iterator[str]:
    assert not isinstance(spec, SyntheticSpec)
    for document in read_documents(spec, keep=keep):
        if document.text is not None:
            yield document.text
        else:
            yield from map(text_of, document.messages or ())


def _made_texts(spec: SyntheticSpec, keep: Keep) -> Iterator[str]:
    with open_world(spec, media=False) as world:
        for number in filter(keep, range(spec.count)):
            yield from world.item(number).texts


def _every(share: float) -> Keep:
    """Takes `share` of all numbers, evenly spread."""
    return lambda number: int((number + 1) * share) > int(number * share) or share >= 1
