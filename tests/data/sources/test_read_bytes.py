"""Image files: what is read, and what is refused."""

import os
import socket

import pytest

from skipway.data.sources import read_bytes
from skipway.data.sources.decode import BadImage
from skipway.data.sources.read_bytes import read_image_file


def test_a_regular_file_is_read_through_links_that_stay_inside(tmp_path):
    (tmp_path / "a.png").write_bytes(b"bytes")
    (tmp_path / "b.png").symlink_to("a.png")
    for name in ("a.png", "b.png"):
        assert read_image_file(tmp_path / name, tmp_path) == read_image_file(tmp_path / name) == b"bytes"


def test_links_out_of_the_root_are_refused_unless_followed(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "data-other"
    root.mkdir(), outside.mkdir()
    (outside / "a.png").write_bytes(b"bytes")
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    for path in (root / "link.png", root / "folder" / "a.png"):
        with pytest.raises(BadImage, match="the symbolic link leads out of the data folder"):
            read_image_file(path, root)
        assert read_image_file(path, root, follow_links=True) == b"bytes"


def test_a_folder_is_looked_at_once_for_all_of_its_files(tmp_path, monkeypatch):
    root = tmp_path / "data"
    (root / "class").mkdir(parents=True)
    looked, plain = [], read_bytes._lies_in
    monkeypatch.setattr(read_bytes, "_lies_in", lambda *given: looked.append(given[0]) or plain(*given))
    (tmp_path / "outside.png").write_bytes(b"secret")
    for name in ("a.png", "b.png", "c.png"):
        (root / "class" / name).write_bytes(b"bytes")
    (root / "class" / "d.png").symlink_to(tmp_path / "outside.png")
    inside = {}
    for name in ("a.png", "b.png", "c.png"):
        assert read_image_file(root / "class" / name, root, inside=inside) == b"bytes"
    with pytest.raises(BadImage, match="the symbolic link leads out of the data folder"):
        read_image_file(root / "class" / "d.png", root, inside=inside)
    assert looked == [str(root / "class"), str(root / "class" / "d.png")]


@pytest.mark.parametrize(
    "parts", [(b"ab", b"c", b"d", b""), (b"abc", b"d", b""), (b"abcde", b"f", b""), (b"a", b""), (b"",)]
)
def test_a_file_that_comes_in_parts_or_changes_meanwhile_is_read_to_its_end(parts, monkeypatch):
    coming = iter(parts)
    monkeypatch.setattr(read_bytes.os, "read", lambda file, count: next(coming))
    assert read_bytes._read_all(0, 4) == b"".join(parts)


def test_the_root_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"bytes")
    (tmp_path / "root").symlink_to("real")
    assert read_image_file(tmp_path / "root" / "a.png", tmp_path / "root") == b"bytes"


def test_special_files_are_refused_without_blocking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("fifo.jpg")
    os.mkdir("folder.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        for kind, name in (("FIFO", "fifo.jpg"), ("folder", "folder.jpg"), ("socket", "socket.jpg")):
            with pytest.raises(BadImage, match=f"expected a regular file, got a {kind}"):
                read_image_file(tmp_path / name)
    with pytest.raises(BadImage, match="expected a regular file, got a device"):
        read_image_file(tmp_path / "/dev/null")


def test_missing_looping_and_impossible_names_are_refused(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nothing.jpg")
    for name in ("loop.jpg", "dangling.jpg", "gone.jpg", "zero\0.jpg"):
        with pytest.raises(BadImage, match="not readable: "):
            read_image_file(tmp_path / name)
    with pytest.raises(BadImage, match="not readable: |leads out"):
        read_image_file(tmp_path / "loop.jpg", tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BadImage, match="empty file"):
        read_image_file(tmp_path / "empty.jpg")


def test_a_file_too_large_for_a_image_is_refused(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(BadImage, match="file too large: expected at most 1,000,000,000 bytes, got 2,000,000,000"):
        read_image_file(tmp_path / "huge.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    (tmp_path / "locked.jpg").write_bytes(b"bytes")
    (tmp_path / "locked.jpg").chmod(0)
    with pytest.raises(BadImage, match="not readable: Permission denied"):
        read_image_file(tmp_path / "locked.jpg")
