import errno
import json
import logging
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import huggingface_hub.hf_api
import pytest
from huggingface_hub import close_session, constants
from image_folders import image_bytes, parquet

from skipway.data.images.choose_decode_settings import choose_decode_settings
from skipway.data.images.decoded_cache import decode_images
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.hub import HUB_NAMES, hub_folder
from skipway.errors import InputError, StorageError

pytest.importorskip("pyarrow")

NAMES = ("cat", "dog")
SHA = "0123456789abcdef0123456789abcdef01234567"


class StandIn(ThreadingHTTPServer):
    """Answers for the Hub what a download asks, from {(repository, revision): {path: bytes}}; counts the requests."""

    daemon_threads = False  # `server_close` waits for them: one that outlives the tests would abort the interpreter

    def __init__(self, repositories):
        self.repositories, self.asked, self.cut = repositories, [], False
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *said):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        path = unquote(urlsplit(self.path).path).removeprefix("/api").removeprefix("/datasets/")
        self.server.asked.append(f"{self.command} {path}")
        for (repository, revision), files in self.server.repositories.items():
            commit = SHA if revision == "main" else SHA[::-1]
            if path == f"{repository}/revision/{revision}":
                return self.give({"id": repository, "sha": commit, "siblings": [{"rfilename": f} for f in files]})
            if path == f"{repository}/tree/{commit}":
                listed = [{"type": "file", "path": f, "size": len(d), "oid": "0" * 40} for f, d in files.items()]
                return self.give(listed)
            for name, data in files.items():
                if path == f"{repository}/resolve/{commit}/{name}":
                    return self.give(data, commit, body)
        known = any(path.startswith(f"{repository}/") for repository, _ in self.server.repositories)
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def give(self, content, commit="", body=True):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        cut = self.server.cut and isinstance(content, bytes)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json" if not commit else "application/octet-stream")
        if commit:
            self.send_header("ETag", f'"{len(data):040x}"')
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)


def small_set(folder, *splits, names=NAMES):
    return {
        f"{folder}{split}": parquet_bytes([i % len(names) for i in range(6)], names, seed)
        for seed, split in enumerate(splits)
    }


def parquet_bytes(labels, names, seed):
    with tempfile.TemporaryDirectory() as folder:
        return parquet(Path(folder, "x.parquet"), labels, names, seed=seed).read_bytes()


