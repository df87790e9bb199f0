"""The token index: what is in it, when it is built anew, and that no half of one is ever used."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.config import DataSpec, SourceSpec, TokenizerSpec
from muomni.data import (
    ChatTemplate,
    PackedDataset,
    TokenIndex,
    Tokenizer,
    build_index,
    cache_folder,
    default_cache_dir,
    encode_chat,
    prepare,
    prepare_tokenizer,
)
from muomni.data.index import build as build_module
from muomni.data.index.build import index_fingerprint
from muomni.data.sources import readers
from muomni.errors import DataError
from tests.data.helpers import STORIES, chat, write_jsonl


def build(path: Path, tokenizer: Tokenizer, **options: Any) -> TokenIndex:
    source = SourceSpec(path=str(path), **options.pop("source", {}))
    return build_index([source], tokenizer, None, path.parent / "cache", **options)


def documents(cache: TokenIndex) -> list[list[int]]:
    bounds = [*cache.documents["start"].tolist(), cache.num_tokens]
    return [cache.tokens[a:b].tolist() for a, b in pairwise(bounds)]


# What is in it


def test_documents_and_their_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    cache = build(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES]), tokenizer)
    assert documents(cache) == [[*tokenizer.encode(text), tokenizer.eos_id] for text in STORIES]
    assert cache.mask is None
    assert cache.tokens.dtype == np.uint16
    assert (cache.num_documents, cache.num_tokens) == (len(STORIES), sum(map(len, documents(cache))))
    assert cache.counts.text_bytes == cache.counts.target_bytes == sum(len(text.encode()) for text in STORIES)
    assert cache.bytes_per_token == cache.counts.target_bytes / cache.num_tokens
    copy = pickle.loads(pickle.dumps(cache))
    assert documents(copy) == documents(cache)


@pytest.mark.parametrize("chat_first", [True, False])
def test_only_answers_of_conversations_are_learnt(tmp_path: Path, tokenizer: Tokenizer, chat_first: bool) -> None:
    rows: list[dict[str, Any]] = [{"text": "Some text."}, {"messages": chat("q?", "An é answer", "r?", "B<|im_end|>")}]
    cache = build(write_jsonl(tmp_path / "a.jsonl", rows[::-1] if chat_first else rows), tokenizer)
    encoded = encode_chat(tokenizer, rows[1]["messages"])
    plain = [*tokenizer.encode("Some text."), tokenizer.eos_id]
    talk = [*encoded.ids, tokenizer.eos_id]
    assert documents(cache) == ([talk, plain] if chat_first else [plain, talk])
    masks = [[1] * len(plain), [*map(int, encoded.answer_mask), 0]]
    assert cache.mask is not None
    assert cache.mask.tolist() == masks[chat_first] + masks[not chat_first]
    assert cache.counts.target_tokens == int(cache.mask.sum())
    assert cache.counts.target_bytes == len("Some text.An é answerB<|im_end|>".encode())


def test_a_template_without_marked_answers_cannot_be_learnt_from(tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = Tokenizer(
        tokenizer.backend, ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    )
    with pytest.raises(DataError, match="line 1: the tokenizer's chat template does not mark the answer"):
        build(write_jsonl(tmp_path / "a.jsonl", [{"messages": chat("q", "r")}]), other)


def test_pieces_of_a_long_row_are_one_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat\n" * 100_000
    cache = build(write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": "b"}]), tokenizer)
    assert cache.num_documents == 2
    assert tokenizer.decode(documents(cache)[0], skip_special=False) == text + "<|endoftext|>"


# Training and validation


def test_the_two_parts_are_all_documents_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": f"story number {n % 300}"} for n in range(600)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    train, val = (build(path, tokenizer, part=part, val_fraction=0.2) for part in ("train", "val"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    found = [{tokenizer.decode(ids) for ids in documents(part)} for part in (train, val)]
    assert not found[0] & found[1]
    assert found[0] | found[1] == {row["text"] for row in rows}
    assert train.num_documents + val.num_documents == 600
    assert 30 <= len(found[1]) <= 95
    assert train.fingerprint != val.fingerprint


def test_a_plain_file_gives_pieces_to_validation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "".join(f"Line {n} of a file without any separators.\n" for n in range(4000))
    path = tmp_path / "a.txt"
    path.write_text(text)
    train, val = (build(path, tokenizer, part=part, val_fraction=0.1) for part in ("train", "val"))
    pieces = [tokenizer.decode(ids, skip_special=False) for part in (train, val) for ids in documents(part)]
    assert sum(piece.endswith("<|endoftext|>") for piece in pieces) == 1
    lines = "".join(pieces).replace("<|endoftext|>", "").splitlines()
    assert sorted(lines) == sorted(text.splitlines())
    # A piece that training lacks ends a document there: what follows is not what stood next.
    for ids in (*documents(train), *documents(val)):
        numbers = [int(line.split()[1]) for line in tokenizer.decode(ids).splitlines()]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert 0.02 < val.counts.text_bytes / len(text) < 0.25


def test_a_long_row_is_never_divided(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 20)
    rows = [f"row {n}: " + "the cat sat on the mat " * 8 for n in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": row} for row in rows])
    parts = [build(path, tokenizer, part=part, val_fraction=0.4) for part in ("train", "val")]
    assert sorted(tokenizer.decode(ids) for part in parts for ids in documents(part)) == sorted(rows)
    assert all(part.num_documents > 3 for part in parts)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_with_few_documents_one_is_held_out(tmp_path: Path, tokenizer: Tokenizer, count: int) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": STORIES[n % count % 4] * (1 + n % count // 4)} for n in range(9)]
    )
    train, val = (build(path, tokenizer, part=part, val_fraction=0.001) for part in ("train", "val"))
    assert len({str(ids) for ids in documents(val)}) == 1
    assert len({str(ids) for ids in documents(train)}) == count - 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [([{"text": "a"}] * 3, "too little text .* data.val"), ([{"text": " "}], "holds no text to learn from")],
)
def test_too_little(tmp_path: Path, tokenizer: Tokenizer, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(write_jsonl(tmp_path / "a.jsonl", rows), tokenizer, val_fraction=0.1)
    assert list((tmp_path / "cache").iterdir()) == []


# When it is built anew


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows by one with each build."""
    done: list[Path] = []
    original = build_module._write

    def counted(folder: Path, *arguments: Any) -> Any:
        done.append(folder)
        return original(folder, *arguments)

    monkeypatch.setattr(build_module, "_write", counted)
    return done


