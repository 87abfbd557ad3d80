"""The same operations on paths and URLs; the S3 server is inspected with another library."""

import hashlib
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from recsys.data import storage
from recsys.data.storage import sha256
from recsys.errors import ConfigError, InputError, RecsysError
from recsys.release.runs import data_snapshot
from tests.pipelines.servers import refusing


class Folder:
    """The interface of the `bucket` fixture, for a folder."""

    def __init__(self, path):
        self.path = path
        self.url = str(path)

    def put(self, name, content):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(content)

    def get(self, name):
        return (self.path / name).read_bytes()

    def names(self):
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    """A local folder or a bucket, with methods to inspect it."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else Folder(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("log/*.csv", ["log/1.csv", "log/10.csv", "log/2.csv"]),
        ("log/?.csv", ["log/1.csv", "log/2.csv"]),
        ("**/*.csv", ["log/1.csv", "log/10.csv", "log/2.csv", "log/old/3.csv"]),
        ("log/2.csv", ["log/2.csv"]),
        ("log/[x] ü.txt", ["log/[x] ü.txt"]),
        ("log", []),
        ("none*", []),
    ],
)
def test_glob_matches_the_same_files_in_every_store(store, pattern, names):
    for name in ["log/10.csv", "log/2.csv", "log/1.csv", "log/old/3.csv", "log/[x] ü.txt"]:
        store.put(name, b"x")
    assert storage.locate(f"{store.url}/{pattern}").list_files() == [f"{store.url}/{name}" for name in names]


def test_listing_is_not_cached(store):
    assert storage.locate(f"{store.url}/log/*").list_files() == []
    assert not storage.locate(f"{store.url}/log/1").exists()
    store.put("log/1", b"x")
    assert storage.locate(f"{store.url}/log/*").list_files() == [f"{store.url}/log/1"]
    assert storage.locate(f"{store.url}/log/1").exists()
    assert storage.locate(f"{store.url}/log").list_names() == ["1"]


def test_file_of_many_blocks_is_read_and_seekable(store):
    content = os.urandom(20 << 20)
    store.put("large", content)
    location = storage.locate(store.url) / "large"
    assert location.size() == len(content)
    assert sha256(location.name) == hashlib.sha256(content).hexdigest()
    with location.open() as file:
        file.seek(-5, os.SEEK_END)
        assert (file.read(), file.tell()) == (content[-5:], len(content))
        file.seek(9 << 20)
        assert file.read(100) == content[9 << 20 : (9 << 20) + 100]


def test_write_copy_commit_and_remove(store, tmp_path):
    spare = tmp_path / "spare"
    spare.mkdir()
    (spare / "file").write_bytes(b"copied")
    location = storage.locate(store.url) / "out" / "a"
    location.write_bytes(b"old")
    location.write_bytes(b"written")
    (storage.locate(store.url) / "out" / "deep" / "b").copy_from(spare / "file")
    target = storage.locate(f"{store.url}/out/c")
    draft = target.draft(spare)
    draft.write_bytes(b"committed")
    target.commit(draft)
    (spare / "file").unlink()
    assert {name: store.get(name) for name in store.names()} == {
        "out/a": b"written",
        "out/deep/b": b"copied",
        "out/c": b"committed",
    }
    assert storage.locate(f"{store.url}/out").list_names() == ["a", "c", "deep"]
    storage.locate(f"{store.url}/out/deep").remove()
    assert store.names() == ["out/a", "out/c"]
    assert list(spare.iterdir()) == []


def test_interrupted_atomic_write_keeps_the_previous_file(tmp_path):
    path = tmp_path / "new folder" / "file"
    with storage.atomic_write(path) as draft:
        draft.write_text("first")
        assert not path.exists()
    with suppress(KeyboardInterrupt), storage.atomic_write(path) as draft:
        draft.write_text("incomplete")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    with storage.atomic_write(path) as draft:
        draft.write_text("second")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"file": "second"}


def test_folder_may_contain_a_folder_of_the_same_name(store):
    store.put("out/out/a", b"x")
    assert storage.locate(f"{store.url}/out").list_names() == ["out"]


def test_object_for_the_prefix_itself_is_not_listed(bucket):
    """Consoles of object stores create such objects for empty folders."""
    bucket.put("out/", b"")
    bucket.put("out/a", b"x")
    assert storage.locate(f"{bucket.url}/out").list_names() == ["a"]


def test_data_snapshot_depends_on_content_and_not_on_the_location(bucket, tmp_path):
    (tmp_path / "one").write_text("1")
    bucket.put("two", b"1")
    here = data_snapshot({"interactions": [str(tmp_path / "one")]})
    assert data_snapshot({"interactions": [f"{bucket.url}/two"]}) == here
    bucket.put("two", b"2")
    assert data_snapshot({"interactions": [f"{bucket.url}/two"]}) != here


# --- errors: one line each


def assert_one_line(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    assert caught.value.__suppress_context__


OPERATIONS = {
    "list_files": lambda location: location.list_files(),
    "exists": lambda location: location.exists(),
    "size": lambda location: location.size(),
    "open": lambda location: location.open(),
    "list_names": lambda location: location.list_names(),
    "write_bytes": lambda location: location.write_bytes(b"x"),
    "copy_from": lambda location: location.copy_from(Path(__file__)),
    "remove": lambda location: location.remove(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("bucket")
def test_missing_bucket(operation):
    with pytest.raises(InputError) as caught:
        OPERATIONS[operation](storage.locate("s3://no-such-bucket/log.csv"))
    assert_one_line(caught, "s3://no-such-bucket/log.csv must exist and be accessible", "does not exist", "credentials")


def test_missing_object(bucket):
    with pytest.raises(InputError) as caught:
        storage.locate(f"{bucket.url}/none.csv").open()
    assert_one_line(caught, f"{bucket.url}/none.csv must exist")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_access_denied(bucket, operation):
    """The server now checks permissions, and the test key has none."""
    bucket.put("log.csv", b"x")
    with refusing(os.environ["AWS_ENDPOINT_URL"]), pytest.raises(InputError) as caught:
        OPERATIONS[operation](storage.locate(f"{bucket.url}/log.csv"))
    assert_one_line(caught, f"{bucket.url}/log.csv must exist and be accessible", "credentials in the environment")


def test_missing_credentials(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(InputError) as caught:
        storage.locate(f"{bucket.url}/log.csv").exists()
    assert_one_line(caught, "redentials")


def test_object_removed_while_it_is_read(bucket):
    bucket.put("large", bytes(20 << 20))
    with storage.locate(f"{bucket.url}/large").open() as file:
        file.read(1)
        bucket.remove("large")
        with pytest.raises(InputError) as caught:
            file.read()
    assert_one_line(caught, f"{bucket.url}/large must exist")


@pytest.mark.parametrize(
    ("url", "library", "remedy"),
    [
        ("s3://bucket/x", "s3fs", "Install recsys[s3]"),
        ("gs://bucket/x", "gcsfs", "Install recsys[gs]"),
        ("s3://bucket/x", "fsspec", "Install recsys[s3]"),
    ],
)
def test_missing_library_names_the_extra(monkeypatch, url, library, remedy):
    monkeypatch.setitem(sys.modules, library, None)
    if library != "fsspec":  # fsspec remembers classes that it has imported
        registry = import_module("fsspec.registry")._registry
        monkeypatch.delitem(registry, url.partition(":")[0], raising=False)
    with pytest.raises(ConfigError) as caught:
        storage.locate(url).list_files()
    assert_one_line(caught, url.partition(":")[0], remedy)


def test_unsupported_scheme():
    with pytest.raises(ConfigError) as caught:
        storage.locate("nosuch://bucket/x").list_files()
    assert_one_line(caught, "nosuch://bucket/x", "fsspec supports")


@pytest.mark.parametrize("url", ["s3://key:se%25cret@bucket/x", "ftp://me:se%25cret@host/log*.csv"])
def test_rejects_password_in_url_without_showing_it(url):
    with pytest.raises(RecsysError) as caught:
        storage.locate(url)
    assert type(caught.value) is ConfigError
    assert "cret" not in str(caught.value)
    assert "environment" in str(caught.value)


def test_local_path_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    (tmp_path / "file").write_text("x")
    assert storage.locate(str(tmp_path / "*")).list_files() == [str(tmp_path / "file")]
    assert sha256(tmp_path / "file") == hashlib.sha256(b"x").hexdigest()


def test_map_array_is_read_only_and_rejects_other_files(tmp_path):
    np.save(tmp_path / "array.npy", np.arange(6).reshape(2, 3))
    array = storage.map_array(tmp_path / "array.npy", "embeddings")
    assert isinstance(array, np.memmap)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not array.flags.writeable
    (tmp_path / "text.npy").write_text("no array")
    for name in ("text.npy", "missing.npy"):
        with pytest.raises(InputError, match=r"embeddings must be a \.npy file\. Received"):
            storage.map_array(tmp_path / name, "embeddings")
