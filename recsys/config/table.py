"""Base class of the config's tables, and types of their values."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
DistanceName = Literal["cosine", "euclidean", "manhattan"]
"""The distances of `recsys.index.distances.DISTANCES`."""
Columns = Annotated[tuple[str, ...], Field(strict=False)]


class Table(BaseModel):
    """Base of all tables: frozen, strictly typed, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def instant(of_day: time) -> BeforeValidator:
    """Parse a date or an instant. Without a time zone it is UTC; a date means this time of that day."""

    def read(value: Any) -> Any:
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) and "T" in value else value
            moment = date.fromisoformat(moment) if isinstance(moment, str) else moment
        except ValueError:
            return value  # the model reports it
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, of_day)
        return moment.replace(tzinfo=moment.tzinfo or UTC) if isinstance(moment, datetime) else value

    return BeforeValidator(read)
