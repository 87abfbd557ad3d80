"""Pagination cursors: opaque text that is bound to a release and a query."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

from pydantic_core import to_json

from recsys.errors import InputError
from recsys.retrieval.query import Query

MAX_LENGTH = 1_024
"""Maximum number of characters of a cursor."""


class Cursor(NamedTuple):
    """The start of the next page."""

    release_id: str
    query_digest: str
    """Digest of the query without its page, see `query_digest`."""
    offset: int


def query_digest(query: Query) -> str:
    """Return a digest that is the same for all pages of a query."""
    text = f"Query(items={query.items!r}, {query.conditions})"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def encode_cursor(cursor: Cursor) -> str:
    """Return a cursor as text for a URL."""
    return base64.urlsafe_b64encode(to_json(cursor)).decode().rstrip("=")


def decode_cursor(text: str, max_offset: int) -> Cursor:
    """Return the cursor that `encode_cursor` wrote.

    Args:
        text: the cursor of a request.
        max_offset: the offset of the cursor must be below this number.

    Raises:
        InputError: the text is not a cursor.
    """
    invalid = InputError(
        "cursor must be the unchanged `next_cursor` of a response. Received: another text. "
        "Repeat the query without a cursor."
    )
    if len(text) > MAX_LENGTH:
        raise invalid
    try:
        padded = text + "=" * (-len(text) % 4)
        decoded = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise invalid from None
    match decoded:
        case [str(release_id), str(digest), int(offset)] if not isinstance(offset, bool) and 0 <= offset < max_offset:
            return Cursor(release_id, digest, offset)
    raise invalid


def apply_cursor(query: Query, text: str, max_k: int) -> Query:
    """Return a query for the page of a cursor; the page ends at rank `max_k`.

    Raises:
        InputError: the text is not a cursor, or belongs to another query.
    """
    cursor = decode_cursor(text, max_k)
    if cursor.query_digest != query_digest(query):
        raise InputError(
            "cursor must be sent with the query that returned it; only k and explain may change. "
            "Received: another query. Repeat the query without a cursor."
        )
    return replace(query, offset=cursor.offset, k=min(query.k, max_k - cursor.offset))


def next_cursor(release_id: str, query: Query, max_k: int) -> str | None:
    """Return the cursor of the page after a query; None if that page would begin beyond rank `max_k`."""
    end = query.offset + query.k
    return encode_cursor(Cursor(release_id, query_digest(query), end)) if end < max_k else None