def test_an_unchanged_input_is_not_read_again(tmp_path: Path, tokenizer: Tokenizer, builds: list[Path]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    first = build(path, tokenizer)
    assert build(path, tokenizer).fingerprint == first.fingerprint
    assert len(builds) == 1


def test_a_change_of_anything_builds_anew(tmp_path: Path, tokenizer: Tokenizer, builds: list[Path]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two\nthree|four")
    build(path, tokenizer)
    time_before = path.stat().st_mtime_ns
    path.write_text("one two\nthree|five")  # as long as before, and the clock is turned back
    os.utime(path, ns=(time_before, time_before))
    assert tokenizer.decode(build(path, tokenizer).tokens.tolist()) == "one two\nthree|five"
    other = Tokenizer.train(STORIES, 400)
    template = Tokenizer(tokenizer.backend, ChatTemplate("x"))
    for changed, options in (
        (other, {}),
        (template, {}),
        (tokenizer, {"source": {"separator": "|"}}),
        (tokenizer, {"source": {"separator": "|"}, "val_fraction": 0.4}),
    ):
        build(path, changed, **options)
    assert len(builds) == 6
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_a_new_form_of_cache_leaves_the_old_one_alone(
    tmp_path: Path, tokenizer: Tokenizer, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}])
    build(path, tokenizer)
    monkeypatch.setattr(cache_folder, "FORMAT", 999)
    build(path, tokenizer)
    assert len(builds) == 2


def test_an_edit_in_the_middle_of_a_large_file_counts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 2_000_000)
    source = [SourceSpec(path=str(path))]
    before = index_fingerprint(source, tokenizer, None, 0.1)
    assert index_fingerprint(source, tokenizer, None, 0.1) == before
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"edit")
    assert index_fingerprint(source, tokenizer, None, 0.1) != before


def test_data_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}])
    original = build_module._write

    def growing(*arguments: Any) -> Any:
        meta = original(*arguments)
        with path.open("a") as file:
            file.write('{"text": "c"}\n')
        return meta

    monkeypatch.setattr(build_module, "_write", growing)
    with pytest.raises(DataError, match="changed while it was read"):
        build(path, tokenizer)
    assert list((tmp_path / "cache").iterdir()) == []


# Whole or not at all


