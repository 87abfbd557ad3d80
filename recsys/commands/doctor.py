"""`recsys doctor`: checks of what the pipeline and the service need."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import typer

from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Json, print_result
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
"""By extra; a package of an extra may be absent, as it is on a server by design."""
ALTERNATIVES = {"tensorflow": "tensorflow-cpu"}
MIN_FREE_GB = 1.0


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    ok: bool
    detail: str


def doctor(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Check versions, config, MLflow, champion and free disk space. Exit code 1 if a check fails."""
    findings = [Finding("python", True, platform.python_version()), *_check_packages(), *_check_config(config)]
    print_result([finding._asdict() for finding in findings], as_json, lambda: _print(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _check_packages() -> list[Finding]:
    findings = []
    for extra, names in PACKAGES.items():
        for name in names:
            installed = _version(name) or _version(ALTERNATIVES.get(name, name))
            absent = f"not installed; part of recsys[{extra}]" if extra else "not installed"
            findings.append(Finding(name, bool(installed or extra), installed or absent))
    return findings


def _check_config(path: Path) -> list[Finding]:
    """Check the config and, if it is valid, what depends on it."""
    from recsys.config.loading import load_config  # noqa: PLC0415

    try:
        config = load_config(path)
    except RecsysError as error:
        return [Finding("config", False, str(error))]
    folders = (config.workspace, *config.workspace.resolve().parents)
    existing = next(folder for folder in folders if folder.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9

    def champion() -> str:
        from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

        version = Tracker(config).champion()
        return f"champion {version.release_id}, version {version.number}" if version else "no champion yet"

    return [
        Finding("config", True, str(path)),
        Finding("disk", free_gb >= MIN_FREE_GB, f"{free_gb:.1f} GB free at {existing}"),
        _check("mlflow server", champion),
    ]


def _check(name: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, describe())
    except (RecsysError, ImportError) as error:
        return Finding(name, False, str(error))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(f"{'ok' if finding.ok else 'failed':<6}  {finding.name:<14} {finding.detail}")
