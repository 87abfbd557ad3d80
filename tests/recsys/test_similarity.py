import numpy as np
import pytest
from annoy import AnnoyIndex

from recsys.similarity import METRIC, distance, similarity


@pytest.mark.parametrize(
    ("degrees", "chord"),
    [(0, 0.0), (60, 1.0), (90, 1.4142135), (120, 1.7320508), (180, 2.0)],
    ids="{}".format,
)
def test_similarity_and_distance_at_known_angles(degrees, chord):
    """The distance is the chord of the angle on the unit circle, 2 sin(angle / 2)."""
    cosine = np.cos(np.radians(degrees))
    assert similarity(chord) == pytest.approx(cosine, abs=1e-6)
    assert distance(cosine) == pytest.approx(chord, abs=1e-6)


def test_agrees_with_annoy_on_the_cosine_of_two_vectors():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5, 3))
    annoy = AnnoyIndex(3, METRIC)
    for number, vector in enumerate(vectors):
        annoy.add_item(number, vector.tolist())
    annoy.build(1)
    for one, other in ((0, 1), (2, 3), (1, 4)):
        cosine = vectors[one] @ vectors[other] / np.linalg.norm(vectors[one]) / np.linalg.norm(vectors[other])
        assert similarity(annoy.get_distance(one, other)) == pytest.approx(cosine, abs=1e-6)


def test_takes_arrays_elementwise():
    cosines = np.array([[1.0, 0.5, -0.25], [0.0, -1.0, 0.75]])
    np.testing.assert_allclose(similarity(distance(cosines)), cosines, atol=1e-12)


def test_a_cosine_just_above_one_is_no_distance():
    """Rounding must not turn into NaN."""
    assert distance(np.float32(1.0000001)) == 0.0