@pytest.mark.parametrize("damage", ["tokens.bin", "documents.bin", "meta.json", "other sizes"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, tokenizer: Tokenizer, damage: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    expected = documents(build(path, tokenizer))
    (folder,) = (tmp_path / "cache").iterdir()
    if damage == "meta.json":
        (folder / damage).write_text("{")
    elif damage == "other sizes":
        meta = json.loads((folder / "meta.json").read_text())
        meta["files"]["train/tokens.bin"] += 1
        (folder / "meta.json").write_text(json.dumps(meta))
    else:
        os.truncate(folder / "train" / damage, 8)
    assert documents(build(path, tokenizer)) == expected
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]


_BUILD = """
    import sys, time
    from muomni.config import SourceSpec
    from muomni.data import Tokenizer, build_index
    from muomni.data.index.writer import IndexWriter
    path, tokenizer, cache, pause = sys.argv[1:]
    original = IndexWriter._encode
    def slow(writer, batch, pool):
        print("building", flush=True)
        time.sleep(float(pause))
        return original(writer, batch, pool)
    IndexWriter._encode = slow
    cache = build_index([SourceSpec(path=path)], Tokenizer.load(tokenizer), None, cache)
    print(cache.num_tokens)
"""


def start_build(path: Path, folder: Path, pause: float) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", textwrap.dedent(_BUILD), str(path), str(folder), str(path.parent / "cache")]
    return subprocess.Popen([*arguments, str(pause)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    processes = [start_build(path, folder, 2.0) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
    assert len(list((tmp_path / "cache").iterdir())) == 2  # both are at it
    results = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    (finished,) = (tmp_path / "cache").iterdir()
    cache = build(path, tokenizer)
    assert cache.folder == finished / "train"
    assert results == [f"{cache.num_tokens}\n"] * 2
    assert documents(cache)[0] == [*tokenizer.encode(STORIES[0]), tokenizer.eos_id]


def test_the_second_to_finish_leaves_the_cache_of_the_first(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}])
    first = build(path, tokenizer)
    file = (first.folder / "tokens.bin").stat().st_ino
    answers = iter([None])  # as if the first had not been there when the second began
    original = cache_folder.read_meta
    monkeypatch.setattr(cache_folder, "read_meta", lambda folder: next(answers, original(folder)))
    second = build(path, tokenizer)
    assert second.folder == first.folder
    assert (second.folder / "tokens.bin").stat().st_ino == file
    assert list((tmp_path / "cache").iterdir()) == [first.folder.parent]


def test_a_cache_of_another_form_is_not_opened(tmp_path: Path, tokenizer: Tokenizer) -> None:
    cache = build(write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}]), tokenizer)
    meta = cache.folder.parent / "meta.json"
    meta.write_text(meta.read_text().replace(f'"format": {cache_folder.FORMAT}', '"format": 0'))
    with pytest.raises(DataError, match="not a whole token index"):
        TokenIndex(cache.folder)
    with pytest.raises(DataError, match="not a whole token index"):
        TokenIndex(tmp_path / "nothing")


def test_a_killed_build_leaves_nothing_behind(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    process = start_build(path, folder, 60.0)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.startswith(".partial-")
    cache = build(path, tokenizer)
    assert list((tmp_path / "cache").iterdir()) == [cache.folder.parent]


def test_an_old_folder_of_another_machine_is_removed_and_a_fresh_one_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    root = tmp_path / "cache"
    for name, age in (("old", 3 * 24 * 3600), ("new", 0)):
        folder = root / f".partial-other-machine-1-{name}"
        folder.mkdir(parents=True)
        then = time.time() - age
        os.utime(folder, (then, then))
    build(write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}]), tokenizer)
    assert {path.name for path in root.glob(".partial-*")} == {".partial-other-machine-1-new"}


def test_a_folder_that_cannot_be_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(DataError, match=r"cannot be written there: .* data\.cache_dir or .* MUOMNI_CACHE"):
        build(write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}]), tokenizer)


def test_a_full_disk(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_folder, "flush", full)
    with pytest.raises(DataError, match="could not be written: No space left"):
        build(write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}]), tokenizer)
    assert list((tmp_path / "cache").iterdir()) == []


# From a recipe


def test_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "elsewhere"))
    assert default_cache_dir() == tmp_path / "elsewhere" / "tokens"
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text * (n + 1)} for n in range(5) for text in STORIES])
    data = DataSpec.model_validate({"train": [str(path)], "val_fraction": 0.2, "seq_len": 16})
    tokenizer = prepare_tokenizer(TokenizerSpec(vocab_size=400), data)
    prepared = prepare(data, tokenizer)
    assert prepared.train.num_documents + prepared.val.num_documents == 20
    assert prepared.val.num_documents > 0
    assert prepared.train.folder.parent.parent == default_cache_dir()
    tokenizer.save(tmp_path / "tokenizer")
    loaded = prepare_tokenizer(TokenizerSpec(path=str(tmp_path / "tokenizer")), data)
    assert loaded.fingerprint == tokenizer.fingerprint
    named = data.replace(val=[str(path)], cache_dir=str(tmp_path / "named"))
    both = prepare(named, tokenizer)
    assert both.train.num_documents == both.val.num_documents == 20
    assert both.val.folder.parent.parent == tmp_path / "named"


def test_a_tokenizer_without_text_names_the_files(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": ""}])
    with pytest.raises(DataError, match=r"a.jsonl: holds no text, so no tokenizer can be trained"):
        prepare_tokenizer(TokenizerSpec(vocab_size=400), DataSpec.model_validate({"train": [str(path)]}))


def test_real_stories(shared_data: Path, tmp_path: Path) -> None:
    stories = str(shared_data / "text/tinystories/val.jsonl.gz")
    data = DataSpec.model_validate({"train": [stories], "cache_dir": str(tmp_path), "val_fraction": 0.1})
    tokenizer = prepare_tokenizer(TokenizerSpec(vocab_size=1000), data)
    prepared = prepare(data, tokenizer)
    rows = PackedDataset(prepared.train, 256)
    taken = sum(int((rows.row(n).tokens != tokenizer.pad_id).sum()) for n in range(rows.num_rows))
    assert taken == prepared.train.num_tokens
    assert 2.5 < prepared.train.bytes_per_token < 4.5
