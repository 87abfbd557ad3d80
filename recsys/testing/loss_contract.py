"""Tests for every loss of anchors [B, d], candidates [C, d] and targets [B, C]."""

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
    """Move a unit vector by a share of the way to another."""
    return unit((1 - share) * vector + share * goal)


def values(loss, *batch):
    """Return the loss of each anchor, [B]."""
    return np.asarray(loss(*(tf.constant(part) for part in batch)))


def gradients(loss, anchors, candidates, *rest):
    """Return the gradients of the summed loss with respect to anchors and candidates."""
    variables = [tf.Variable(anchors), tf.Variable(candidates)]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(*variables, *(tf.constant(part) for part in rest)))
    return [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(total, variables)]


class LossContract:
    """Inherit and provide the fixture `loss`.

    Called with anchors, candidates, targets, log_inclusion [C] and log_popularity [C], it returns the loss of each
    anchor, [B]. A margin must be greater than the distances between random unit vectors.
    """

    @pytest.fixture
    def batch(self):
        """Positives, negatives and an ignored candidate for each anchor; the last anchor has no positives."""
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
            rng.uniform(-2, 0, CANDIDATES).astype(np.float32),
        )

    def test_returns_one_finite_value_per_anchor(self, loss, batch):
        losses = values(loss, *batch)
        assert losses.shape == (BATCH,)
        assert losses.dtype == np.float32
        assert np.isfinite(losses).all()

    def test_traced_loss_is_equal_for_any_number_of_candidates(self, loss, batch):
        """Only the dimension is known when the loss is traced."""
        shapes = [(None, DIMENSION), (None, DIMENSION), (None, None), (None,), (None,)]

        @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
        def traced(*parts):
            with tf.GradientTape() as tape:
                tape.watch(parts[:2])
                losses = loss(*parts)
                total = tf.reduce_sum(losses)
            return losses, tape.gradient(total, parts[:2])

        losses, actual_gradients = traced(*map(tf.constant, batch))
        np.testing.assert_allclose(losses, values(loss, *batch), rtol=1e-5, atol=1e-6)
        for gradient, expected in zip(actual_gradients, gradients(loss, *batch), strict=True):
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)

    def test_ignored_candidate_has_no_gradient(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[:, IGNORED] = -1
        _, by_candidate = gradients(loss, anchors, candidates, targets, *logs)
        assert (by_candidate[IGNORED] == 0).all()
        assert (by_candidate[POSITIVE] != 0).any()

    def test_position_of_an_ignored_candidate_does_not_matter(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[:, IGNORED] = -1
        moved = candidates.copy()
        moved[IGNORED] = anchors[0]
        expected = values(loss, anchors, candidates, targets, *logs)
        np.testing.assert_array_equal(values(loss, anchors, moved, targets, *logs), expected)

    def test_ignored_candidate_can_be_removed(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[:, IGNORED] = -1
        remaining = np.delete(np.arange(CANDIDATES), IGNORED)
        without = values(
            loss, anchors, candidates[remaining], targets[:, remaining], *(part[remaining] for part in logs)
        )
        np.testing.assert_allclose(values(loss, *batch), without, rtol=1e-5)

    def test_order_of_the_candidates_does_not_matter(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        order = np.array([4, 0, 6, 2, 5, 1, 3])
        shuffled = values(loss, anchors, candidates[order], targets[:, order], *(part[order] for part in logs))
        np.testing.assert_allclose(shuffled, values(loss, *batch), rtol=1e-5)

    def test_order_of_the_anchors_does_not_matter(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        order = np.array([2, 3, 1, 0])
        shuffled = values(loss, anchors[order], candidates, targets[order], *logs)
        np.testing.assert_allclose(shuffled, values(loss, *batch)[order], rtol=1e-5)

    def test_scaling_the_weights_of_an_anchor_does_not_change_the_loss(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        scaled = np.where(targets > 0, targets * np.array([[4.0], [0.5], [8.0], [1.0]]), targets).astype(np.float32)
        np.testing.assert_allclose(values(loss, anchors, candidates, scaled, *logs), values(loss, *batch), rtol=1e-5)

    def test_anchor_without_positives_has_a_finite_loss_and_gradient(self, loss, batch):
        assert np.isfinite(values(loss, *batch)[WITHOUT_POSITIVES])
        for gradient in gradients(loss, *batch):
            assert np.isfinite(gradient).all()

    def test_anchor_without_negatives_has_a_finite_loss_and_gradient(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[0] = np.where(targets[0] == 0, -1, targets[0])
        assert np.isfinite(values(loss, anchors, candidates, targets, *logs)).all()
        for gradient in gradients(loss, anchors, candidates, targets, *logs):
            assert np.isfinite(gradient).all()

    def test_anchor_with_only_ignored_candidates_has_a_finite_loss_and_gradient(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[WITHOUT_POSITIVES] = -1
        assert np.isfinite(values(loss, anchors, candidates, targets, *logs)).all()
        for gradient in gradients(loss, anchors, candidates, targets, *logs):
            assert np.isfinite(gradient).all()

    def test_candidates_equal_to_the_anchor_have_a_finite_loss_and_gradient(self, loss, batch):
        anchors, candidates, *rest = batch
        candidates[:] = anchors[0]
        assert np.isfinite(values(loss, anchors, candidates, *rest)).all()
        for gradient in gradients(loss, anchors, candidates, *rest):
            assert np.isfinite(gradient).all()

    def test_falls_when_a_positive_moves_closer(self, loss, batch):
        anchors, candidates, *rest = batch
        losses = []
        for share in (0.0, 0.3, 0.6, 0.9):
            moved = candidates.copy()
            moved[POSITIVE] = towards(candidates[POSITIVE], anchors[0], share)
            losses.append(values(loss, anchors, moved, *rest)[0])
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]

    def test_rises_when_a_negative_moves_closer(self, loss, batch):
        anchors, candidates, *rest = batch
        losses = []
        for share in (0.0, 0.3, 0.6, 0.9):
            moved = candidates.copy()
            moved[NEGATIVE] = towards(candidates[NEGATIVE], anchors[0], share)
            losses.append(values(loss, anchors, moved, *rest)[0])
        assert losses == sorted(losses)
        assert losses[-1] > losses[0]

    def test_gradient_agrees_with_finite_differences(self, loss, batch):
        """Compares with a central difference in one random direction of all anchors and candidates."""
        anchors, candidates, *rest = batch
        rng = np.random.default_rng(5)
        directions = [rng.normal(size=part.shape).astype(np.float32) for part in (anchors, candidates)]
        step = 1e-3

        def total(sign):
            moved = [part + sign * step * way for part, way in zip((anchors, candidates), directions, strict=True)]
            return values(loss, *moved, *rest).astype(np.float64).sum()

        slope = (total(1) - total(-1)) / (2 * step)
        by_anchor, by_candidate = gradients(loss, *batch)
        expected = (by_anchor * directions[0]).sum() + (by_candidate * directions[1]).sum()
        assert slope == pytest.approx(expected, rel=0.02)
