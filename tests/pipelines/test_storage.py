"""Jobs and commands on a store: the same as on files, and one line where it cannot be."""

import gzip
import json
import random
from urllib.parse import urlparse

import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from recsys import Release
from recsys.config.loading import parse_config
from recsys.errors import InputError
from recsys.release import remote
from tests import GOLDEN_RELEASES, memory_mb
from tests.pipelines.servers import refusing

GOLDEN = GOLDEN_RELEASES / "v2"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    """Films and ratings like MovieLens, over files of all formats, some rows broken; the folder."""
    rng = random.Random(5)  # noqa: S311 - made-up data
    rows = [
        {"user_id": f"{rng.randrange(30)}", "item_id": f"{int(rng.paretovariate(0.6)) % 40}", "timestamp": 8e8 + n}
        for n in range(900)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    pl.DataFrame(rows[:300]).write_parquet(folder / "log-1.parquet", row_group_size=70)
    csv = pl.DataFrame(rows[300:600]).write_csv().replace("\n", "\nshort\n", 3)
    (folder / "log-2.csv.gz").write_bytes(gzip.compress(csv.encode()))
    lines = [json.dumps(row) for row in rows[600:]]
    (folder / "log-3.jsonl").write_text("\n".join([*lines[:100], "{", *lines[100:]]))
    films = [{"item_id": f"{n}", "title": f"Film {n} é", "genres": "Drama|Comedy"} for n in range(38)]
    pl.DataFrame(films).write_csv(folder / "items.csv")
    (folder / "judged.csv").write_text("item_a,item_b,same\n" + "".join(f"{n},{n + 1},{n % 2}\n" for n in range(20)))
    return folder


def prepared(place, workspace, profile="local"):
    context = RunContext.from_config(
        parse_config(
            {
                "data": {
                    "interactions": f"{place}/log-*",
                    "items": f"{place}/items.csv",
                    "labeled_pairs": f"{place}/judged.*",
                    "workspace": str(workspace),
                },
                "items": {"title": "title", "multi_categorical": ["genres"]},
                "prepare": {"max_dead_letter_ratio": 0.2},
                "resources": {"memory_mb": memory_mb(rows=64)},
                "beam": {"profile": profile, "workers": 3},
            }
        )
    )
    return (
        context.run.run_id,
        prepare.prepare(context.config, context.run, context.inputs, context.progress),
        context.run.folder / "prepare",
    )


@pytest.mark.parametrize("profile", ["local", "local-threads"])
def test_what_is_prepared_from_a_store_is_what_is_prepared_from_files(data, bucket, tmp_path, profile):
    """The same run, account and tables; dead letters say where they are."""
    for path in data.iterdir():
        bucket.put(f"in/{path.name}", path.read_bytes())
    run_id, manifest, here = prepared(data, tmp_path / "here")
    assert prepared(f"{bucket.url}/in", tmp_path / "there", profile)[:2] == (run_id, manifest)
    there = tmp_path / "there" / "runs" / run_id / "prepare"
    tables = ["catalog.parquet", "labeled_pairs.parquet", *(f"sequences/{name}" for name in manifest["sequences"])]
    for name in [*tables, *(f"pairs/{name}" for name in manifest["pairs"])]:
        assert pl.read_parquet(there / name).equals(pl.read_parquet(here / name)), name
    letters = [pl.read_parquet(folder / "dead_letters.parquet") for folder in (here, there)]
    assert letters[0].drop("source").equals(letters[1].drop("source"))
    assert letters[0].height > 4
    moved = letters[0]["source"].str.replace(str(data), f"{bucket.url}/in", literal=True)
    assert moved.to_list() == letters[1]["source"].to_list()


def test_a_release_in_a_store_can_be_gone_on_from(data, bucket, tmp_path):
    """It is part of the id of the run, as one of this machine is."""
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")

    def run_id(start):
        names = {"interactions": str(data / "log-*"), "workspace": str(tmp_path / "ws"), **start}
        return RunContext.from_config(parse_config({"data": names})).run.run_id

    assert run_id({"warm_start": url}) == run_id({"warm_start": str(GOLDEN)}) != run_id({})
    with pytest.raises(InputError, match=r"data\.warm_start must be the folder of a release"):
        run_id({"warm_start": f"{bucket.url}/releases"})


# --- through the program


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "none.csv"\n')
    return tmp_path / "recsys.toml"


def assert_refused(outcome, *parts, code=2):
    assert (outcome.exit_code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("error: ")
    for part in parts:
        assert part in outcome.err


def test_input_that_is_not_there_is_refused(program, bucket, settings):
    bucket.put("log.csv", b"user_id,item_id,timestamp\n")
    for url, part in {
        f"{bucket.url}/log-*.csv": "data.interactions must be a file, or a glob that matches files",
        "s3://no-such-bucket/*.csv": "does not exist",
        "s3://key:secret@bucket/*.csv": "a URL must not contain a password. Received: s3://…@bucket/*.csv",
    }.items():
        outcome = program("prepare", "--config", settings, "--set", f"data.interactions={url}")
        assert_refused(outcome, part)
        assert "secret" not in outcome.err


def test_input_that_we_may_not_read_is_refused(program, bucket, settings, s3_server):
    bucket.put("log.csv", b"user_id,item_id,timestamp\n")
    with refusing(s3_server):
        outcome = program("prepare", "--config", settings, "--set", f"data.interactions={bucket.url}/log.csv")
    assert_refused(outcome, f"{bucket.url}/log.csv must exist and be accessible")


@pytest.mark.parametrize(("name", "content"), [("log.csv", b""), ("log.parquet", b"no parquet")])
def test_a_broken_object_is_refused_by_its_url(program, bucket, settings, name, content):
    bucket.put(name, content)
    outcome = program("prepare", "--config", settings, "--set", f"data.interactions={bucket.url}/{name}")
    assert_refused(outcome, f"{bucket.url}/{name} must")


def test_commands_answer_from_a_release_by_its_url(program, bucket):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")
    for command in (["similar", "item-1-1", "--json"], ["verify", "item-1-1", "item-1-2", "--json"]):
        here, there = (program(*command, "--release", place) for place in (GOLDEN, url))
        assert (there.exit_code, there.out, there.err) == (0, here.out, "")
    assert "is undamaged" in program("releases", "check", url).out
    assert json.loads(program("releases", "show", url, "--json").out)["release_id"] == url.rpartition("/")[2]


def test_neighbors_go_from_a_store_to_a_store(program, bucket, settings, tmp_path):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")
    for name in ("neighbors", "neighbors.jsonl"):
        here, there = tmp_path / name, f"{bucket.url}/out/{name}"
        assert program("export", "--config", settings, "--release", GOLDEN, "--to", here).exit_code == 0
        outcome = program("export", "--config", settings, "--release", url, "--to", there)
        assert outcome.exit_code == 0, outcome.err
        assert outcome.out == f"Exported 980 neighbors of 49 items of release 50049176ddac to {there}\n"
        for path in [path for path in tmp_path.glob(f"{name}/**/*") if path.is_file()] or [here]:
            assert bucket.get(f"out/{path.relative_to(tmp_path)}") == path.read_bytes()


def test_a_half_copied_release_is_refused_by_the_program(program, bucket):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")
    bucket.remove(f"{urlparse(url).path[1:]}/index.ann")
    outcome = program("similar", "item-1-1", "--release", url)
    assert_refused(outcome, f"{url} is not usable: bytes of index.ann must be", code=1)
