"""Run the benchmarks one after the other, and compare their figures with the targets of docs/benchmarks.md.

    python -m benchmarks --folder OUT [--datasets FOLDER] [--only NAME …]

Each benchmark runs in a process of its own and writes OUT/NAME.json. Run the same command again after an interruption:
benchmarks that have already been measured in this version are not repeated. At the end, OUT/figures.json has all
figures with a target, and OUT/growth.svg shows the growth of a night and of its stages with the catalog.

Nothing else should run meanwhile. All benchmarks together take several hours on 2 cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import growth_plot
from benchmarks.command import parser, temporary_folder, write
from benchmarks.targets import PUBLISHED, targets_of
from recsys.data import datasets
from recsys.errors import InputError
from recsys.release.runs import code_version

ALONE = ("speed", "scale", "memory", "service")
"""Benchmarks without data sets."""
WIDTH = 72


def commands(folder: Path, datasets_folder: Path | None) -> dict[str, list[str]]:
    """Return the arguments of each benchmark, by its name in the results."""
    benchmarks = {name: [f"benchmarks.{name}"] for name in ALONE}
    nights = ["benchmarks.nights"]
    benchmarks["nights"] = nights
    if datasets_folder is None:
        return benchmarks
    nights += ["--datasets", str(datasets_folder)]
    for name in PUBLISHED:
        sequences, attributes = (
            datasets_folder / f"{name}.{part}" for part in ("sequences.txt", "item_attributes.json")
        )
        config = datasets.sequences(sequences, attributes, folder / "data" / name)
        files = ["--sequences", str(sequences), "--attributes", str(attributes)]
        benchmarks[f"quality-{name}"] = ["benchmarks.quality", *files]
        benchmarks[f"new_items-{name}"] = ["benchmarks.new_items", "--config", str(config)]
        if name == "beauty":
            benchmarks["training"] = ["benchmarks.training", "--config", str(config)]
    return benchmarks


def measure(folder: Path, names: Sequence[str], all_commands: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Run the benchmarks without results, and return the results of all that have some.

    Raises:
        InputError: the folder has results of another version.
    """
    version = folder / "version.txt"
    if version.exists() and version.read_text("utf-8") != code_version():
        raise InputError(f"--folder must have no results of another version of the code. Received: {folder}.")
    version.write_text(code_version(), "utf-8")
    for name in names:
        result = folder / f"{name}.json"
        if not result.exists():
            print(f"{name} …", flush=True)
            draft = folder / f"{name}.draft.json"
            subprocess.run([sys.executable, "-m", *all_commands[name], "--json", str(draft)], check=True)
            draft.rename(result)
    paths = {name: folder / f"{name}.json" for name in all_commands}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}


def report(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the figures that have a target, and return them."""
    rows = []
    for target, value in targets_of(results):
        reached = target.is_reached(value)
        bound = f"at {'least' if target.at_least else 'most'} {target.bound:g}"
        rows.append(
            {
                "name": target.text,
                "value": value,
                "bound": target.bound,
                "at_least": target.at_least,
                "reached": reached,
            }
        )
        print(f"{target.text:<{WIDTH}} {value:>10.4g}  {bound}{'' if reached else ', missed'}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks as a program."""
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, required=True, metavar="OUT", help="folder of the results")
    options.add_argument("--datasets", type=Path, metavar="FOLDER", help="folder with the files of the data sets")
    options.add_argument("--only", nargs="+", metavar="NAME", help="names of benchmarks to run (default: all)")
    arguments = options.parse_args(argv)
    with temporary_folder():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        all_commands = commands(arguments.folder, arguments.datasets)
        unknown = sorted(set(arguments.only or ()) - set(all_commands))
        if unknown:
            raise InputError(f"--only must name benchmarks: {', '.join(all_commands)}. Received: {', '.join(unknown)}.")
        results = measure(arguments.folder, arguments.only or list(all_commands), all_commands)
        write({"version": code_version(), "figures": report(results)}, arguments.folder / "figures.json")
        if "nights" in results and "synthetic" in results["nights"]:
            growth_plot.plot(results["nights"]["synthetic"]["nights"], arguments.folder / "growth.svg")


if __name__ == "__main__":
    main()
