"""What holds for every loss over anchors [B, d], candidates [C, d] and targets [B, C]."""

import numpy as np
import pytest
import tensorflow as tf

BATCH, CANDIDATES, DIMENSION = 4, 7, 3
POSITIVE, NEGATIVE, IGNORED = 2, 5, 0
"""Candidates of the first anchor."""
WITHOUT_POSITIVES = 3


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def towards(vector, goal, share):
    """Walk a share of the way from one unit vector to another."""
    return unit((1 - share) * vector + share * goal)


class LossContract:
    """Inherit and define `loss(anchors, candidates, targets, log_inclusion)` -> the loss of each anchor, [B]."""

    def loss(self, anchors, candidates, targets, log_inclusion):
        raise NotImplementedError

    @pytest.fixture
    def batch(self):
        """Positives, negatives and an ignored candidate for each anchor; the last has no positive."""
        rng = np.random.default_rng(11)
        targets = np.zeros((BATCH, CANDIDATES), np.float32)
        targets[np.arange(BATCH), np.arange(BATCH)] = -1
        targets[0, [POSITIVE, 6]] = [2.0, 0.5]
        targets[1, 4] = 1.5
        targets[2, [3, 5, 6]] = [1.0, 3.0, 0.25]
        return (
            unit(rng.normal(size=(BATCH, DIMENSION))),
            unit(rng.normal(size=(CANDIDATES, DIMENSION))),
            targets,
            rng.uniform(-2, 0, CANDIDATES).astype(np.float32),
        )

    def values(self, *batch):
        return np.asarray(self.loss(*(tf.constant(part) for part in batch)))

    def gradients(self, anchors, candidates, targets, log_inclusion):
        """Of the summed loss, by anchors and by candidates."""
        moving = [tf.Variable(anchors), tf.Variable(candidates)]
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(self.loss(*moving, tf.constant(targets), tf.constant(log_inclusion)))
        return [gradient.numpy() for gradient in tape.gradient(total, moving)]

    def test_gives_one_finite_value_an_anchor(self, batch):
        values = self.values(*batch)
        assert values.shape == (BATCH,)
        assert np.isfinite(values).all()

    def test_an_ignored_candidate_gets_no_gradient_at_all(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        targets[:, IGNORED] = -1
        _, by_candidate = self.gradients(anchors, candidates, targets, log_inclusion)
        assert (by_candidate[IGNORED] == 0).all()
        assert (by_candidate[NEGATIVE] != 0).any()

    def test_an_ignored_candidate_changes_nothing_wherever_it_lies(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        targets[:, IGNORED] = -1
        elsewhere = candidates.copy()
        elsewhere[IGNORED] = anchors[0]
        here = self.values(anchors, candidates, targets, log_inclusion)
        np.testing.assert_array_equal(self.values(anchors, elsewhere, targets, log_inclusion), here)

    def test_an_ignored_candidate_may_as_well_be_absent(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        targets[:, IGNORED] = -1
        kept = np.delete(np.arange(CANDIDATES), IGNORED)
        without = self.values(anchors, candidates[kept], targets[:, kept], log_inclusion[kept])
        np.testing.assert_allclose(self.values(*batch), without, rtol=1e-5)

    def test_the_order_of_the_candidates_does_not_matter(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        order = np.array([4, 0, 6, 2, 5, 1, 3])
        shuffled = self.values(anchors, candidates[order], targets[:, order], log_inclusion[order])
        np.testing.assert_allclose(shuffled, self.values(*batch), rtol=1e-5)

    def test_the_order_of_the_batch_does_not_matter(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        order = np.array([2, 3, 1, 0])
        shuffled = self.values(anchors[order], candidates, targets[order], log_inclusion)
        np.testing.assert_allclose(shuffled, self.values(*batch)[order], rtol=1e-5)

    def test_an_anchor_without_positives_is_harmless(self, batch):
        """Its loss is finite and so is every gradient."""
        assert np.isfinite(self.values(*batch)[WITHOUT_POSITIVES])
        for gradient in self.gradients(*batch):
            assert np.isfinite(gradient).all()

    def test_an_anchor_against_ignored_candidates_only_is_harmless(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        targets[WITHOUT_POSITIVES] = -1
        assert np.isfinite(self.values(anchors, candidates, targets, log_inclusion)).all()
        for gradient in self.gradients(anchors, candidates, targets, log_inclusion):
            assert np.isfinite(gradient).all()

    def test_falls_when_a_positive_moves_closer(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        losses = []
        for share in (0.0, 0.3, 0.6, 0.9):
            moved = candidates.copy()
            moved[POSITIVE] = towards(candidates[POSITIVE], anchors[0], share)
            losses.append(self.values(anchors, moved, targets, log_inclusion)[0])
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]

    def test_rises_when_a_negative_moves_closer(self, batch):
        anchors, candidates, targets, log_inclusion = batch
        losses = []
        for share in (0.0, 0.3, 0.6, 0.9):
            moved = candidates.copy()
            moved[NEGATIVE] = towards(candidates[NEGATIVE], anchors[0], share)
            losses.append(self.values(anchors, moved, targets, log_inclusion)[0])
        assert losses == sorted(losses)
        assert losses[-1] > losses[0]

    def test_the_gradient_is_the_slope_of_the_values(self, batch):
        """Central differences, in one direction for all anchors and candidates at once."""
        anchors, candidates, targets, log_inclusion = batch
        rng = np.random.default_rng(5)
        directions = [rng.normal(size=part.shape).astype(np.float32) for part in (anchors, candidates)]
        step = 5e-3

        def total(sign):
            moved = [part + sign * step * way for part, way in zip((anchors, candidates), directions, strict=True)]
            return self.values(*moved, targets, log_inclusion).astype(np.float64).sum()

        slope = (total(1) - total(-1)) / (2 * step)
        by_anchor, by_candidate = self.gradients(*batch)
        expected = (by_anchor * directions[0]).sum() + (by_candidate * directions[1]).sum()
        assert slope == pytest.approx(expected, rel=0.02)
