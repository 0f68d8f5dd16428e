"""Atomic writes: the old content or the new one, and no temporary file unless the process was killed."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from l2l_influence.storage import atomic
from l2l_influence.storage.atomic import TEMPORARY, replacing, write_text

from ..processes import ended, started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "notes.txt"
    found.write_text("old")
    return found


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(path: Path) -> None:
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old" and new.parent == path.parent
        assert re.fullmatch(rf"notes\.txt{TEMPORARY}", new.name)
    assert path.read_text() == "new" and names(path.parent) == ["notes.txt"]


def test_a_block_that_fails_leaves_the_old_file_alone(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(path) as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and names(path.parent) == ["notes.txt"]


def killed_while_writing(path: Path) -> None:
    with replacing(path) as new:
        new.write_text("half")
        os._exit(9)


def test_a_writer_that_is_killed_leaves_the_old_file_and_one_temporary_file(path: Path) -> None:
    assert ended(started(killed_while_writing, path)) == 9
    assert path.read_text() == "old"
    (temporary,) = set(names(path.parent)) - {"notes.txt"}
    assert re.fullmatch(rf"notes\.txt{TEMPORARY}", temporary)


def test_several_writers_of_one_file_do_not_disturb_each_other(path: Path) -> None:
    texts = [letter * 10_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(path, text), texts))
    assert path.read_text() in texts and names(path.parent) == ["notes.txt"]


def test_the_content_is_on_the_disk_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    replace = os.replace
    monkeypatch.setattr(atomic, "_sync", lambda synced: calls.append(synced.suffix or "folder"))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write_text(path, "new")
    assert calls == [".new", "rename", "folder"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_others_may_read_the_file_if_the_umask_says_so(path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(path, "new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_a_link_stays_a_link_and_a_pipe_a_pipe(path: Path) -> None:
    link, pipe = path.with_name("link"), path.with_name("pipe")
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink() and path.read_text() == "new"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_text(pipe, "through the pipe")
        assert read.result(timeout=10) == "through the pipe" and pipe.is_fifo()
