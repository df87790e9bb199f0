"""Reading sources: every format, bounded pieces, and errors that name the place."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from muomni.config import SourceSpec, load_recipe
from muomni.data import Document, iter_documents, iter_texts
from muomni.data.documents import total_bytes
from muomni.data.sources import readers
from muomni.errors import ConfigError, DataError, UserError
from tests.data.helpers import chat, write_jsonl


def read(path: Path, **options: Any) -> list[Document]:
    return list(iter_documents([SourceSpec(path=str(path), **options)]))


def texts(path: Path, **options: Any) -> list[str | None]:
    return [document.text for document in read(path, **options)]


# Plain text


def test_a_text_file_is_one_divisible_document_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {n} goes on for a while.\nAnd on.\n\n" for n in range(3000))
    (tmp_path / "a.txt").write_text(text)
    documents = read(tmp_path / "a.txt")
    assert "".join(document.text or "" for document in documents) == text
    assert max(len(document.text or "") for document in documents) <= 2 * readers.BLOCK_CHARS
    assert [document.final for document in documents] == [False] * (len(documents) - 1) + [True]
    assert all(document.divisible and (document.text or "").startswith("Par") for document in documents)


@pytest.mark.parametrize("text", ["a" * 50_000, "ab " * 20_000, "é\n" * 20_000, "\n" * 30_000 + "x"])
def test_one_giant_line_comes_in_pieces(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = texts(tmp_path / "a.txt")
    assert "".join(piece or "" for piece in pieces) == text
    assert max(map(len, map(str, pieces))) <= 2 * readers.BLOCK_CHARS


@given(
    parts=st.lists(st.text(st.sampled_from("ab\né "), max_size=12), max_size=12),
    separator=st.sampled_from(["|", "<>", "\n\n", "\n--\n"]),
    chunk=st.integers(1, 9),
)
@example(parts=["\n" * 5 + "a" * 5], separator="|", chunk=1)
@example(parts=["a" * 5 + "\n" * 12, "b"], separator="|", chunk=1)
@example(parts=["a" * 5 + "\n" * 12, "b"], separator="\n--\n", chunk=1)
def test_separators_are_found_wherever_chunks_end(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], separator: str, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("parts") / "a.txt"
    text = "x" + separator + separator.join(parts)
    path.write_text(text, encoding="utf-8")
    expected = [part.strip("\n") for part in text.split(separator) if part.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "READ_BYTES", chunk)
        patch.setattr(readers, "PIECE_CHARS", 4)
        documents = read(path, separator=separator)
    found = [""]
    for document in documents:
        found[-1] += document.text or ""
        found += [""] * document.final
    assert found.pop() == ""
    assert [text for text in found if text.strip()] == expected
    assert all(len(document.text or "") <= 8 for document in documents)


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\r\n\r\nfour".encode())
    assert texts(tmp_path / "a.txt") == ["one\ntwo\nthree\n\nfour"]
    assert texts(tmp_path / "a.txt", separator="\r\n\r\n") == ["one\ntwo\nthree", "four"]
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\r\n{"text": "c\xe2\x80\xa8d"}\r\n')
    assert texts(tmp_path / "b.jsonl") == ["a\r\nb", "c\u2028d"]


@pytest.mark.parametrize("content", [" \n\n", "\n"])
def test_white_space_alone_is_no_document(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert read(tmp_path / "a.txt") == []


# JSON lines


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "", "messages": chat("q", "r")}, {"text": "b", "messages": None}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert [(d.text, d.messages) for d in read(path)] == [("a", None), (None, chat("q", "r")), ("b", None)]
    assert read(path)[1].origin == f"{path}: line 2"
    other = write_jsonl(tmp_path / "b.json", [{"body": "x", "talk": None}, {"talk": chat("q", "r")}])
    found = read(other, text_column="body", messages_field="talk")
    assert [(d.text, d.messages) for d in found] == [("x", None), (None, chat("q", "r"))]


def test_a_long_row_comes_in_pieces_of_one_document(tmp_path: Path) -> None:
    text = "some words " * 300_000
    documents = read(write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": "b"}]))
    assert "".join(document.text or "" for document in documents[:-1]) == text
    assert [document.final for document in documents] == [False, False, False, True, True]
    assert not any(document.divisible for document in documents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        (b'\n\n{"txt": "a", "id": 3}', "line 3: has neither 'text' nor 'messages'; its fields are: txt, id"),
        (b'{"text": 5}', "line 1: field 'text' must be a string, not a number"),
        (b'{"text": null}', "must be a string, not null"),
        (b"[1, 2]", r"line 1: must be a JSON object .* not a list \(a JSON array\?"),
        (b'[\n{"text": "a"}\n]', r"line 1: not valid JSON: .*\(a JSON array\?"),
        (b'{\n"text": "a"\n}', "object over several lines"),
        (b'{"text": "a"}\n{"text": "\xe9"}', "line 2: is not UTF-8 text: byte 10 is 0xe9"),
        (b'{"text": "\\ud83d"}', r"line 1: holds half of a surrogate pair, \\ud83d"),
        (b"\x1f\x8b\x08\x00", "looks like a gzip file"),
        (b'{"messages": []}', "line 1: holds no message"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "line 1: the conversation holds no answer"),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', "line 1: message 1: role 'bot' is not known"),
        (b"[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_broken_json_lines(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "a.jsonl")
    assert str(error.value).startswith(str(tmp_path / "a.jsonl"))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b" * 2000}])
    with pytest.raises(DataError, match="line 2: is longer than"):
        read(path)


# Files and folders


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc \xff def", r"is not UTF-8 text: byte 4 is 0xff"),
        ("a.txt", b"caf\xc3", r"is not UTF-8 text: byte 3 is 0xc3"),
        ("a.txt", "text".encode("utf-16"), "looks like UTF-16"),
        ("a.txt", b"ab\0c", "holds NUL bytes"),
        ("a.txt", b"", "is empty"),
        ("a.csv", b"a,b", 'its format is not known from the name; give "format"'),
        ("a.parquet.gz", b"a,b", "its format is not known"),
        ("a.txt.gz", gzip.compress(b"hello " * 1000, mtime=0)[:-10], "is not a whole gzip file"),
        ("a.jsonl.gz", b"hello", "is not a whole gzip file"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_the_place_of_a_wrong_byte_counts_from_the_start_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "READ_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "é".encode() * 30 + b"\xc3x")
    with pytest.raises(DataError, match="byte 63 is 0xc3"):
        read(tmp_path / "a.txt")


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder$"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match='"format": "datasets"'):
        list(iter_documents([SourceSpec(path="owner/name")]))


def test_folders_are_read_in_order_and_gz_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "1.md").write_text("third")
    (tmp_path / "a.TXT").write_text("first")
    write_jsonl(tmp_path / "b" / "2.jsonl", [{"text": "fourth"}])
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"second", mtime=0))
    for ignored in (".hidden/c.txt", ".d.txt", "e.csv"):
        (tmp_path / ignored).write_text("not this")
    (tmp_path / "empty.txt").write_text("")
    assert texts(tmp_path) == ["first", "second", "third", "fourth"]
    assert texts(tmp_path, format="jsonl") == ["fourth"]
    assert texts(tmp_path / "e.csv", format="text") == ["not this"]
    with pytest.raises(DataError, match=r"no file that ends in \.parquet .* it holds: .*\.csv"):
        read(tmp_path, format="parquet")


def test_all_bytes_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 100_000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0))
    _write_parquet(tmp_path / "c.parquet", {"text": ["a", "b"] * 500})
    sources = [SourceSpec(path=str(tmp_path))]
    counts: list[int] = []
    list(iter_documents(sources, counts.append))
    assert sum(counts) == pytest.approx(total_bytes(sources), abs=4)
    assert sum(counts) == pytest.approx(sum(path.stat().st_size for path in tmp_path.iterdir()), abs=4)


# Parquet and the datasets library


def _write_parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "text": [*map(str, range(1000)), None],
        "messages": [None] * 1000 + [chat("q", "r")],
        "x": [0] * 1001,
    }
    path = _write_parquet(tmp_path / "a.parquet", columns, row_group_size=100)
    documents = read(path)
    assert [document.text for document in documents[:-1]] == columns["text"][:-1]
    assert documents[-1].messages == chat("q", "r")
    assert documents[7].origin == f"{path}: row 7"
    with pytest.raises(DataError, match="has neither 'body' nor 'talk'; its columns are: text, messages, x"):
        read(path, text_column="body", messages_field="talk")
    with pytest.raises(DataError, match="row 1: field 'text' must be a string, not null"):
        read(_write_parquet(tmp_path / "b.parquet", {"text": ["a", None]}))


def test_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "several")
    assert texts(tmp_path / "one") == ["a", "b"]
    assert texts(tmp_path / "several", split="test") == ["a", "b"]
    with pytest.raises(DataError, match="has no split 'train'; its splits are test"):
        read(tmp_path / "several")
    with pytest.raises(DataError, match="has neither 'body' nor 'messages'; its columns are: text, n"):
        read(tmp_path / "one", text_column="body")
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "train.jsonl", [{"text": "c"}, {"text": "d"}])
    assert texts(tmp_path / "files", format="datasets") == ["c", "d"]
    with pytest.raises(DataError, match="the datasets library cannot read it: .*Bad split"):
        read(tmp_path / "files", format="datasets", split="other")


def test_without_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "muomni\[datasets\]"'):
        read(tmp_path, format="datasets")


@pytest.mark.parametrize(
    "options",
    [
        {"format": "jsonl", "separator": "|"},
        {"format": "jsonl", "split": "test"},
        {"subset": "en"},
        {"separator": ""},
    ],
)
def test_options_that_would_be_ignored_are_refused(options: dict[str, Any]) -> None:
    from muomni.config import parse

    with pytest.raises(ConfigError):
        parse(SourceSpec, {"path": "a.txt", **options}, "recipe.json")


# Texts for the tokenizer


def test_the_tokenizers_sample_comes_from_the_whole_corpus(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"{n:05d} " + "x" * 94} for n in range(1000)])
    (tmp_path / "b.txt").write_text("".join(f"line {n:06d}\n" for n in range(10_000)))
    sample = list(iter_texts([SourceSpec(path=str(tmp_path))], 20_000))
    size = sum(map(len, sample))
    assert 14_000 <= size <= 25_000
    rows = [int(text[:5]) for text in sample if text.endswith("x")]
    assert len(rows) > 50
    assert min(rows) < 50 and max(rows) > 950
    assert any("line 008" in text or "line 009" in text for text in sample)


def test_the_tokenizer_sees_all_of_a_small_corpus(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"messages": chat("q", "r")}])
    assert list(iter_texts([SourceSpec(path=str(tmp_path))], 1000)) == ["a", "q", "r"]


# The development data


def test_real_stories(shared_data: Path) -> None:
    path = shared_data / "text" / "tinystories" / "val.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        expected = [json.loads(line)["text"] for line in file]
    assert texts(path) == expected
    assert len(expected) == 224


def test_real_plays(shared_data: Path) -> None:
    path = shared_data / "text" / "tinyshakespeare" / "val.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        expected = file.read()
    assert "".join(map(str, texts(path))) == expected
    assert texts(path, separator="\n\n") == [part.strip("\n") for part in expected.split("\n\n") if part.strip()]


def test_a_broken_parquet_file_is_one_error(tmp_path: Path) -> None:
    """Wherever it is broken: pyarrow raises OSError, UnicodeDecodeError, ArrowInvalid and others."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"Text {n}." for n in range(9)]}), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x93]) + whole[place + 1 :])
        message = str(path)
        try:
            read(path)
        except DataError as error:
            message = str(error)
        assert message.startswith(str(path))


