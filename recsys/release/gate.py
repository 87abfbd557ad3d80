"""The gate: every check that a release must pass to become the champion.

To add a check, write a function that returns `Check` objects in `data_gate` (input data), `model_gate` (the new
release alone), `quality_gate` or `likeness_gate` (comparison with the champion), and add a line to `CHECKS`. A new
input is a field of `Evidence`, which `pipelines.stages.promote` fills. `docs/explanation/promotion.md` lists all
checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.embeddings import Vectors
from recsys.index.recall import SAMPLE_SIZE
from recsys.release import data_gate, likeness_gate, model_gate, quality_gate, smoke_test
from recsys.release.bundle import Release
from recsys.release.check import Check
from recsys.release.data_gate import DataLimits, DataReport
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.likeness_gate import UsersEvidence
from recsys.release.quality_gate import HeldOutQueries


@dataclass(frozen=True)
class Evidence:
    """What the checks read."""

    config: Config
    now: datetime
    """Current time, with a time zone."""
    challenger: Release
    """The new release."""
    champion: Release | None
    """The release to compare with, None without a champion or if it cannot be loaded."""
    champion_loads: Check
    """Whether the champion can be loaded."""
    catalog: Catalog
    """Catalog of the run's data."""
    data_report: DataReport
    """Data report of the run, with its row account."""
    champion_data_report: DataReport | None
    """Data report of the champion's run, None if it is lost."""
    copied_days: Mapping[str, Mapping[str, int]]
    """Day -> `rows` and `copies`; see `data_gate.day_checks`."""
    sample: NDArray[np.int32]
    """Item numbers on which tower and index are checked, int32 [n]."""
    encoded_sample: Mapping[Sense, Vectors]
    """Embeddings that each tower of the challenger computes for the sample, float32 [n, dimension]."""
    queries: HeldOutQueries
    quality_floor: float | None
    """Smallest NDCG@20, None for no floor."""
    users: UsersEvidence | None
    """What the users held out of the run associate, None without evidence."""

    @property
    def data_limits(self) -> DataLimits:
        """Limits of the configured sensitivity."""
        return data_gate.LIMITS[self.config.promote.data_sensitivity]


CHECKS: tuple[Callable[[Evidence], list[Check]], ...] = (
    lambda e: data_gate.account_checks(e.data_report, e.config.prepare.max_dead_letter_ratio),
    lambda e: data_gate.day_checks(e.data_report, e.copied_days, e.now, e.data_limits),
    lambda e: data_gate.column_checks(e.catalog, e.config.items, e.data_limits),
    lambda e: data_gate.champion_checks(
        e.data_report,
        e.catalog,
        e.champion_data_report,
        e.champion.catalog if e.champion else None,
        e.config.items,
        limits=e.data_limits,
    ),
    lambda e: [model_gate.catalog_check(e.challenger.catalog, e.catalog)],
    lambda e: _for_each_space(e, lambda space, _: model_gate.embedding_checks(space)),
    lambda e: _for_each_space(
        e, lambda space, sense: [model_gate.tower_check(space, e.sample, e.encoded_sample[sense])]
    ),
    lambda e: _for_each_space(
        e, lambda space, _: model_gate.index_checks(space, e.sample, e.config.index.recall_floor)
    ),
    lambda e: [smoke_test.answers_check(e.challenger)],
    lambda e: [e.champion_loads],
    lambda e: quality_gate.quality_checks(
        e.challenger.space("next"),
        e.champion.space("next") if e.champion else None,
        e.queries,
        floor=e.quality_floor,
        config=e.config.promote,
        resamples=PROTOCOL.resamples,
    ),
    lambda e: likeness_gate.likeness_checks(
        e.challenger, e.champion, e.users, config=e.config.promote, resamples=PROTOCOL.resamples
    ),
    lambda e: _for_each_space(
        e,
        lambda space, sense: [
            quality_gate.overlap_check(
                space, e.champion.spaces.get(sense) if e.champion else None, e.config.promote, sample=SAMPLE_SIZE
            )
        ],
    ),
    lambda e: [quality_gate.latency_check(e.challenger, e.champion, e.config.promote)],
)
"""All checks, in the order of the report."""


def _for_each_space(evidence: Evidence, checks: Callable[[EmbeddingSpace, Sense], list[Check]]) -> list[Check]:
    """Return the checks of each embedding space. Those of `next` keep their names, others end in their sense."""
    return [
        check if sense == "next" else check._replace(name=f"{check.name}_{sense}")
        for sense, space in evidence.challenger.spaces.items()
        for check in checks(space, sense)
    ]


def run_checks(evidence: Evidence) -> list[Check]:
    """Return the result of every check."""
    return [check for checks in CHECKS for check in checks(evidence)]
