"""What `beam.profile` means in Beam's own options, and the check that Beam leaves out.

Beam drops an option that it does not know without a word, so a misspelt one would change nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from recsys.config.sections import BeamConfig
from recsys.errors import ConfigError

NEEDED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "flink": (("flink_job_server_jar", "job_endpoint"),),
    "spark": (("spark_job_server_jar", "job_endpoint"),),
    "dataflow": (
        ("project",),
        ("region",),
        ("temp_location",),
        ("sdk_container_image", "setup_file", "extra_packages"),
    ),
}
"""Options that a profile cannot do without; of several in one bracket, one."""

JARS = ("flink_job_server_jar", "spark_job_server_jar")
ADDRESSES = ("flink_master", "spark_master_url", "job_endpoint")

HERE = re.compile(r"\[local\]|local(\[.*\])?|(\w+://)?(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""Addresses that are on this machine."""

JAVA_17 = ("java.lang", "java.lang.invoke", "java.util", "java.util.concurrent", "java.nio", "java.net")
"""Packages that Flink looks into, and that Java 17 closes."""


def options(config: BeamConfig) -> dict[str, Any]:
    """Beam's options by name: those of the profile, and over them those of the config.

    Raises:
        ConfigError: an option that Beam does not know or whose value it does not take, or one that is missing.
    """
    if "runner" in config.options:
        raise ConfigError("beam.options must not hold runner: beam.profile chooses it.")
    for choice in NEEDED.get(config.profile, ()):
        if not any(config.options.get(name) for name in choice):
            raise ConfigError(
                f"beam.options must hold {' or '.join(choice)} with the profile {config.profile}. Received: "
                f"{', '.join(config.options) or 'no options'}. docs/how-to/runners.md has examples."
            )
    chosen = _taken(_preset(config) | config.options)
    for name in JARS:
        if name in chosen and not Path(chosen[name]).is_file():
            raise ConfigError(f"beam.options.{name} must be a file. Received: {chosen[name]}.")
    elsewhere = [name for name in ADDRESSES if not HERE.fullmatch(chosen.get(name, "local"))]
    if elsewhere and "environment_type" not in chosen:
        raise ConfigError(
            f"beam.options must hold environment_type where {elsewhere[0]} is not on this machine: the workers that "
            "we would start are. Received: none. docs/how-to/runners.md has examples."
        )
    return chosen


def _preset(config: BeamConfig) -> dict[str, Any]:
    match config.profile:
        case "local":
            # named, since Beam otherwise tries to download a runner
            return {"runner": "FnApiRunner", "direct_running_mode": "in_memory", "direct_num_workers": 1}
        case "local-threads":
            threads = {"direct_running_mode": "multi_threading", "direct_num_workers": config.workers}
            return {"runner": "FnApiRunner", **threads}
        case "portable":
            return {"runner": "PortableRunner"}
        case "flink":
            return {
                "runner": "PortableRunner",
                "flink_master": "[local]",
                "parallelism": config.workers,
                "sdk_worker_parallelism": config.workers,
                "job_server_jvm_properties": [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in JAVA_17],
            }
        case "spark":
            from apache_beam.runners.portability.spark_runner import SPARK_JAR_JOB_SERVER_JVM_ARGS  # noqa: PLC0415

            return {
                "runner": "PortableRunner",
                "spark_master_url": f"local[{config.workers}]",
                "sdk_worker_parallelism": config.workers,
                "job_server_jvm_properties": list(SPARK_JAR_JOB_SERVER_JVM_ARGS),
            }
        case "dataflow":
            return {"runner": "DataflowRunner", "max_num_workers": config.workers, "save_main_session": False}


def _taken(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options as Beam reads them. By itself it would drop an unknown one, and end the program for a bad value."""
    from apache_beam.options.pipeline_options import PipelineOptions  # noqa: PLC0415

    def refuse(problem: str) -> NoReturn:
        raise ConfigError(f"beam.options must hold values that Beam takes. Received: {problem}.")

    def make_strict(parser: Any) -> None:
        parser.error = refuse

    read: Any = PipelineOptions.from_dictionary  # untyped
    taken = read(chosen).get_all_options(add_extra_args_fn=make_strict)
    for name, value in chosen.items():
        if name not in taken:
            close = difflib.get_close_matches(name, taken, n=1)
            raise ConfigError(
                f"beam.options must hold options of Beam. Received: {name}. "
                + (f"Did you mean {close[0]}?" if close else "Beam lists its own as PipelineOptions.")
            )
        if str(taken[name]) != str(value):  # not told: it may be a secret
            raise ConfigError(
                f"beam.options.{name} must be a value that Beam takes. Received: a {type(value).__name__}, "
                f"of which Beam makes a {type(taken[name]).__name__}."
            )
    return {name: taken[name] for name in chosen}
