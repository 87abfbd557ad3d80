"""The names of the headers that an answer depends on."""

RELEASE = "Recsys-Release"
"""Asks one release and no other; of an answer, the release that gave it."""
STICKY = "Recsys-Sticky-Key"
KNOWN = "If-None-Match"


def raw(name: str) -> bytes:
    """A name as ASGI has it."""
    return name.lower().encode()
