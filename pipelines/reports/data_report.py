"""Data report of a run, as JSON and as a self-contained HTML page.

`prepare` writes both into its folder. The report contains the statistics of `recsys.data.profile`, the row account, and
a comparison with the newest run of the workspace that has other data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.reports import html
from recsys.config.sections import Config
from recsys.data import profile
from recsys.data.snapshot import Snapshot
from recsys.release.formats import CATALOG
from recsys.release.runs import MANIFEST, Run

REPORT, PAGE = "data_report.json", "data_report.html"
MAX_BARS = 120
"""Maximum number of bars of a chart; if there are more days, each bar covers several days."""


def write(config: Config, run: Run, folder: Path, manifest: Mapping[str, Any], sequences: str) -> None:
    """Write the report and its page into the folder of a prepare stage.

    Args:
        config: settings of the run.
        run: the run.
        folder: folder of the stage, with the catalog and the sequences.
        manifest: manifest of the stage.
        sequences: name of the folder with the sequences.
    """
    items = config.items

    def load_snapshot(folder: Path, manifest: Mapping[str, Any]) -> Snapshot:
        return Snapshot.from_files(
            folder / CATALOG, [folder / sequences / part for part in manifest["sequences"]], items
        )

    current = load_snapshot(folder, manifest)
    report = {
        "format": profile.FORMAT,
        "run_id": run.run_id,
        "data_snapshot": run.data_snapshot,
        "account": manifest["account"],
        **profile.describe(current),
        "previous": None,
        "unreadable": [],
    }
    for earlier_folder in finished(config.workspace):
        try:
            if json.loads((earlier_folder / REPORT).read_text(encoding="utf-8"))["data_snapshot"] == run.data_snapshot:
                continue  # the same data with other settings
            earlier_manifest = json.loads((earlier_folder / MANIFEST).read_text(encoding="utf-8"))
            previous = load_snapshot(earlier_folder, earlier_manifest)
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError):
            report["unreadable"].append(earlier_folder.parent.name)  # an unreadable report must not fail the run
            continue
        comparison = profile.compare(previous, current)
        report["previous"] = {
            "run_id": earlier_folder.parent.name,
            "account": earlier_manifest["account"],
            **comparison,
        }
        break
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(report), encoding="utf-8")


def render(report: Mapping[str, Any]) -> str:
    """Render a data report as a self-contained HTML page."""
    days, width = _bars(report["interactions_per_day"])
    return html.render("data_report.html", report=report, days=days, days_per_bar=width)


def finished(workspace: Path) -> list[Path]:
    """Return the folders of finished stages with a data report, newest first."""
    reports = [path for path in (workspace / "runs").glob(f"*/*/{REPORT}") if not path.parent.name.startswith(".")]
    newest_first = sorted(reports, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return [path.parent for path in newest_first]


def _bars(days: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return the interactions of each bar by its first day, and the number of days per bar."""
    first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
    width = (last - first).days // MAX_BARS + 1
    bars = {(first + timedelta(day)).isoformat(): 0 for day in range(0, (last - first).days + 1, width)}
    for day, interactions in days.items():
        start = (date.fromisoformat(day) - first).days // width * width
        bars[(first + timedelta(start)).isoformat()] += interactions
    return bars, width
