"""The data report of a night: figures as JSON, and the same as a page that needs nothing but itself.

`prepare` writes both into its folder. The figures are those of `recsys.data.profile`, beside the row account, and
compared with the last snapshot of other data that the workspace holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.reports import html as page
from recsys.config.sections import Config
from recsys.data import profile
from recsys.data.snapshot import Snapshot
from recsys.release.formats import CATALOG
from recsys.release.runs import MANIFEST, Run

REPORT, PAGE = "data_report.json", "data_report.html"
MAX_BARS = 120
"""Bars that a chart may have before days are put together."""


def write(config: Config, run: Run, folder: Path, manifest: Mapping[str, Any], sequences: str) -> None:
    """Write report and page into the folder of a prepare stage that is about to be finished.

    Args:
        config: of the run.
        run: whose data it is.
        folder: with the catalog, and the parts of the sequences in its folder `sequences`.
        manifest: of the stage.
        sequences: name of that folder.
    """
    items = config.items

    def counted(folder: Path, manifest: Mapping[str, Any]) -> Snapshot:
        return Snapshot.from_files(
            folder / CATALOG, [folder / sequences / part for part in manifest["sequences"]], items
        )

    now = counted(folder, manifest)
    report = {
        "format": profile.FORMAT,
        "run_id": run.run_id,
        "data_snapshot": run.data_snapshot,
        "account": manifest["account"],
        **profile.describe(now),
        "previous": None,
        "unreadable": [],
    }
    for earlier in finished(config.workspace):
        try:
            if json.loads((earlier / REPORT).read_text(encoding="utf-8"))["data_snapshot"] == run.data_snapshot:
                continue  # the same data with other settings
            known = json.loads((earlier / MANIFEST).read_text(encoding="utf-8"))
            before = counted(earlier, known)
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError):
            report["unreadable"].append(earlier.parent.name)  # it must not cost the night
            continue
        compared = profile.compare(before, now)
        report["previous"] = {"run_id": earlier.parent.name, "account": known["account"], **compared}
        break
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(report), encoding="utf-8")


def render(report: Mapping[str, Any]) -> str:
    """A data report as one HTML page: no scripts, nothing that is loaded."""
    days, width = _bars(report["interactions_a_day"])
    return page.render("data_page.html", report=report, days=days, days_a_bar=width)


def finished(workspace: Path) -> list[Path]:
    """Folders of finished stages that left a report, the newest first."""
    reports = [path for path in (workspace / "runs").glob(f"*/*/{REPORT}") if not path.parent.name.startswith(".")]
    newest_first = sorted(reports, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return [path.parent for path in newest_first]


def _bars(days: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Interactions from the first day to the last, as many days a bar as keep the bars few; and how many these are."""
    first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
    width = (last - first).days // MAX_BARS + 1
    bars = {(first + timedelta(day)).isoformat(): 0 for day in range(0, (last - first).days + 1, width)}
    for day, interactions in days.items():
        start = (date.fromisoformat(day) - first).days // width * width
        bars[(first + timedelta(start)).isoformat()] += interactions
    return bars, width
