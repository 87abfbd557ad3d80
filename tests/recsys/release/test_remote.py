"""Releases in object storage: upload, download, and rejection of damaged releases."""

import json
import shutil
from pathlib import Path

import pytest

from recsys import Release
from recsys.errors import InputError, ReleaseError
from recsys.index.shards import INDEX_FILE
from recsys.release import remote
from recsys.release.formats import EMBEDDINGS, MANIFEST
from recsys.retrieval.query import Query, WeightedItem
from recsys.testing.sink_contract import list_files
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v2"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def release():
    return Release.load(GOLDEN)


@pytest.fixture
def url(bucket, release):
    """URL of an uploaded release."""
    return remote.upload(release, f"{bucket.url}/releases")


def edit(bucket, name, change):
    """Change the manifest of an uploaded release."""
    manifest = json.loads(bucket.get(f"releases/{name}/{MANIFEST}"))
    change(manifest)
    bucket.put(f"releases/{name}/{MANIFEST}", json.dumps(manifest).encode())


def test_uploaded_files_are_identical(bucket, release, url):
    assert url == f"{bucket.url}/releases/{release.release_id}"
    prefix = f"releases/{release.release_id}/"
    assert {name.removeprefix(prefix): bucket.get(name) for name in bucket.names()} == {
        path.name: path.read_bytes() for path in GOLDEN.iterdir()
    }


def test_downloaded_release_returns_the_same_results(release, url, cache):
    fetched = remote.load(url)
    assert fetched.manifest == release.manifest
    assert fetched.similar("item-1-1") == release.similar("item-1-1")
    assert [path for path in cache.iterdir() if path != fetched.path] == []


def test_release_with_two_spaces_is_uploaded_and_downloaded(bucket, write_release, cache):
    release = Release.load(write_release(["a", "b", "c", "d"], spaces=("next", "similar")))
    url = remote.upload(release, f"{bucket.url}/releases")
    prefix = f"releases/{release.release_id}/"
    expected = {name: (release.path / name).read_bytes() for name in (MANIFEST, *release.manifest.files)}
    assert {f"{space}/{EMBEDDINGS}" for space in ("next", "similar")} < set(expected)
    assert {name.removeprefix(prefix): bucket.get(name) for name in bucket.names()} == expected
    fetched = remote.load(url)
    assert fetched.path.parent == cache
    assert list_files(fetched.path) == sorted(expected)
    for sense in ("next", "similar"):
        query = Query(items=(WeightedItem("a"),), sense=sense)
        assert fetched.search(query) == release.search(query)


def test_release_is_downloaded_once(bucket, release, url):
    first = remote.load(url)
    bucket.remove(f"releases/{release.release_id}/{INDEX_FILE}")
    assert remote.load(url).path == first.path


def test_replaced_release_at_the_same_url_is_downloaded(bucket, release, url, write_release):
    remote.load(url)
    replacement = Release.load(write_release(["a", "b", "c"]))
    for name in (MANIFEST, *replacement.manifest.files):
        bucket.put(f"releases/{release.release_id}/{name}", (replacement.path / name).read_bytes())
    assert remote.load(url).manifest == replacement.manifest


def test_local_release_is_not_copied(cache):
    assert remote.load(str(GOLDEN)).path == GOLDEN
    assert not cache.exists()


def test_uploads_to_a_local_folder(release, tmp_path):
    path = remote.upload(release, str(tmp_path / "share"))
    assert Path(path).parent == tmp_path / "share"
    assert Release.load(path).manifest == release.manifest


# --- upload


def test_existing_release_is_not_uploaded_again(bucket, release, url):
    edit(bucket, release.release_id, lambda manifest: manifest.update(created_at="2020-01-01T00:00:00+00:00"))
    files_before = {name: bucket.get(name) for name in bucket.names()}
    assert remote.upload(release, f"{bucket.url}/releases") == url
    assert {name: bucket.get(name) for name in bucket.names()} == files_before


