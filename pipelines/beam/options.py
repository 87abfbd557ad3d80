"""Beam pipeline options from the settings `beam.profile` and `beam.options`, with validation.

Beam itself silently ignores unknown options, so a misspelled option would have no effect.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from recsys.config.sections import BeamConfig
from recsys.errors import ConfigError

REQUIRED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "flink": (("flink_job_server_jar", "job_endpoint"),),
    "spark": (("spark_job_server_jar", "job_endpoint"),),
    "dataflow": (
        ("project",),
        ("region",),
        ("temp_location",),
        ("sdk_container_image", "setup_file", "extra_packages"),
    ),
}
"""Required options by profile: at least one option of each group."""

JARS = ("flink_job_server_jar", "spark_job_server_jar")
ADDRESSES = ("flink_master", "spark_master_url", "job_endpoint")

LOCAL_ADDRESS = re.compile(r"\[local\]|local(\[.*\])?|(\w+://)?(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""Matches addresses on this machine."""

JAVA_17 = ("java.lang", "java.lang.invoke", "java.util", "java.util.concurrent", "java.nio", "java.net")
"""Java packages that Flink accesses by reflection, which Java 17 does not allow by default."""


def pipeline_options(config: BeamConfig) -> dict[str, Any]:
    """Return Beam's options by name: the options of the profile, overridden by those of the config.

    Raises:
        ConfigError: an option is unknown, missing or invalid.
    """
    if "runner" in config.options:
        raise ConfigError("beam.options must not contain runner: beam.profile selects it.")
    for group in REQUIRED.get(config.profile, ()):
        if not any(config.options.get(name) for name in group):
            raise ConfigError(
                f"beam.options must contain {' or '.join(group)} with the profile {config.profile}. Received: "
                f"{', '.join(config.options) or 'no options'}. docs/how-to/runners.md has examples."
            )
    options = _validated(_preset(config) | config.options)
    for name in JARS:
        if name in options and not Path(options[name]).is_file():
            raise ConfigError(f"beam.options.{name} must be a file. Received: {options[name]}.")
    remote = [name for name in ADDRESSES if not LOCAL_ADDRESS.fullmatch(options.get(name, "local"))]
    if remote and "environment_type" not in options:
        raise ConfigError(
            f"beam.options must contain environment_type if {remote[0]} is not on this machine, because workers would "
            "be started on this machine only. Received: none. docs/how-to/runners.md has examples."
        )
    return options


def _preset(config: BeamConfig) -> dict[str, Any]:
    match config.profile:
        case "local":
            # explicit, because Beam otherwise tries to download a runner
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


def _validated(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as Beam parses them; Beam itself ignores unknown options and exits on invalid values."""
    from apache_beam.options.pipeline_options import PipelineOptions  # noqa: PLC0415

    def raise_error(problem: str) -> NoReturn:
        raise ConfigError(f"beam.options must have values that Beam accepts. Received: {problem}.")

    def make_strict(parser: Any) -> None:
        parser.error = raise_error

    from_dictionary: Any = PipelineOptions.from_dictionary  # untyped
    parsed = from_dictionary(options).get_all_options(add_extra_args_fn=make_strict)
    for name, value in options.items():
        if name not in parsed:
            close = difflib.get_close_matches(name, parsed, n=1)
            raise ConfigError(
                f"beam.options must be options of Beam. Received: {name}. "
                + (f"Did you mean {close[0]}?" if close else "Beam documents them as PipelineOptions.")
            )
        if str(parsed[name]) != str(value):  # the value may be a secret
            raise ConfigError(
                f"beam.options.{name} must be a value that Beam accepts. Received: a {type(value).__name__}, "
                f"which Beam converts to a {type(parsed[name]).__name__}."
            )
    return {name: parsed[name] for name in options}
