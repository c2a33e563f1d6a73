import os

import pytest

from skipway.data.sources.decode import BadImage
from skipway.data.sources.lazy_content import FileContents


@pytest.fixture
def files(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "outside.png").write_bytes(b"outside")
    (tmp_path / "set" / "a.png").write_bytes(b"one")
    (tmp_path / "set" / "empty.png").write_bytes(b"")
    os.symlink(tmp_path / "outside.png", tmp_path / "set" / "link.png")
    return [tmp_path / "set" / name for name in ("a.png", "empty.png", "link.png", "none.png")]


def test_contents_are_read_when_they_are_called(files):
    contents = FileContents(files, files[0].parent)
    files[0].write_bytes(b"two")
    read = [content() for content in contents]
    assert read[0] == b"two" == contents[0]() == contents[:2][0]() and len(contents) == 4
    assert all(isinstance(error, BadImage) for error in read[1:])
    assert [str(error).split(":")[0] for error in read[1:]] == [
        "empty file",
        "the symbolic link leads out of the data folder (allow it with --follow-links)",
        "not readable",
    ]
    assert FileContents(files, files[0].parent, follow_links=True)[2]() == b"outside"


def test_a_stamp_changes_with_the_file_and_is_none_for_a_file_that_must_not_be_read(files):
    contents = FileContents(files, files[0].parent)
    before = contents[0].stamp()
    assert before == contents[0].stamp() and before.size == 3 and before.identity == str(files[0])
    files[0].write_bytes(b"longer")
    assert contents[0].stamp() != before
    assert contents[2].stamp() is None and contents[3].stamp() is None
    assert FileContents(files)[2].stamp().size == len(b"outside")