def test_a_part_of_no_type_is_refused(tmp_path: Path) -> None:
    part = {"type": {"a": 1}, "text": "x"}
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "y"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(DataError, match="line 1: message 1: part 1"):
        read(tmp_path / "a.jsonl")


def test_a_name_that_no_file_can_have_is_told() -> None:
    with pytest.raises(UserError, match="xxx…: the name is too long for a file"):
        read(Path("x" * 5000))


# Conversations from columns


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A data set as the Hub has many: pictures with numbers, and no conversation."""
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(6)]
    made = datasets.Dataset.from_dict(
        {"image": pictures, "label": list(range(6)), "note": list("abcdef")},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("int64"), "note": datasets.Value("string")}
        ),
    )
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "rows.parquet")
    return tmp_path


def test_columns_become_conversations(labelled: Path) -> None:
    options = {"question": ["{image} Which digit?", "Read {note}: {image}"], "answer": "It is {label}."}
    saved, packed = read(labelled / "saved", **options), read(labelled / "rows.parquet", **options)
    assert len(saved) == len(packed) == 6
    wordings = set()
    for number, (one, other) in enumerate(zip(saved, packed, strict=True)):
        assert one.messages is not None
        assert other.messages is not None
        assert one.messages[1]["content"] == other.messages[1]["content"] == f"It is {number}."
        kinds = [part["type"] for part in one.messages[0]["content"]]
        assert kinds == [part["type"] for part in other.messages[0]["content"]]
        texts_of_it = [part["text"] for part in one.messages[0]["content"] if part["type"] == "text"]
        assert texts_of_it in (["Which digit?"], [f"Read {'abcdef'[number]}:"])
        wordings.add(kinds[0])
    assert wordings == {"image", "text"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"question": "{picture} What?", "answer": "{label}"}, "has no 'picture'"),
        ({"question": "{note}?", "answer": "{image}"}, "must be made of texts"),
    ],
)
def test_wrong_templates_are_told(labelled: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(labelled / "rows.parquet", **options)


def test_question_and_answer_go_together() -> None:
    with pytest.raises(ConfigError, match="question and answer must be given together"):
        load_recipe("see-tiny", ['data.train={"path": "a", "question": "{image} What?"}'])
