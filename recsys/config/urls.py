"""A path or a URL that may hold a password, and how it may be shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

HIDDEN = "…"


@dataclass(frozen=True)
class Address:
    """Cut by hand: a URL that is not well formed may hold a password too."""

    url: str = field(repr=False)

    @property
    def scheme(self) -> str | None:
        """What stands before `://`; None of a path."""
        scheme, separator, _ = self.url.partition("://")
        return scheme if separator else None

    @property
    def shown(self) -> str:
        """Without user, password and query."""
        if self.scheme is None:
            return self.url
        user, at, place = self._rest.rpartition("@")
        if "?" in user:  # a password with a question mark, or a query with an @: nobody knows
            return f"{self.scheme}://{HIDDEN}"
        return f"{self.scheme}://{f'{HIDDEN}@' if at else ''}{place.partition('?')[0]}"

    def without_secret(self, text: str) -> str:
        """A text of a library in one line, in which neither password nor query is to be read."""
        user = self._rest.rpartition("@")[0]
        password = user.partition(":")[2]
        query = self._rest.partition("?")[2]
        values = [part.partition("=")[2] for part in query.split("&") if "password" in part]
        secrets = {self.url, user, query, *(form for each in (password, *values) for form in (each, unquote(each)))}
        for secret in sorted(secrets - {""}, key=len, reverse=True):
            text = text.replace(secret, self.shown if secret == self.url else HIDDEN)
        return " ".join(text.split())

    @property
    def _rest(self) -> str:
        return self.url.partition("://")[2]