@pytest.mark.parametrize("existing", ["another release", "no manifest"])
@pytest.mark.usefixtures("url")
def test_another_release_with_the_same_id_is_not_overwritten(bucket, release, existing):
    if existing == "another release":
        edit(bucket, release.release_id, lambda manifest: manifest["files"][INDEX_FILE].update(sha256="0" * 64))
    else:
        bucket.put(f"releases/{release.release_id}/{MANIFEST}", b"{")
    files_before = {name: bucket.get(name) for name in bucket.names()}
    with pytest.raises(ReleaseError, match=rf"{release.release_id} must not be overwritten"):
        remote.upload(release, f"{bucket.url}/releases")
    assert {name: bucket.get(name) for name in bucket.names()} == files_before


def test_incomplete_upload_is_rejected_and_can_be_completed(bucket, release, url):
    """The manifest is uploaded last; without it, some files can exist, complete or from an earlier attempt."""
    bucket.remove(f"releases/{release.release_id}/{MANIFEST}")
    bucket.put(f"releases/{release.release_id}/{EMBEDDINGS}", b"of an earlier attempt")
    bucket.remove(f"releases/{release.release_id}/{INDEX_FILE}")
    with pytest.raises(ReleaseError, match=rf"must be a folder with a {MANIFEST}. Received: {url}"):
        remote.load(url)
    remote.upload(release, f"{bucket.url}/releases")
    assert remote.load(url).manifest == release.manifest


def test_manifest_is_uploaded_last(tmp_path, bucket):
    """If a file disappears during the upload, no manifest is written."""
    shutil.copytree(GOLDEN, tmp_path / "release")
    damaged = Release.load(tmp_path / "release")
    (tmp_path / "release" / list(damaged.manifest.files)[-1]).unlink()
    with pytest.raises(InputError, match="must exist"):
        remote.upload(damaged, f"{bucket.url}/releases")
    assert bucket.names()
    assert not [name for name in bucket.names() if name.endswith(MANIFEST)]


# --- download


def test_rejects_a_release_with_a_missing_file(bucket, release, url, cache):
    bucket.remove(f"releases/{release.release_id}/{INDEX_FILE}")
    with pytest.raises(ReleaseError, match=rf"{url} .*: bytes of {INDEX_FILE} must be \d+. Received: no such"):
        remote.load(url)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"x"])
def test_rejects_a_file_of_another_size_before_the_download(bucket, release, url, cache, damage):
    name = f"releases/{release.release_id}/{INDEX_FILE}"
    bucket.put(name, damage(bucket.get(name)))
    with pytest.raises(ReleaseError, match=rf"bytes of {INDEX_FILE} must be"):
        remote.load(url)
    assert list(cache.iterdir()) == []


def test_rejects_a_file_with_one_changed_byte(bucket, release, url, cache):
    name = f"releases/{release.release_id}/{EMBEDDINGS}"
    content = bytearray(bucket.get(name))
    content[-7] ^= 1
    bucket.put(name, bytes(content))
    with pytest.raises(ReleaseError, match=rf"{url} is not usable: .*SHA-256 of {EMBEDDINGS}"):
        remote.load(url)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "other/x", "next/../x", "next/a/b", "next/", "..", "."])  # noqa: S108
def test_rejects_a_manifest_that_names_files_outside_its_folder(bucket, release, url, tmp_path, name):
    entry = {"bytes": 1, "sha256": "0" * 64}
    edit(bucket, release.release_id, lambda manifest: manifest.update(files={name: entry, **manifest["files"]}))
    bucket.put("releases/x", b"x")
    with pytest.raises(ReleaseError, match="must be plain names"):
        remote.load(url)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 99}', b"\xff"])
def test_rejects_an_invalid_manifest(bucket, release, url, cache, content):
    bucket.put(f"releases/{release.release_id}/{MANIFEST}", content)
    with pytest.raises(ReleaseError, match=rf"{url} is not usable"):
        remote.load(url)
    assert list(cache.iterdir()) == []


def test_default_cache_is_in_the_cache_folder_of_the_user(url, tmp_path, monkeypatch):
    monkeypatch.delenv("RECSYS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert remote.load(url).path.parent == tmp_path / "xdg" / "recsys" / "releases"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert remote.load(url).path.parent == tmp_path / "home" / ".cache" / "recsys" / "releases"
