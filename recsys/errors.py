"""Exceptions of the project, by cause.

RecsysError
├── ConfigError        the config file or a `--set` is invalid                      exit 2
├── InputError         an input file, table or value cannot be used                 exit 2
│   └── UnknownItemError   an item id that is not in the catalog                  exit 2
├── StageError         a stage cannot complete although its input is readable       exit 1
├── ReleaseError       a release is missing, damaged or of an unsupported format    exit 1
├── TrackingError      MLflow cannot be reached, or an entity does not exist        exit 1
└── RejectedError       the gate rejected a release                                   exit 1

Every message states the input, the rule, the value received and the remedy.
"""

from __future__ import annotations


class RecsysError(Exception):
    """Base class of all errors with a message for the user."""

    exit_code = 1


class ConfigError(RecsysError):
    """The config file, a key in it or a `--set` is invalid. Problems of the data raise `InputError`."""

    exit_code = 2


class InputError(RecsysError):
    """An input file, table or value cannot be used. Single invalid rows become dead letters instead."""

    exit_code = 2


class UnknownItemError(InputError):
    """An item id that is not in the catalog."""


class StageError(RecsysError):
    """A stage cannot complete: too many dead letters, recall below the floor, a missing stage."""


class ReleaseError(RecsysError):
    """A release folder is missing, incomplete, damaged or of an unsupported format."""


class TrackingError(RecsysError):
    """MLflow cannot be reached, rejects a request, or does not have the requested entity."""


class RejectedError(RecsysError):
    """The gate rejected a release. The champion does not change."""
