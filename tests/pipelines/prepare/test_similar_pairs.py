"""The pairs of the sense `similar`: when they are written, and from which interactions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.prepare.similar_pairs import MAX_POSITIVES, POWER, count_pairs_of_histories
from recsys.config.loading import load_config
from recsys.config.sections import PrepareConfig
from recsys.data.association import partial_weights
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, held_out_users
from recsys.evaluation.baselines import user_item_matrix
from recsys.testing import world


def prepared(folder: Path, *settings: str) -> RunContext:
    world.write(folder)
    context = RunContext.from_config(load_config(folder / "recsys.toml", settings))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    return context


@pytest.mark.parametrize("window", [1, 2, 4, 10])
def test_pairs_of_histories_are_counted_as_by_a_double_loop(window: int) -> None:
    lengths = [1, 2, 5, 9]
    offsets = np.cumsum([0, *lengths])
    items = np.arange(offsets[-1], dtype=np.int32)
    split = Split(Sequences([str(user) for user in range(4)], items, offsets, np.zeros(len(items))))
    known = [1, 2, 4, 8]  # without the test targets of the users with at least three interactions
    pairs = [(second - first) for size in known for first in range(size) for second in range(first + 1, size)]
    expected = len(pairs), sum(gap <= window for gap in pairs)
    assert count_pairs_of_histories(split, PrepareConfig(window=window)) == expected


def test_similar_pairs_are_partial_weights_of_all_users_and_of_those_not_held_out(tmp_path: Path) -> None:
    context = prepared(tmp_path, "prepare.window=1", "similar.penalty=7")
    manifest = context.run.manifest("prepare")
    # five known interactions of each user: 4 of the 10 pairs are neighbors
    assert manifest["share_in_window"] == pytest.approx(0.4)
    frame = pl.concat(
        [pl.read_parquet(context.run.path("prepare", f"similar_pairs/{name}")) for name in manifest["similar_pairs"]]
    )
    sequences = Sequences.load([context.run.path("prepare", f"sequences/{name}") for name in manifest["sequences"]])
    split, num_items = Split(sequences), manifest["num_items"]
    known = split.training_mask("test")
    others = known & ~held_out_users(sequences.user_ids)[sequences.users]
    for weight, mask in (("weight", known), ("validation_weight", others)):
        interactions = user_item_matrix(sequences, mask, num_items)
        expected = partial_weights(interactions, 7.0, POWER, MAX_POSITIVES).toarray()
        expected *= np.sqrt(interactions.sum(axis=0))[:, None]
        received = np.zeros((num_items, num_items))
        for anchor, positives, weights in frame.select("anchor", "positives", weight).iter_rows():
            received[anchor, positives] = weights
        np.testing.assert_allclose(received, expected, rtol=1e-5)
        assert received.any()


@pytest.mark.parametrize("settings", [[], ["prepare.window=1", "similar.enabled=false"]], ids=["short", "off"])
def test_no_similar_pairs_if_histories_are_short_or_the_setting_is_off(tmp_path: Path, settings: list[str]) -> None:
    context = prepared(tmp_path, *settings)
    rows = [
        pl.read_parquet(context.run.path("prepare", f"similar_pairs/{name}")).height
        for name in context.run.manifest("prepare")["similar_pairs"]
    ]
    assert sum(rows) == 0
