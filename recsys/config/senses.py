"""The senses of similarity. Apart from the settings, because the command line needs no other part of them to start."""

from __future__ import annotations

from typing import Literal, get_args

Sense = Literal["similar", "next"]
"""A sense of similarity: `similar` items are alike, `next` items are used together or one after the other."""
SENSES: tuple[Sense, ...] = get_args(Sense)
