"""Archives: what is hostile or damaged in them is one line, and reads are safe in threads and processes."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from file_trees import KINDS, numbered, place, write_tar, write_zip
from image_folders import image_bytes

from skipway.data.sources import archive_tree, decompressed_tar
from skipway.data.sources.archive_tree import is_archive, open_archive
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.decode import BadImage
from skipway.errors import InputError, StorageError

ARCHIVES = [kind for kind in KINDS if kind != "folder"]
FILES = numbered(("a", "b"), 3)


def contents(tree):
    paths = tree.root.image_paths()
    return {path: content() for path, content in zip(paths, tree.contents(paths), strict=True)}


def reasons(tree):
    return {path: str(data) for path, data in contents(tree).items() if isinstance(data, BadImage)}


@pytest.mark.parametrize("suffix", ["zip", "ZIP", "tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz"])
def test_the_suffixes_of_archives(suffix):
    name = f"a.{suffix}"
    assert is_archive(name) and not is_archive(name + ".txt") and not is_archive(f"{name}/b.png")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # the children only read
@pytest.mark.parametrize("kind", ARCHIVES)
def test_threads_and_processes_read_at_once(tmp_path, kind):
    files = {f"a/{i}.png": os.urandom(1000 + 3000 * (i % 9)) for i in range(60)}
    tree = open_archive(place(tmp_path, files, kind))
    paths = tree.root.image_paths() * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda content: content(), tree.contents(paths))) == [files[path] for path in paths]
    one = tree.contents(paths)[7]
    assert pickle.loads(pickle.dumps(one))() == one() == files[paths[7]]
    children = []
    for _ in range(3 if hasattr(os, "fork") else 0):
        if not (pid := os.fork()):  # a child has the same open file
            same = all(content() == files[path] for path, content in zip(paths, tree.contents(paths), strict=True))
            os._exit(0 if same else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_contents_have_the_state_of_the_archive_and_their_place(tmp_path, kind):
    path = place(tmp_path, FILES, kind)
    tree = open_archive(path)
    stamps = [content.stamp() for content in tree.contents(tree.root.image_paths())]
    assert len(set(stamps)) == 6 and {stamp.size for stamp in stamps} == {path.stat().st_size}
    assert open_archive(path) is tree
    content = tree.contents(["a/0.png"])[:1][0]
    path.unlink()
    assert content.stamp() is None and content() == FILES["a/0.png"]


@pytest.mark.parametrize("name", ["../out.png", "/abs.png", "a/../../b.png", "C:/x.png"])
@pytest.mark.parametrize("write, suffix", [(write_zip, ".zip"), (write_tar, ".tar")])
def test_names_that_lead_out_are_counted(tmp_path, write, suffix, name):
    tree = open_archive(write(tmp_path / f"set{suffix}", FILES | {name: image_bytes(9)}))
    assert contents(tree) == FILES
    assert tree.warnings == [f"ignored 1 entry of the archive with unsafe names, first {name}"]


@pytest.mark.parametrize("write, suffix", [(write_zip, ".zip"), (write_tar, ".tar")])
def test_names_from_other_systems_are_paths(tmp_path, write, suffix):
    odd = {"./a/./x.png": image_bytes(1), "a//y.png": image_bytes(2), "a" * 90 + "/é ü.png": image_bytes(3)}
    tree = open_archive(write(tmp_path / f"set{suffix}", odd))
    assert tree.root.image_paths() == ["a/x.png", "a/y.png", "a" * 90 + "/é ü.png"]
    assert list(contents(tree).values()) == list(odd.values())
    if suffix == ".zip":
        windows = open_archive(write(tmp_path / "windows.zip", {"a\\b\\x.png": image_bytes(1)}))
        assert contents(windows) == {"a/b/x.png": image_bytes(1)}


@pytest.mark.parametrize("write, suffix", [(write_zip, ".zip"), (write_tar, ".tar")])
def test_a_thousand_levels_are_no_recursion(tmp_path, write, suffix):
    name = "/".join(["d"] * 3000) + "/x.png"
    tree = open_archive(write(tmp_path / f"set{suffix}", FILES | {name: image_bytes(9)}))
    assert contents(tree)[name] == image_bytes(9)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_entry_of_a_name_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for seed in (1, 2, 3):
            archive.writestr("a/x.png", image_bytes(seed))
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for seed in (1, 2, 3):
            member = tarfile.TarInfo("a/x.png")
            member.size = len(image_bytes(seed))
            archive.addfile(member, io.BytesIO(image_bytes(seed)))
    for name in ("set.zip", "set.tar"):
        tree = open_archive(tmp_path / name)
        assert contents(tree) == {"a/x.png": image_bytes(3)}
        assert tree.warnings == ["ignored 2 entries of the archive whose names occur again later in it"]


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_links_and_devices_in_a_tar_are_counted_and_hard_links_are_read(tmp_path):
    odd = {
        "l": special("a/link.png", tarfile.SYMTYPE, "/etc/passwd"),
        "h": special("a/same.png", tarfile.LNKTYPE, "a/0.png"),
        "n": special("a/none.png", tarfile.LNKTYPE, "../../etc/passwd"),
        "d": special("a/null.png", tarfile.CHRTYPE),
        "f": special("a/pipe.png", tarfile.FIFOTYPE),
    }
    tree = open_archive(write_tar(tmp_path / "set.tar", FILES | odd))
    assert contents(tree) == FILES | {"a/same.png": FILES["a/0.png"]}
    assert tree.warnings == ["ignored 4 entries of the archive that are links or devices"]


def test_links_and_encrypted_entries_in_a_zip_have_their_reason(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a/secret.png", image_bytes(1))
        archive.writestr("a/odd.png", image_bytes(1), zipfile.ZIP_LZMA)
        archive.writestr("a/empty.png", b"")
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # the bit for encryption in both headers
        at = [i for i in range(len(data)) if data[i : i + 4] == signature][1]
        data[at + flags] |= 1
    path.write_bytes(data)
    assert reasons(open_archive(path)) == {
        "a/empty.png": "empty file",
        "a/link.png": "a symbolic link, which is not followed in an archive",
        "a/odd.png": "compressed by the unsupported zip method 14: pack it again with deflate",
        "a/secret.png": "encrypted: unpack the archive with its password",
    }


def test_bombs_and_liars_in_a_zip_are_bounded(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "set.zip", {"a/bomb.png": bytes(5_000_000), "a/liar.png": bytes(300_000)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    struct.pack_into("<I", data, at + 24, 5)  # the size of the second entry
    path.write_bytes(data)
    monkeypatch.setattr(archive_tree, "MAX_BYTES", 1_000_000)
    assert reasons(open_archive(path)) == {
        "a/bomb.png": "file too large: expected at most 1,000,000 bytes, got 5,000,000",
        "a/liar.png": "damaged in the archive: its size or checksum does not match",
    }


@pytest.mark.parametrize("kind", ["zip", "stored.zip", "bzip2.zip"])
def test_any_damaged_byte_of_a_zip_is_one_line_or_an_image_less(tmp_path, kind):
    path = place(tmp_path, FILES, kind)
    good = path.read_bytes()
    for place_ in range(0, len(good), 11):
        data = bytearray(good)
        data[place_] ^= 0xFF
        path.write_bytes(data)
        try:
            read = contents(open_archive(path))
        except InputError as error:
            assert "\n" not in str(error)
            continue
        wrong = {key: value for key, value in read.items() if FILES.get(key) != value}
        assert all(isinstance(value, BadImage) or key not in FILES for key, value in wrong.items()), place_


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_truncated_archive_is_refused(tmp_path, kind):
    path = place(tmp_path, FILES, kind)
    good = path.read_bytes()
    for length in (len(good) // 2 + 100, 700, 100):
        path.write_bytes(good[:length])
        with pytest.raises(InputError, match="Download or create it again") as error:
            open_source(str(path))
        message = str(error.value)
        assert "\n" not in message
        if kind.startswith("tar.") and length > 100:
            assert f"cannot decompress {path}: expected an intact archive, got " in message
        elif length > 100:
            assert f"cannot read the archive {path}: expected an intact archive, got " in message


def test_a_zip_whose_directory_leads_elsewhere_is_damaged(tmp_path):
    path = write_zip(tmp_path / "set.zip", FILES)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 42, 5)  # the place of the first entry
    path.write_bytes(data)
    assert reasons(open_archive(path)) == {"a/0.png": "damaged in the archive: no header at its place"}


def test_a_tar_without_its_end_is_a_warning(tmp_path):
    path = write_tar(tmp_path / "set.tar", FILES)
    path.write_bytes(path.read_bytes()[:4096])
    source = open_source(str(path))
    assert source.count("train") == 4 and source.warnings == ["the archive has no end marker; it may be incomplete"]


def test_a_damaged_header_within_a_tar_loses_nothing_in_silence(tmp_path):
    path = write_tar(tmp_path / "set.tar", FILES)
    data = bytearray(path.read_bytes())
    data[data.index(b"b/0.png")] ^= 1  # its checksum is wrong now
    path.write_bytes(data)
    with pytest.raises(
        InputError,
        match=r"read the archive .*: expected an intact archive, got a damaged header at byte",
    ):
        open_archive(path).root  # noqa: B018
    short = write_tar(tmp_path / "short.tar", {"a/x.png": bytes(5000)})
    short.write_bytes(short.read_bytes()[:3000])
    with pytest.raises(InputError, match="intact archive, got (the end of the file within an entry|unexpected end)"):
        open_archive(short).root  # noqa: B018


@pytest.mark.parametrize(
    "content, got", [(b"", "an empty file"), (b"<html>", "another format"), (b"Rar!\x1a\7", "another")]
)
def test_what_is_no_archive_is_refused_by_its_content(tmp_path, content, got):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=f"expected the content of a zip or tar archive, got {got}"):
        open_source(str(tmp_path / "a.zip"))
    (tmp_path / "b.tgz").mkdir()
    with pytest.raises(InputError, match="cannot read the archive .*: expected a regular file, got a folder. Check"):
        open_archive(tmp_path / "b.tgz")


def test_an_archive_is_opened_by_its_content(tmp_path):
    write_tar(tmp_path / "a.zip", FILES, "w:gz"), write_zip(tmp_path / "b.tar.gz", FILES)
    assert contents(open_archive(tmp_path / "a.zip")) == contents(open_archive(tmp_path / "b.tar.gz")) == FILES


def test_a_compressed_tar_is_decompressed_once_and_says_so(tmp_path, monkeypatch):
    path = place(tmp_path, FILES, "tar.gz")
    monkeypatch.setenv("SKIPWAY_CACHE", str(path))
    with pytest.raises(StorageError, match="cannot decompress .* to .*: (Not a|File ex).*Set SKIPWAY_CACHE to a wr"):
        open_source(str(path))
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    calls, plain = [], decompressed_tar._copy
    monkeypatch.setattr(decompressed_tar, "_copy", lambda *a, **k: calls.append(1) or plain(*a, **k))
    first, second = open_source(str(path)), open_source(str(path))
    assert len(calls) == 1 and first.warnings == second.warnings and list((tmp_path / "cache").iterdir()) == []
    assert first.warnings[0].startswith("decompressed the archive to a temporary file of ")


def test_a_compressed_tar_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "set.tar.gz", {"a/x.png": bytes(3_000_000)}, "w:gz")
    monkeypatch.setattr(decompressed_tar, "_MIN_BOMB", 1_000_000)
    with pytest.raises(InputError, match=r"expected at most 200 times its [\d,]+ bytes, got more. Unpack it yourself"):
        open_source(str(path))
    monkeypatch.undo()
    usage = decompressed_tar.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(decompressed_tar.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match="expected more free space in .* than for its first 3,010,560 bytes. Set"):
        open_source(str(path))
    monkeypatch.undo()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decompressed_tar, "_copy", full)
    with pytest.raises(StorageError, match="No space left on device. Set SKIPWAY_CACHE to a folder on a larger disk"):
        open_source(str(path))


def test_parquet_files_in_an_archive_are_named(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"train.parquet": b"x"})
    with pytest.raises(InputError, match="expected images, got parquet files. Unpack the archive"):
        open_source(str(path))


def test_an_archive_without_images_is_named_with_its_files(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"a.pdf": b"x"})
    with pytest.raises(InputError, match=r"no images \(only other files: 1 .pdf file \(drawing: convert it to"):
        open_source(str(path))
