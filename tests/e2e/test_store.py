"""A night whose data and releases are in a store, and a machine that has nothing but the URL."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.index.shards import INDEX_FILE
from recsys.release.formats import FILES
from recsys.testing import program, world

pytestmark = pytest.mark.e2e


def test_a_night_goes_from_store_to_store_and_is_served_from_there(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.write(tmp_path)
    settings = []
    for key, name in re.findall(r'^(interactions|items) = "(.*)"$', config.read_text(), re.MULTILINE):
        bucket.put(f"in/{name}", (tmp_path / name).read_bytes())
        (tmp_path / name).unlink()
        settings += ["--set", f"data.{key}={bucket.url}/in/{name}"]
    assert len(settings) == 4
    settings += ["--set", f"data.releases={bucket.url}/releases"]

    done = program.run("nightly", "--config", config, *settings, "--json")
    assert done.returncode == 0, done.stderr
    release_id = json.loads(done.stdout)["release_id"]
    prefix = f"releases/{release_id}/"
    there = {name.removeprefix(prefix): bucket.get(name) for name in bucket.names() if name.startswith(prefix)}
    local = Path(json.loads(done.stdout)["path"])
    assert there == {path.name: path.read_bytes() for path in local.iterdir()}
    assert there.keys() == {*FILES, INDEX_FILE, "manifest.json"}

    again = program.run("publish", "--config", config, *settings, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["released_to"] == f"{bucket.url}/releases/{release_id}"

    expected = program.run("similar", "item-3-1", "--k", 4, "--release", local, "--json").stdout
    shutil.rmtree(config.parent / "workspace")
    config.unlink()
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    process = program.start("serve", "--release", f"{bucket.url}/releases/{release_id}", "--port", 0)
    try:
        assert process.stderr is not None
        found = next(found for line in process.stderr if (found := re.search(r"running on (http://[\d.:]+)", line)))
        answer = httpx.get(f"{found.group(1)}/v1/items/item-3-1/similar", params={"k": 4}).json()
    finally:
        process.terminate()
        process.communicate(timeout=program.TIMEOUT_S)
    del answer["next_cursor"]  # the program has no pages
    assert answer == json.loads(expected)
