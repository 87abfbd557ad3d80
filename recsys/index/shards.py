"""The files of an index: one for a small catalog, otherwise shards that each hold a range of item numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from recsys.errors import InputError

INDEX_FILE = "index.ann"
"""Name of the file if the index has one shard."""


class Shard(BaseModel):
    """One file of an index and the range of item numbers in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[str, Field(pattern=r"^index(-[0-9]+)?\.ann$")]
    """A plain file name, so that a manifest cannot refer to a file outside its release."""
    start: int
    """First item number."""
    stop: int
    """Last item number + 1."""


def plan_shards(num_items: int, shard_items: int) -> list[Shard]:
    """Divide a catalog into as few shards of about equal size as possible, each of at most `shard_items` items."""
    count = math.ceil(num_items / shard_items)
    names = [INDEX_FILE] if count == 1 else [f"index-{shard:05d}.ann" for shard in range(count)]
    bounds = pairwise(num_items * shard // count for shard in range(count + 1))
    return [Shard(file=name, start=start, stop=stop) for name, (start, stop) in zip(names, bounds, strict=True)]


def validate_shards(shards: Sequence[Shard], num_items: int) -> None:
    """Raise if the shards do not hold every item exactly once, in order.

    Raises:
        InputError: a gap, an overlap, an empty shard, or another number of items.
    """
    stop = 0
    for shard in shards:
        if not shard.start == stop < shard.stop:
            raise InputError(
                f"index shard {shard.file} must start at item number {stop}, where the shard before it "
                f"ends, and hold at least one item. Received: {shard.start} to {shard.stop}."
            )
        stop = shard.stop
    if stop != num_items:
        raise InputError(f"the shards of an index must hold {num_items} items. Received: {stop} items.")
