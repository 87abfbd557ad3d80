"""Converters of public data sets to interactions and items as Parquet, with a matching config."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter, ValidationError

from recsys.data.film_series import FILM_SERIES
from recsys.errors import InputError

RECBOLE = "recbole==1.2.1"
"""A wheel on PyPI that contains MovieLens 100k (Harper and Konstan, 2015). It is read but not installed."""
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MOVIELENS_FOLDER = "recbole/dataset_example/ml-100k"
MOVIELENS_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
DOWNLOAD_TIMEOUT_S = 300

INTERACTIONS, ITEMS, CONFIG = "interactions.parquet", "items.parquet", "recsys.toml"
ITEM_GROUPS = "film_series.json"


def movielens_100k(output: Path) -> Path:
    """Download MovieLens 100k with pip, and write interactions, items, groups of items and a config to `output`.

    The groups are film series, by which the reports judge the neighbors of similar items.

    Every rating counts as an interaction, regardless of its value, as in the protocol of published results.

    Returns:
        Path of the config.

    Raises:
        InputError: the data cannot be downloaded or written, or their checksum differs.
    """
    files = _movielens_files()
    table = {"separator": "\t", "quote_char": None, "infer_schema": False}
    interactions = pl.read_csv(files["ml-100k.inter"], **table)  # type: ignore[arg-type]
    items = pl.read_csv(files["ml-100k.item"], **table)  # type: ignore[arg-type]
    return _write(
        output,
        interactions.select(
            user_id="user_id:token", item_id="item_id:token", timestamp=pl.col("timestamp:float").cast(pl.Float64)
        ),
        items.select(
            item_id="item_id:token",
            title="movie_title:token_seq",
            genres=pl.col("class:token_seq").str.split(" "),
            year=pl.col("release_year:token").cast(pl.Int32, strict=False),
        ),
        '[items]\ntitle = "title"\nmulti_categorical = ["genres"]\nnumeric = ["year"]\n',
        groups=FILM_SERIES,
    )


def sequences(file: Path, attributes: Path | None, output: Path) -> Path:
    """Convert a file of sequences, and write interactions, items and a config to `output`.

    Args:
        file: one user per line, `user item item item …`, oldest first. The position becomes the timestamp.
        attributes: JSON, item id to a list of attribute ids.
        output: folder to write to.

    Returns:
        Path of the config.

    Raises:
        InputError: a file is missing, empty or has another format.
    """
    lines = pl.DataFrame({"line": _text(file, "sequences").splitlines()}, schema={"line": pl.String})
    words = lines.select(pl.col("line").str.extract_all(r"\S+")).filter(pl.col("line").list.len() > 1)
    if words.height == 0:
        raise InputError(f"sequences must have lines like 'user item item …'. Received: none in {file}.")
    interactions = (
        words.select(user_id=pl.col("line").list.first(), item_id=pl.col("line").list.slice(1))
        .explode("item_id")
        .with_columns(timestamp=pl.int_range(pl.len()).over("user_id").cast(pl.Float64))
    )
    items = interactions.select(pl.col("item_id").unique().sort())
    roles = ""
    if attributes is not None:
        item_attributes = _attributes(attributes)
        items = items.join(item_attributes, on="item_id", how="full", coalesce=True).sort("item_id")
        roles = '[items]\nmulti_categorical = ["attributes"]\n'
    return _write(output, interactions, items, roles)


def _write(
    output: Path,
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    roles: str,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    alike = "" if groups is None else f'alike = "{ITEM_GROUPS}"\n'
    paths = f'[data]\ninteractions = "{INTERACTIONS}"\nitems = "{ITEMS}"\n{alike}workspace = "workspace"\n'
    try:
        output.mkdir(parents=True, exist_ok=True)
        interactions.write_parquet(output / INTERACTIONS)
        items.write_parquet(output / ITEMS)
        if groups is not None:
            (output / ITEM_GROUPS).write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
        (output / CONFIG).write_text(f"{paths}\n{roles}".strip() + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"output must be a writable folder. Received {output}: {error}.") from None
    return output / CONFIG


def _movielens_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        try:
            subprocess.run(
                [*command, "--dest", folder, RECBOLE],
                check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise InputError(f"{RECBOLE} must be downloadable with pip. Received: {error.stderr.strip()}") from None
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{RECBOLE} must be downloadable with pip. Received: no response in {DOWNLOAD_TIMEOUT_S} s."
            ) from None
        wheel = next(Path(folder).glob("*.whl")).read_bytes()
    _verify("wheel of " + RECBOLE, wheel, RECBOLE_SHA256)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        files = {name: archive.read(f"{MOVIELENS_FOLDER}/{name}") for name in MOVIELENS_SHA256}
    for name, content in files.items():
        _verify(name, content, MOVIELENS_SHA256[name])
    return files


def _verify(name: str, content: bytes, expected: str) -> None:
    received = hashlib.sha256(content).hexdigest()
    if received != expected:
        raise InputError(f"{name} must have the SHA-256 {expected}. Received: {received}.")


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} must be a text file. Received {path}: {error}.") from None


def _attributes(path: Path) -> pl.DataFrame:
    try:
        attributes = TypeAdapter(dict[str, list[str | int]]).validate_json(_text(path, "attributes"))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"attributes must be JSON like {{item: [attribute, …]}}. Received {path}: "
            f"{first['msg']} at {'.'.join(str(part) for part in first['loc']) or 'the top'}."
        ) from None
    columns = {"item_id": list(attributes), "attributes": [[str(v) for v in values] for values in attributes.values()]}
    return pl.DataFrame(columns, schema={"item_id": pl.String, "attributes": pl.List(pl.String)})
