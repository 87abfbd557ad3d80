"""The report of a run: whether its release was promoted and why, what changed, and how good it is.

It is written however the run ended, from the files of the finished stages; what was not reached is left out.
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
from recsys.data.storage import atomic_write

Outcome = Literal["promoted", "passed", "published", "refused", "failed"]
"""`passed`: the release passed the gate and was the champion before, but another one has been chosen since.
`published`: the release is registered, and the run was not to promote it."""

VERDICTS = ("failed", "passed", "skipped")
"""Order of the checks on the page."""


class RunEnd(NamedTuple):
    """How a run ended."""

    outcome: Outcome
    error: str | None = None
    """The message of the error, or the checks that failed."""
    stage: str | None = None
    """The stage that the run ended in, if it did not finish."""
    seconds: Mapping[str, float] = {}
    """Duration of each stage that this process ran."""
    decision: Mapping[str, Any] | None = None
    """The decision of the gate: `champion` and `checks`."""


def write_report(context: RunContext, end: RunEnd) -> Path:
    """Write the report of a run as JSON and as HTML, and return the path of the HTML.

    The report stays as it is if a finished run is repeated and ends in the same way.
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
    """Render a report as one HTML page, without scripts or external resources."""
    checks = (report["decision"] or {}).get("checks", [])
    return page.render(
        "run_report.html",
        report=report,
        checks=sorted(checks, key=lambda check: VERDICTS.index(check["verdict"])),
        counts={verdict: sum(check["verdict"] == verdict for check in checks) for verdict in VERDICTS},
        plots=plots.coordinates(report),
    )
