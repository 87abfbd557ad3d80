"""Where the next page begins: opaque text, bound to a release and to a question."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

from recsys.errors import InputError
from recsys.retrieval.query import Query

LONGEST = 1_024


class Cursor(NamedTuple):
    """What a cursor says."""

    release_id: str
    digest: str
    """Of the question, whatever its page."""
    offset: int


def digest(question: Query) -> str:
    """The same for all pages of one question."""
    page = replace(question, k=1, offset=0, explain=False)
    return hashlib.sha256(repr(page).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def encode(cursor: Cursor) -> str:
    """As text for a URL."""
    return base64.urlsafe_b64encode(json.dumps(cursor).encode()).decode().rstrip("=")


def decode(text: str, reach: int) -> Cursor:
    """Read what `encode` wrote, of a page that begins before rank `reach`.

    Raises:
        InputError: it is none.
    """
    broken = InputError("cursor must be `next` of an answer, unchanged. Received: another text. Ask without it.")
    if len(text) > LONGEST:
        raise broken
    try:
        padded = text + "=" * (-len(text) % 4)
        saved = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise broken from None
    match saved:
        case [str(release_id), str(of), int(offset)] if not isinstance(offset, bool) and 0 <= offset < reach:
            return Cursor(release_id, of, offset)
    raise broken


def turned(question: Query, cursor: Cursor) -> Query:
    """The question at the cursor's page.

    Raises:
        InputError: the cursor is of another question.
    """
    if cursor.digest != digest(question):
        raise InputError(
            "cursor must come with the question that it was given for; k and why may change. "
            "Received: another question. Ask without it."
        )
    return replace(question, offset=cursor.offset)
