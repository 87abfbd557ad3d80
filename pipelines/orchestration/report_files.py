"""Run reports on disk: `run_report.json` and `run_report.html` in the folder of each run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPORT, PAGE = "run_report.json", "run_report.html"
FORMAT = 1


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return the report in the folder of a run, or None if it is missing or has another format."""
    try:
        report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if report.get("format") == FORMAT else None


def earlier_reports(workspace: Path, run_id: str) -> list[dict[str, Any]]:
    """Return the reports of all runs of a workspace except `run_id`, newest first."""
    reports = [read_report(path.parent) for path in (workspace / "runs").glob(f"*/{REPORT}")]
    earlier = [report for report in reports if report and report["run_id"] != run_id]
    return sorted(earlier, key=lambda report: (report["ended_at"], report["run_id"]), reverse=True)
