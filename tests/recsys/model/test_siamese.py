import numpy as np
import pytest

from recsys.index.distances import DISTANCES
from recsys.model import tower
from recsys.model.batches import Batches
from recsys.model.negatives import Batch
from tests.recsys.model.block_world import BY_BRAND, NUM_ITEMS, block_items, block_pairs, naive_losses

TEMPERATURE = 0.3
FIXED = {"learning_rate": 1e-12, "temperature": TEMPERATURE}
"""A learning rate too small to change any weight."""


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_loss_is_the_mean_over_the_anchors_weighted_by_a_power_of_their_pair_weights(world, power):
    """One batch, one pass, computed again in NumPy."""
    result, _, _ = world.fit(passes=1, batch_size=NUM_ITEMS, anchor_power=power, **FIXED)
    losses = naive_losses(result.embeddings.astype(float) @ result.embeddings.T / TEMPERATURE)
    weights = block_pairs().sum(axis=1)
    assert result.curve[0]["loss"] == pytest.approx(np.mean((weights / weights.mean()) ** power * losses), rel=1e-4)


def test_loss_for_new_items_compares_the_embeddings_of_features_with_the_fixed_ones(world):
    """One batch, one pass, computed again in NumPy."""
    settings = {"batch_size": NUM_ITEMS, **FIXED}
    known, model, features = world.fit(**BY_BRAND, **settings)
    new, result = world.fit_new_items(known.embeddings, model, features, passes=1, **settings)
    anchors = np.asarray(new({"tokens_0": features.transform(block_items())["tokens_0"]}), float)
    losses = naive_losses(anchors @ known.embeddings.T / TEMPERATURE)
    weights = block_pairs().sum(axis=1)
    assert result.curve[0]["loss"] == pytest.approx(np.mean((weights / weights.mean()) ** 0.5 * losses), rel=1e-4)


def test_training_for_new_items_changes_nothing_of_known_items(world):
    known, model, features = world.fit(**BY_BRAND)
    weights = model.get_weights()
    new, _ = world.fit_new_items(known.embeddings, model, features)
    embedded = tower.make_encoder(tower.combine(model, new), 7)(features.transform(block_items()))
    np.testing.assert_allclose(embedded, known.embeddings, atol=1e-6)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


class OneBatch(Batches):
    """Passes of one batch."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def one_pass(self):
        yield self.batch


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_anchor_of_a_history_is_the_weighted_mean_of_its_items(world, distance):
    """Two histories and five candidates, one of them ignored; computed again in NumPy, item by item."""
    temperature = 0.7
    histories, shares = [[1, 3, 0], [4, 0, 0]], [[1.0, 0.5, 0.25], [0.5, 0.0, 0.0]]
    targets = np.array([[-1, -1, 2, -1, 0], [0, 1, -1, 3, -1]], np.float32)
    candidates = np.array([12, 2, 7, 0, 17], np.int32)
    log_inclusion, log_popularity = np.log([1, 0.5, 0.25, 0.9, 0.1]), np.array([0.3, -0.2, 0, 0.1, 0.5])
    arrays = (shares, targets, log_inclusion, log_popularity, [0.5, 1.5])
    batch = Batch(candidates, np.array(histories, np.int32), *(np.array(each, np.float32) for each in arrays))
    result, _, _ = world.fit(
        passes=1, batches=OneBatch(batch), distance=distance, learning_rate=1e-12, temperature=temperature
    )
    embeddings = result.embeddings.astype(float)[candidates]
    losses = []
    for row, (history, weights) in enumerate(zip(histories, shares, strict=True)):
        total = sum(weight * embeddings[position] for position, weight in zip(history, weights, strict=True))
        mean = total / sum(weights)
        if distance == "cosine":
            scores = embeddings @ (mean / np.linalg.norm(mean))
        elif distance == "euclidean":
            scores = -((embeddings - mean) ** 2).sum(axis=1) / 2
        else:
            scores = -np.abs(embeddings - mean).sum(axis=1)
        logits = scores / temperature + log_popularity - np.where(targets[row] > 0, 0, log_inclusion)
        partition = sum(np.exp(logits[position]) for position in range(5) if targets[row, position] >= 0)
        positive = np.maximum(targets[row], 0)
        losses.append(-(positive / positive.sum()) @ (logits - np.log(partition)))
    assert result.curve[0]["loss"] == pytest.approx(0.5 * (0.5 * losses[0] + 1.5 * losses[1]), rel=1e-4)
