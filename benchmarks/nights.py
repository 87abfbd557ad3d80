"""Measure nightly runs: growth with the catalog, the cost of several data sets in one shop, and that of each stage.

    python -m benchmarks.nights [--items N …] [--datasets FOLDER] [--json OUT]

Each run is `recsys nightly` in a process of its own, with the default settings and an empty workspace. It is measured
in wall time; the time of the stages is what the run reports.

- `synthetic`: catalogs of `--items` items with 15 interactions an item. Users like items of a few groups.
- `movielens-100k`: the demo.
- `beauty` and `shop`: files of `--datasets` as `benchmarks.quality` reads them, `NAME.sequences.txt` and
  `NAME.item_attributes.json`. The shop is the union of Amazon Beauty, Amazon Toys and Last.fm, with a letter before
  each id, so that they have neither users nor items in common.

`system_share` is the share of system time in the CPU time of `recsys train` on Amazon Beauty.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import FIGURES, parser, temporary_folder, write
from recsys.data import datasets
from recsys.errors import InputError
from recsys.testing import synthetic
from recsys.testing.program import RECSYS

ITEMS = (20_000, 100_000, 500_000)
ROWS_PER_ITEM = 15
SETS = {"b": "beauty", "t": "toys", "l": "lastfm"}
"""Letter before the ids of a data set -> its name."""


def run_command(*arguments: str) -> tuple[str, dict[str, float]]:
    """Run `recsys` in a process of its own, and return its output with `wall_s`, `cpu_s`, `system_s`, `peak_mib`."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([RECSYS, *arguments], stdout=output)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this process and its children alone
        output.seek(0)
        text = output.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, text)
    return text, {
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "system_s": round(usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def night(config: Path) -> dict[str, Any]:
    """Run a night, and return what it took, with `seconds` of each stage, `interactions` and `items`."""
    output, usage = run_command("nightly", "--config", str(config), "--json")
    summary = json.loads(output.splitlines()[-1])
    (manifest,) = (config.parent / "workspace" / "runs").glob("*/prepare/_MANIFEST.json")
    prepared = json.loads(manifest.read_text(encoding="utf-8"))
    sizes = {"interactions": prepared["account"]["interactions"]["read"], "items": prepared["num_items"]}
    figures = {**sizes, **usage, "outcome": summary["outcome"], "seconds": summary["seconds"]}
    print(json.dumps(figures), flush=True)
    return figures


def synthetic_nights(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Return the nights of synthetic catalogs, and the time per item relative to the first of them."""
    nights = []
    for items in sizes:
        config = synthetic.shop(folder / f"items-{items}", items, ROWS_PER_ITEM)
        nights.append(night(config))
    per_item = [figures["wall_s"] / figures["items"] for figures in nights]
    return {"nights": nights, "growth": [each / per_item[0] for each in per_item]}


def write_shop(datasets_folder: Path, folder: Path) -> Path:
    """Write the union of the data sets, and return the path of its config."""
    lines: list[str] = []
    attributes: dict[str, list[str]] = {}
    for letter, name in SETS.items():
        sequences, items = _files(datasets_folder, name)
        lines += [
            " ".join(letter + word for word in line.split()) for line in sequences.read_text("utf-8").splitlines()
        ]
        of_item: Mapping[str, Sequence[Any]] = json.loads(items.read_text("utf-8"))
        attributes |= {letter + item: [f"{letter}{value}" for value in values] for item, values in of_item.items()}
    folder.mkdir()
    (folder / "sequences.txt").write_text("\n".join(lines), "utf-8")
    (folder / "attributes.json").write_text(json.dumps(attributes), "utf-8")
    return datasets.sequences(folder / "sequences.txt", folder / "attributes.json", folder)


def _files(datasets_folder: Path, name: str) -> tuple[Path, Path]:
    paths = datasets_folder / f"{name}.sequences.txt", datasets_folder / f"{name}.item_attributes.json"
    if not all(path.exists() for path in paths):
        raise InputError(f"--datasets must contain {paths[0].name} and {paths[1].name}. Received: {datasets_folder}.")
    return paths


def shop_nights(datasets_folder: Path, folder: Path) -> dict[str, Any]:
    """Return the nights of Amazon Beauty and of the shop, and their ratio per interaction."""
    beauty = night(datasets.sequences(*_files(datasets_folder, "beauty"), folder / "beauty"))
    shop = night(write_shop(datasets_folder, folder / "shop"))
    ratio = (shop["wall_s"] / shop["interactions"]) / (beauty["wall_s"] / beauty["interactions"])
    share = beauty["seconds"]["evaluate"] / beauty["wall_s"]
    return {"beauty": beauty, "shop": shop, "ratio_per_interaction": ratio, "evaluate_share": share}


def system_share(datasets_folder: Path, folder: Path) -> float:
    """Return the share of system time in the CPU time of `recsys train` on Amazon Beauty."""
    config = datasets.sequences(*_files(datasets_folder, "beauty"), folder / "system")
    run_command("prepare", "--config", str(config))
    _, usage = run_command("train", "--config", str(config))
    return usage["system_s"] / usage["cpu_s"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--items", type=int, nargs="*", default=ITEMS, help="sizes of the synthetic catalogs")
    options.add_argument("--datasets", type=Path, help="folder with the files of the data sets")
    arguments = options.parse_args(argv)
    figures: dict[str, Any] = {}
    with temporary_folder() as folder:
        figures["movielens-100k"] = night(datasets.movielens_100k(folder / "movielens"))
        if arguments.datasets:
            figures |= shop_nights(arguments.datasets, folder)
            figures["system_share"] = system_share(arguments.datasets, folder)
        if arguments.items:
            figures["synthetic"] = synthetic_nights(folder, arguments.items)
        write(figures, arguments.json)


if __name__ == "__main__":
    main()
