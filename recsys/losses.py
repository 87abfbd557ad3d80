"""Losses over one batch shape: anchors [B, d], candidates [C, d], targets [B, C].

A target > 0 is the weight of a positive, 0 a negative, -1 is left out. Only `keras.ops`.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def cross_entropy(anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, temperature: float) -> Any:
    """Cross-entropy between an anchor's positives and the softmax over the candidates.

    Requirements: unit vectors, so that the product is the cosine. Every positive of the anchor is a target
    at once, in proportion to its weight, so there are no accidental hits. A candidate with target -1 has
    probability exactly 0. Sampled candidates are corrected by minus the log of their inclusion probability
    (Bengio and Senécal, 2008), so that the sampled loss tends to the one over the whole catalogue.

    Args:
        anchors: float32 [B, d].
        candidates: float32 [C, d].
        targets: float32 [B, C].
        log_inclusion: float32 [C].
        temperature: divides the cosine; > 0.

    Returns:
        Loss of each anchor, float32 [B]; 0 for one without a positive among the candidates.
    """
    logits = ops.matmul(anchors, ops.transpose(candidates)) / temperature - log_inclusion  # [B, C]
    logits = ops.where(targets < 0, float("-inf"), logits)
    log_partition = ops.logsumexp(logits, axis=1)  # [B]
    positive = ops.maximum(targets, 0.0)
    total = ops.sum(positive, axis=1)  # [B]
    # -inf times 0 is NaN: ignored logits must not reach the product
    expected = ops.sum(positive * ops.where(targets < 0, 0.0, logits), axis=1)
    return ops.where(total > 0, log_partition - expected / ops.maximum(total, 1e-30), 0.0)
