"""Files of item groups that people put together, such as the films of a series."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from recsys.data import storage
from recsys.errors import InputError

GROUPS = TypeAdapter(dict[str, list[str]])


def read_groups(source: str, setting: str = "data.alike") -> dict[str, list[str]]:
    """Read a JSON file with an object: name of a group -> item ids. A pair of items is a group of two.

    Args:
        source: path or URL.
        setting: name of the setting or option, for messages.

    Raises:
        InputError: the file cannot be read, or has another content.
    """
    rule = f"{setting} must be a JSON file with an object: name of a group to a list of item ids"
    location = storage.locate(source)
    if not location.exists():
        raise InputError(f"{rule}. Received {location.display_name}: no such file.")
    try:
        with location.open() as file:
            return GROUPS.validate_json(file.read())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error.errors()[0]["msg"])
        raise InputError(f"{rule}. Received {location.display_name}: {reason}.") from None
