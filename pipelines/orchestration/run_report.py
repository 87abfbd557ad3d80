"""The report of a run: the outcome and its reason, the changes of the data and the neighbors, and the metrics.

It is written for every run, also for a failed one, from the files of the finished stages. Parts of stages that did not
finish are omitted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipelines.context.run_context import RunContext
from pipelines.orchestration.report_data import collect
from pipelines.orchestration.report_files import FORMAT, PAGE, REPORT, read_report
from pipelines.reports import html as page
from pipelines.reports import plots
from pipelines.reports.figures import model_name
from recsys.data.storage import atomic_write

Outcome = Literal["promoted", "passed", "published", "rejected", "failed"]
"""Outcome of a run.

`passed`: the release passed the gate, but is not promoted again, since it was the champion before and was replaced.
`published`: the release is registered; the run was started without promotion.
"""

VERDICTS = ("failed", "passed", "skipped")
"""Order of the checks on the page."""


class RunEnd(NamedTuple):
    """The end of a run: its outcome, error and durations."""

    outcome: Outcome
    error: str | None = None
    """Message of the error, which names the failed checks if the release was rejected."""
    stage: str | None = None
    """Stage in which the run ended, if it did not finish."""
    seconds: Mapping[str, float] = {}
    """Seconds of each stage that this process ran."""
    decision: Mapping[str, Any] | None = None
    """Decision of the gate: `champion` and `checks`."""


def write_report(context: RunContext, end: RunEnd) -> Path:
    """Write the report of a run as JSON and as HTML, and return the path of the HTML.

    An existing report is not rewritten if the run was finished before and has the same outcome again.
    """
    folder = context.run.folder
    previous = read_report(folder)
    ending = {"outcome": end.outcome, "error": end.error, "decision": dict(end.decision) if end.decision else None}
    seconds = {**(previous["seconds"] if previous else {}), **end.seconds}
    rerun = set(end.seconds) - {"publish", "promote"}
    if previous and not rerun and {key: previous[key] for key in ending} == ending and (folder / PAGE).exists():
        return folder / PAGE
    compared_with = end.decision["champion"] if end.decision else None
    data = collect(context, compared_with=compared_with, gate_decided=end.decision is not None)
    report = {"format": FORMAT, **data, "stage": end.stage, **ending, "seconds": seconds}
    with atomic_write(folder / PAGE) as draft:
        draft.write_text(render(report), encoding="utf-8")
    with atomic_write(folder / REPORT) as draft:  # last: a JSON report means that the page is complete
        draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / PAGE


def render(report: Mapping[str, Any]) -> str:
    """Render a run report as a self-contained HTML page."""
    checks = (report["decision"] or {}).get("checks", [])
    return page.render(
        "run_report.html",
        report=report,
        checks=sorted(checks, key=lambda check: VERDICTS.index(check["verdict"])),
        counts={verdict: sum(check["verdict"] == verdict for check in checks) for verdict in VERDICTS},
        plots=plots.coordinates(report),
        model_name=model_name,
    )
