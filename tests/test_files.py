"""Files and folders appear whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from muomni.files import (
    atomic_folder,
    exists,
    json_line,
    link_atomic,
    path_of_url,
    remove_folder,
    remove_partial,
    text_lines,
    user_path,
    write_atomic,
)


def test_a_folder_appears_when_its_block_ends(tmp_path):
    target = tmp_path / "new" / "folder"
    with atomic_folder(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("content")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "content"
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


def test_a_block_that_fails_leaves_the_old_folder(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target) as partial:
        (partial / "file").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_folder(target) as partial:
        (partial / "file").write_text("new")
        raise OSError("full")
    assert (target / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_an_existing_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("one", "two"):
        with atomic_folder(target) as partial:
            (partial / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_link_moves_and_a_file_is_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link_atomic(tmp_path / "last", name)
        assert (tmp_path / "last").resolve().name == name
        write_atomic(tmp_path / "note", name)
        assert (tmp_path / "note").read_text() == name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "note", "one", "two"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".partial-1-folder").mkdir()
    (tmp_path / ".partial-1-folder" / "file").touch()
    (tmp_path / ".partial-2-file").touch()
    (tmp_path / "kept").mkdir()
    remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as folder, atomic_folder(tmp_path / "folder") as partial:
        full(partial)
    assert folder.value.filename == str(tmp_path / "folder")
    monkeypatch.setattr("muomni.files.flush", full)
    with pytest.raises(OSError, match="No space left") as file:
        write_atomic(tmp_path / "file", "text")
    assert file.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_removing_a_folder_never_leaves_half_of_it_under_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "file").touch()
    seen = []
    monkeypatch.setattr("muomni.files.shutil.rmtree", lambda path: seen.append((path, folder.exists())))
    remove_folder(folder)
    ((path, existed),) = seen
    assert not existed
    assert (path / "file").exists()
    monkeypatch.undo()
    remove_partial(tmp_path)  # as after a kill
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_utf_8_are_written_and_read_back():
    name = os.fsdecode(b"vo\xefx \xe2\x82\xac")
    assert json_line({"name": name}) == '{"name": "vo\\udcefx €"}\n'.encode()
    assert json.loads(json_line({"name": name})) == {"name": name}


def test_paths_as_people_write_them():
    assert user_path("~/a") == Path.home() / "a"
    assert user_path("~$a.png") == Path("~$a.png")
    assert not exists("x" * 5000) and exists("/")
    assert path_of_url("file:///a%20b") == "/a b" == path_of_url("FILE://localhost/a b") == path_of_url("file:/a b")


def test_only_a_line_feed_ends_a_line():
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    assert text_lines(text) == [text]
    assert text_lines(f"{text}\n{text}\n") == [text, text]
    assert text_lines("a\n\nb") == ["a", "", "b"]
    assert text_lines("") == []


def test_no_code_cuts_texts_at_what_is_no_line_feed():
    """`splitlines` cuts JSON and texts at characters that may stand in a line; `text_lines` does not."""
    files = list((Path(__file__).parent.parent / "muomni").rglob("*.py"))
    assert len(files) > 100
    assert [str(path) for path in files if ".splitlines(" in path.read_text(encoding="utf-8")] == []
