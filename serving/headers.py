"""The names of the service's own headers."""

RELEASE = "Recsys-Release"
"""Asks one release and no other; of an answer, the release that gave it."""
STICKY = "Recsys-Sticky-Key"
"""Whatever names the caller's user: the same one, the same release."""
