"""Contents of the files of a job, to compare the results of two runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl


def rows(folder: Path) -> dict[str, Any]:
    """Return the content of each file below a folder: ordered rows, vectors, parsed JSON, or bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _content(path) for path in files}


def _content(path: Path) -> Any:
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
        return frame.schema, frame.to_dicts()
    if path.suffix == ".npy":
        vectors = np.load(path)
        return vectors.dtype, vectors.tolist()
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return path.read_bytes()