REPOSITORIES = {
    ("uoft-cs/cifar10", "main"): {
        "README.md": b"#",
        **small_set("plain_text/", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    },
    ("ylecun/mnist", "main"): small_set("mnist/", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    ("frgfm/imagenette", "main"): {"imagenette.py": b"raise SystemExit"},
    ("frgfm/imagenette", "refs/convert/parquet"): {
        **small_set("160px/", "train/0000.parquet", "validation/0000.parquet"),
        **small_set("full_size/", "train/0000.parquet"),
    },
    ("some/images", "main"): {"a/1.jpg": b"jpeg"},
    ("some/images", "refs/convert/parquet"): small_set("default/", "train/0000.parquet"),
    ("some/text", "main"): {"a.txt": b"text"},
    ("some/two", "main"): {**small_set("small/", "train-0.parquet"), **small_set("large/", "train-0.parquet")},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    close_session()
    yield tmp_path / "cache"
    close_session()


@pytest.fixture
def hub(cache, monkeypatch):
    server = StandIn(REPOSITORIES)
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield server
    server.stop()


def point_to(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)


@pytest.mark.parametrize(
    "data, splits, mirrored",
    [
        ("cifar10", ["train", "test"], True),
        ("mnist", ["train", "test"], False),
        ("imagenette", ["train", "val"], True),
        ("hf:uoft-cs/cifar10", ["train", "test"], True),
        ("hf:ylecun/mnist", ["train", "test"], False),
        ("hf:some/images", ["train"], True),
        ("hf:some/two/large", ["train"], True),
    ],
)
def test_a_set_of_the_hub_is_downloaded_and_ready_to_train_on(hub, data, splits, mirrored):
    source = open_source(data)
    assert list(source.keys) == splits and source.mirrored == mirrored and source.class_names == NAMES
    packed = decode_images(source, choose_decode_settings(source, None, "squash", 10**6))
    assert packed.pixels.shape == (6 * len(splits), 8, 8, 3) and not packed.skipped
    assert next(iter(source.contents("train"))) == image_bytes(0)


def test_only_the_files_that_are_needed_are_downloaded(hub):
    open_source("imagenette")
    assert {a.split("/")[-1] for a in hub.asked if "/resolve/" in a} == {"0000.parquet"}
    assert not [a for a in hub.asked if "full_size" in a or "imagenette.py" in a]


@pytest.mark.parametrize("data", ["cifar10", "hf:some/images"])
def test_a_second_call_works_without_the_hub(hub, data, monkeypatch):
    first = open_source(data)
    hub.stop()
    naps = []
    monkeypatch.setattr("time.sleep", naps.append)
    second = open_source(data)
    assert sum(naps) < 5
    assert second.keys == first.keys and list(second.contents("train")) == list(first.contents("train"))


def test_without_cache_and_network_one_line_says_so_quickly(cache, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    naps = []
    monkeypatch.setattr("time.sleep", naps.append)
    with pytest.raises(InputError, match="cannot download the dataset .*Check the connection and try again.*digits"):
        open_source("cifar10")
    assert sum(naps) < 5


def test_offline_mode_is_respected(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot download the dataset ylecun/mnist: OfflineModeIsEnabled"):
        open_source("mnist")


def test_an_unknown_repository_is_named(hub):
    with pytest.raises(
        InputError, match="cannot access the Hub dataset some/thing: it does not exist or is private. Check the name"
    ):
        open_source("hf:some/thing")


@pytest.mark.parametrize("name", ["hf:", "hf:alone", "hf:a b/c", "hf:../../x/y", "hf:/x", "hf:x/", "hf:a/\x1b[2J"])
def test_what_is_no_name_of_a_repository_is_refused_without_asking(hub, name):
    with pytest.raises(InputError, match="expected hf:org/name. Write the name as") as error:
        open_source(name)
    assert not hub.asked and "\x1b" not in str(error.value)


def test_a_repository_without_parquet_files_is_named(hub):
    with pytest.raises(InputError, match="some/text: expected parquet files, found none. Download its images"):
        open_source("hf:some/text")
    with pytest.raises(InputError, match="cannot use the Hub dataset some/two/medium: expected parquet"):
        open_source("hf:some/two/medium")


def test_several_sets_in_one_repository_are_named(hub):
    with pytest.raises(InputError, match=r"expected one dataset, got several \(large, small\).*hf:org/name/folder"):
        open_source("hf:some/two")


def test_an_interrupted_download_leaves_nothing_that_looks_whole(hub, cache, monkeypatch):
    naps = []
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", naps.append)
    hub.cut = True
    with pytest.raises(InputError, match="cannot download the dataset") as error:
        open_source("cifar10")
    assert "\n" not in str(error.value) and len(naps) <= 12
    assert not list((cache / "datasets--uoft-cs--cifar10").rglob("*.parquet"))
    hub.cut = False
    assert open_source("cifar10").count("train") == 6, "the next try goes on from there"


def test_a_full_disk_is_a_matter_of_storage(cache, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(
        StorageError, match="cannot store the dataset .*: No space left on device. Free disk space, or set HF_HOME"
    ):
        hub_folder("cifar10")


def test_the_library_logs_as_before_afterwards(hub):
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        hub_folder("mnist")
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_the_table_names_repositories_and_folders():
    for repository, revision, folder in HUB_NAMES.values():
        assert repository.count("/") == 1 and revision in ("main", "refs/convert/parquet") and folder
