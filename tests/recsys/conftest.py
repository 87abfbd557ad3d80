"""What tests of training share: pairs on disk from a dense matrix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Any]:
    """`store(dense)` writes the weights of a [num_items, num_items] matrix in two parts, and gives `Pairs` of them."""
    from recsys.data import cooccurrence, pairs

    def write(dense: NDArray[Any]) -> pairs.Pairs:
        folder = tmp_path / f"pairs-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        row, column = np.nonzero(dense)
        weight = dense[row, column].astype(np.float64)
        columns = {"anchor": row, "positive": column, "weight": weight, "validation_weight": weight}
        frame = pl.DataFrame(columns).cast({name: cooccurrence.SCHEMA[name] for name in columns})  # type: ignore[arg-type]
        parts = []
        for number in range(2):
            parts.append(folder / f"part-{number}.parquet")
            pairs.write(
                cooccurrence.group_by_anchor(frame.filter(pl.col("anchor") % 2 == number), max_positives=1_000),
                parts[-1],
            )
        return pairs.Pairs(parts, len(dense), "weight")

    return write
