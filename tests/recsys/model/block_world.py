"""A small catalog whose items fall into blocks, and towers trained on it."""

import numpy as np
import polars as pl

from recsys.config.sections import Config
from recsys.data.splits import Holdout
from recsys.evaluation.metrics import VALIDATION_SCORE
from recsys.features.encoding import Features
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.model import tower
from recsys.model.batches import PairBatches
from recsys.model.optimizer import build_optimizer
from recsys.model.siamese import NewItemSiamese, Siamese
from recsys.model.trainer import Trainer
from recsys.model.validation import Validation

BLOCKS = (3, 4, 5, 6)
"""Sizes of the blocks. Items form pairs with the items of their block only."""
BLOCK_OF = np.repeat(np.arange(len(BLOCKS)), BLOCKS)
NUM_ITEMS = len(BLOCK_OF)

CANDIDATES = {
    "catalog": {},
    "sampled": {"kind": "sampled", "max_positives": 7, "negatives": 4},
    "in_batch": {"kind": "in_batch"},
    "mixed": {"kind": "mixed", "negatives": 4},
}

BY_BRAND = {"roles": {"categorical": ("brand",)}}


def block_pairs():
    """Pair weights, 1 or 2, [NUM_ITEMS, NUM_ITEMS]."""
    dense = (BLOCK_OF[:, None] == BLOCK_OF[None, :]) * (1.0 + np.arange(NUM_ITEMS) % 2)
    dense = np.minimum(dense, dense.T)
    np.fill_diagonal(dense, 0)
    return dense


def block_items(num_new=0):
    """The catalog. The brand of an item is its block; new items of block 2 come last."""
    brands = [f"brand {block}" for block in BLOCK_OF] + ["brand 2"] * num_new
    return pl.DataFrame({"item_id": [f"{number:02}" for number in range(len(brands))], "brand": brands})


def make_config(*, roles=None, candidates=None, distance="cosine", id_dropout=0.0, **train):
    return Config(
        data={"interactions": "log.csv"},
        items=roles or {},
        tower={"dimension": 8, "id_dropout": id_dropout, "distance": distance},
        candidates={"popularity_correction": 0.0} | (candidates or {}),
        train={"learning_rate": 0.05, "seed": 1, "batch_size": 5} | train,
    )


class BlockWorld:
    """Trains towers on the blocks.

    Args:
        store: the fixture, which writes pairs.
    """

    def __init__(self, store):
        self.store = store

    def fit(self, *, passes=12, dense=None, batches=None, validation=None, options=None, **settings):
        """Train a tower; return the result, the tower and the features.

        Args:
            passes: maximum number of passes.
            dense: pair weights; the blocks by default.
            batches: instead of batches of these pairs.
            validation: a holdout.
            options: further arguments of `Trainer`, or a function from the tower to these arguments.
            settings: of `make_config`.
        """
        dense = block_pairs() if dense is None else dense
        config = make_config(**settings)
        table = block_items()
        features = Features.fit(table, config.items, config.tower, np.ones(len(dense), np.int64))
        inputs = features.transform(table)
        model = tower.build(features, config.tower, config.train.seed)
        batches = batches or PairBatches(self.store(dense), config)
        options = options(model) if callable(options) else options or {}
        trainer = Trainer(
            Siamese(model, inputs, config, anchor_power=config.train.anchor_power),
            build_optimizer(config.train, model, features, config.train.learning_rate),
            batches,
            inputs,
            config.train,
            None if validation is None else Validation(validation, DISTANCES[config.tower.distance]),
            **options,
        )
        return trainer.fit(passes), model, features

    def fit_new_items(self, embeddings, model, features, *, passes=12, **settings):
        """Train a tower for new items against fixed embeddings; return it and the result."""
        config = make_config(**BY_BRAND, **settings)
        new = tower.build_for_new_items(model, features, config.tower, 1)
        inputs = features.transform(block_items())
        trainer = Trainer(
            NewItemSiamese(new, inputs, config, anchor_power=0.5, embeddings=embeddings),
            build_optimizer(config.train, new, features, config.train.learning_rate),
            PairBatches(self.store(block_pairs()), config),
            inputs,
            config.train,
        )
        return new, trainer.fit(passes)


def assert_blocks(embeddings, distance="cosine"):
    """The nearest neighbors of each item are exactly the other items of its block."""
    index = ExactIndex(embeddings, DISTANCES[distance])
    for number in range(NUM_ITEMS):
        expected = np.flatnonzero((BLOCK_OF[number] == BLOCK_OF) & (np.arange(NUM_ITEMS) != number))
        neighbors = index.neighbors(np.array([number], np.int32), len(expected))
        assert set(neighbors[0].tolist()) == set(expected.tolist())


def assert_new_item_is_near_block_2(embeddings, model, features):
    new = tower.make_encoder(model, 100)(features.transform(block_items(num_new=1).tail(1)))
    nearest = np.argsort(-(embeddings @ new[0]))[: BLOCKS[2]]
    assert set(BLOCK_OF[nearest]) == {2}


def last_item_holdout(last_items, targets):
    """A user per item: the target follows the last item."""
    items = np.stack([last_items, targets], axis=1).ravel().astype(np.int32)
    starts = 2 * np.arange(len(last_items))
    return Holdout(items, starts, starts + 1)


def misleading_holdout():
    """Targets in other blocks: the score falls as training proceeds."""
    numbers = np.arange(NUM_ITEMS)
    return last_item_holdout(numbers, (numbers + 7) % NUM_ITEMS)


def scores_of(result):
    return [figures[VALIDATION_SCORE] for figures in result.curve]


def naive_losses(logits):
    """Cross-entropy of each item with the weights of its block, item by item; an item is not its own candidate."""
    np.fill_diagonal(logits, -np.inf)
    losses = []
    for row, weights in zip(logits, block_pairs(), strict=True):
        log_softmax = row - np.log(np.exp(row).sum())
        target = weights / weights.sum()
        losses.append(-sum(t * p for t, p in zip(target, log_softmax, strict=True) if t))
    return losses
