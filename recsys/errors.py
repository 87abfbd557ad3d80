"""What can go wrong, by who can mend it.

RecsysError
├── ConfigError        the config file or a `--set` is wrong                        exit 2
├── InputError         a file, table or value given to us is not usable             exit 2
│   └── UnknownItemError   an item id that the catalog does not hold              exit 2
├── StageError         the input was readable, but a stage could not do its work    exit 1
├── ReleaseError       a release is missing, damaged or of another format           exit 1
├── TrackingError      MLflow does not answer, or does not know what was asked for  exit 1
└── RefusedError       the work was done, and the gate did not let it through       exit 1

Every message says which input, the rule, what was received and what to do.
"""

from __future__ import annotations


class RecsysError(Exception):
    """Base of all errors that a caller may want to show to a person."""

    exit_code = 1


class ConfigError(RecsysError):
    """The config file, one of its keys or a `--set` is wrong. Not: the data it points to."""

    exit_code = 2


class InputError(RecsysError):
    """A file, a table or a value cannot be used at all. Not: single bad rows, which are dead letters."""

    exit_code = 2


class UnknownItemError(InputError):
    """An item id that is not in the catalog."""


class StageError(RecsysError):
    """A stage could not do its work: too many dead letters, a recall below the floor, a missing stage."""


class ReleaseError(RecsysError):
    """A release folder is missing, incomplete, damaged or of a format that we do not read."""


class TrackingError(RecsysError):
    """MLflow cannot be reached, refuses, or does not hold what was asked for."""


class RefusedError(RecsysError):
    """The gate refused to promote a release. The champion stays in service."""
