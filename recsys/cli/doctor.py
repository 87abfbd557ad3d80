"""`recsys doctor`: is everything here that a night and a service need?"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, show
from recsys.errors import RecsysError

PACKAGES = {
    "": ("recsys", "annoy", "numpy", "polars"),
    "train": ("keras", "tensorflow", "scipy"),
    "jobs": ("apache-beam", "pyarrow"),
    "serve": ("fastapi", "uvicorn"),
    "tracking": ("mlflow",),
    "export": ("psycopg", "redis"),
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
}
"""By extra; what an extra brings may be absent, on a server by design."""
ALSO_AS = {"tensorflow": "tensorflow-cpu"}
MIN_FREE_GB = 1.0


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Check versions, config, MLflow, champion and free disk. Exit 1 if something is wrong."""
    findings = [Finding("python", True, platform.python_version()), *_packages(), *_setting(config)]
    show([finding._asdict() for finding in findings], as_json, lambda: _tell(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _packages() -> list[Finding]:
    rows = []
    for extra, names in PACKAGES.items():
        for name in names:
            found = _version(name) or _version(ALSO_AS.get(name, name))
            absent = f"not installed; recsys[{extra}] brings it" if extra else "not installed"
            rows.append(Finding(name, bool(found or extra), found or absent))
    return rows


def _setting(path: Any) -> list[Finding]:
    """What depends on the config; nothing more where that is not usable."""
    from recsys.config.loading import load_config  # noqa: PLC0415

    try:
        config = load_config(path)
    except RecsysError as error:
        return [Finding("config", False, str(error))]
    existing = next(p for p in (config.workspace, *config.workspace.resolve().parents) if p.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    rows = [
        Finding("config", True, str(path)),
        Finding("disk", free_gb >= MIN_FREE_GB, f"{free_gb:.1f} GB free at {existing}"),
    ]

    def mlflow() -> str:
        from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

        champion = Tracker(config).champion()
        return f"champion {champion.release_id}, version {champion.number}" if champion else "no champion yet"

    return [*rows, _ask("mlflow server", mlflow)]


def _ask(name: str, question: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, question())
    except (RecsysError, ImportError) as error:
        return Finding(name, False, str(error))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tell(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(f"{'ok ' if finding.ok else 'NOT'}  {finding.name:<14} {finding.detail}")
