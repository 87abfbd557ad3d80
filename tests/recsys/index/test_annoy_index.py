import math

import numpy as np
import pytest

from recsys.config.sections import IndexConfig
from recsys.errors import InputError, StageError
from recsys.index import annoy_index, recall
from recsys.index.annoy_index import RECALL_K
from recsys.index.distances import COSINE, DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.index.recall import tune_search_k
from recsys.index.shards import INDEX_FILE, Shard, plan_shards
from recsys.testing.neighbors_contract import NeighborsContract

DIMENSION = 5


def unit_vectors(rows, dimension=DIMENSION, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vectors_for(distance, rows, dimension=DIMENSION, seed=0):
    """Return random vectors, of unit length if the distance requires it."""
    lengths = np.random.default_rng(seed + 1).uniform(0.2, 3, (rows, 1)).astype(np.float32)
    return unit_vectors(rows, dimension, seed) * (1 if distance.unit_norm else lengths)


def build(folder, vectors, *, distance=COSINE, **options):
    return annoy_index.build(vectors, IndexConfig(**{"n_trees": 4} | options), folder / "index.ann", distance=distance)


def build_shards(folder, vectors, shard_items, *, distance=COSINE, **options):
    """Build an index of several files and load it."""
    config = IndexConfig(**{"n_trees": 4} | options)
    shards = plan_shards(len(vectors), shard_items)
    for shard in shards:
        annoy_index.build(vectors[shard.start : shard.stop], config, folder / shard.file, distance=distance)
    return annoy_index.load(folder, shards, vectors, config.n_trees * RECALL_K, distance=distance)


def load(folder, vectors, search_k, *, distance=COSINE, file=INDEX_FILE):
    """Load an index of one file."""
    return annoy_index.load(
        folder, [Shard(file=file, start=0, stop=len(vectors))], vectors, search_k, distance=distance
    )


every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=list(DISTANCES))


class TestIndex(NeighborsContract):
    @pytest.fixture
    def num_items(self):
        return 17

    @pytest.fixture(params=list(DISTANCES))
    def model(self, request, num_items, tmp_path):
        distance = DISTANCES[request.param]
        return build(tmp_path, vectors_for(distance, num_items), distance=distance)


class TestIndexOfShards(NeighborsContract):
    """Shards of different sizes; the smallest have fewer items than most queries request."""

    @pytest.fixture
    def num_items(self):
        return 17

    @pytest.fixture(params=[9, 6, 1], ids=["8 and 9 items", "5, 6 and 6 items", "1 item each"])
    def shard_items(self, request):
        return request.param

    @pytest.fixture(params=list(DISTANCES))
    def model(self, request, num_items, shard_items, tmp_path):
        distance = DISTANCES[request.param]
        return build_shards(tmp_path, vectors_for(distance, num_items), shard_items, distance=distance)


class TestIndexWithSmallSearchK(NeighborsContract):
    """Annoy alone would return fewer neighbors than requested."""

    @pytest.fixture
    def num_items(self):
        return 41

    @pytest.fixture(params=[41, 14], ids=["one file", "three files"])
    def model(self, request, num_items, tmp_path):
        built = build_shards(tmp_path, unit_vectors(num_items), request.param, n_trees=1)
        built.search_k = 1
        return built

    # an incomplete search for more neighbors can find nearer ones
    test_smaller_k_returns_a_prefix = None

    def test_returns_k_neighbors_with_a_small_search_k(self, model, queries, num_items):
        for k in (1, 7, num_items - 1):
            assert (model.top_k(queries, k) >= 0).all()


class TestIndexOfEqualVectors(NeighborsContract):
    """Each vector occurs four times, so an item may not be first in its own result."""

    @pytest.fixture
    def num_items(self):
        return 12

    @pytest.fixture(params=[12, 6, 5], ids=["one file", "two files", "three files"])
    def model(self, request, num_items, tmp_path):
        return build_shards(tmp_path, np.repeat(unit_vectors(num_items // 4), 4, axis=0), request.param)


class TestIndexOfOneItem(NeighborsContract):
    @pytest.fixture
    def num_items(self):
        return 1

    @pytest.fixture
    def model(self, tmp_path):
        return build(tmp_path, unit_vectors(1))


# --- queries


def histories(num_items, seed=5):
    """Queries of one to three items, some with one item that is the only excluded one."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, num_items, (12, 3)).astype(np.int32)
    weights = rng.uniform(0.1, 1, items.shape).astype(np.float32)
    items[::3, 1:], weights[::3, 1:] = -1, 0
    excluded = items.copy()
    excluded[3, 1] = (items[3, 0] + 1) % num_items  # one item, and another excluded
    excluded[6] = -1  # one item, and no excluded one
    return Queries(items, weights, excluded)


@every_distance
def test_a_complete_search_is_exact(tmp_path, distance):
    vectors, numbers = vectors_for(distance, 60), np.array([3, 59, 0, 3], np.int32)
    built, exact = build(tmp_path, vectors, distance=distance), ExactIndex(vectors, distance)
    built.search_k = 60 * 4
    np.testing.assert_array_equal(built.neighbors(numbers, 7), exact.neighbors(numbers, 7))
    np.testing.assert_array_equal(built.top_k(histories(60), 7), exact.top_k(histories(60), 7))


@every_distance
def test_nearest_returns_descending_similarities(tmp_path, distance):
    vectors = vectors_for(distance, 30)
    numbers, similarities = build(tmp_path, vectors, distance=distance).nearest(11, 6)
    expected = distance.similarities(vectors[11:12], vectors[numbers])[0]
    assert similarities == pytest.approx(expected.tolist(), abs=1e-5)
    assert similarities == sorted(similarities, reverse=True)
    assert len(similarities) == 6


@every_distance
def test_nearest_to_the_vector_of_an_item_starts_with_the_item(tmp_path, distance):
    vectors = vectors_for(distance, 30)
    built = build(tmp_path, vectors, distance=distance)
    numbers, similarities = built.nearest(11, 6)
    neighbors, returned_similarities = built.nearest_to_vector(vectors[11], 7)
    assert neighbors == [11, *numbers]
    assert returned_similarities == pytest.approx([1, *similarities], abs=1e-3)  # rounding of an angle near 0
    assert built.nearest_to_vector(vectors[11], 6, excluded=[11])[0] == numbers


@every_distance
def test_nearest_to_vector_excludes_items(tmp_path, distance):
    vectors = vectors_for(distance, 30)
    built, vector = build(tmp_path, vectors, distance=distance), np.array([0.3, -0.2, 0.5, 0.1, 0], np.float32)
    ranking, similarities = built.nearest_to_vector(vector, 30)
    assert sorted(ranking) == list(range(30))
    excluded = ranking[:9]
    neighbors, returned_similarities = built.nearest_to_vector(vector, 5, excluded=[*excluded, excluded[0]])
    assert neighbors == ranking[9:14]
    assert returned_similarities == pytest.approx(similarities[9:14])


@pytest.mark.parametrize(("k", "excluded"), [(0, ()), (3, range(30))], ids=["k is 0", "all items excluded"])
def test_nearest_to_vector_returns_nothing_if_no_item_is_allowed(tmp_path, k, excluded):
    vectors = unit_vectors(30)
    assert build(tmp_path, vectors).nearest_to_vector(vectors[0], k, excluded) == ([], [])


def test_nearest_to_vector_returns_k_items_with_a_small_search_k(tmp_path):
    vectors = unit_vectors(300)
    built = build(tmp_path, vectors, n_trees=1)
    built.search_k = 1
    neighbors, _ = built.nearest_to_vector(vectors[0], 40, excluded=range(0, 300, 2))
    assert len(neighbors) == 40
    assert all(number % 2 for number in neighbors)


def test_cosine_ignores_the_length_of_the_query_vector(tmp_path):
    vectors = unit_vectors(30)
    built = build(tmp_path, vectors)
    for length in (0.01, 20):
        numbers, similarities = built.nearest_to_vector(vectors[3] * length, 8)
        assert (numbers, similarities) == (
            built.nearest_to_vector(vectors[3], 8)[0],
            pytest.approx(similarities, abs=1e-5),
        )


@pytest.mark.parametrize(
    ("vector", "received"),
    [(np.zeros(4), r"shape \[4\]"), (np.zeros((1, 5)), r"\[1, 5\]"), (np.full(5, np.nan), "0 finite numbers")],
    ids=["short", "two axes", "NaN"],
)
def test_rejects_invalid_query_vectors(tmp_path, vector, received):
    with pytest.raises(InputError, match=rf"finite and of shape \[5\].*{received}"):
        build(tmp_path, unit_vectors(9)).nearest_to_vector(vector, 3)


def test_query_blocks_do_not_change_the_result(tmp_path, monkeypatch):
    built = build(tmp_path, unit_vectors(50))
    expected = built.top_k(histories(50), 5)
    monkeypatch.setattr(annoy_index, "QUERY_BLOCK", 3)
    np.testing.assert_array_equal(built.top_k(histories(50), 5), expected)


def test_nearest_handles_opposite_and_orthogonal_vectors(tmp_path):
    vectors = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0.6, 0.8, 0]], np.float32)
    numbers, similarities = build(tmp_path, vectors).nearest(0, 9)
    assert numbers == [3, 1, 2]
    assert similarities == pytest.approx([0.6, 0, -1], abs=1e-6)


def test_length_is_the_number_of_items(tmp_path):
    assert len(build(tmp_path, unit_vectors(7))) == 7


# --- shards


def test_a_small_catalog_has_one_shard():
    assert plan_shards(7, 7) == plan_shards(7, 1_000) == [Shard(file="index.ann", start=0, stop=7)]


@pytest.mark.parametrize(("num_items", "shard_items"), [(8, 7), (17, 6), (100, 33), (5, 1)])
def test_shards_cover_all_items_and_are_balanced(num_items, shard_items):
    shards = plan_shards(num_items, shard_items)
    assert [number for shard in shards for number in range(shard.start, shard.stop)] == list(range(num_items))
    assert len(shards) == math.ceil(num_items / shard_items)
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) <= min(shard_items, min(sizes) + 1)
    assert len({shard.file for shard in shards}) == len(shards)


@every_distance
@pytest.mark.parametrize("shard_items", [31, 20, 4], ids=["2 shards", "3 shards", "15 shards"])
def test_a_complete_search_of_shards_agrees_with_one_file(tmp_path, distance, shard_items):
    vectors, numbers = vectors_for(distance, 60), np.array([3, 59, 0, 3], np.int32)
    built = build(tmp_path, vectors, distance=distance)
    sharded, exact = build_shards(tmp_path, vectors, shard_items, distance=distance), ExactIndex(vectors, distance)
    built.search_k = sharded.search_k = 60 * 4
    np.testing.assert_array_equal(sharded.neighbors(numbers, 7), exact.neighbors(numbers, 7))
    np.testing.assert_array_equal(sharded.top_k(histories(60), 7), exact.top_k(histories(60), 7))
    for number in (0, 19, 20, 30, 31, 59):
        assert sharded.nearest(number, 70) == built.nearest(number, 70)
        vector = vectors[number] + np.float32(0.25)
        assert sharded.nearest_to_vector(vector, 9, [number, 5]) == built.nearest_to_vector(vector, 9, [number, 5])


@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_ties_go_by_item_number_across_shards(tmp_path, distance):
    """The vectors are integers, so distances are exact."""
    vectors = np.random.default_rng(2).integers(0, 3, (50, 3)).astype(np.float32)
    for shard_items in (50, 17, 3):
        built = build_shards(tmp_path, vectors, shard_items, distance=DISTANCES[distance])
        built.search_k = 10_000
        for number in range(50):
            distances = built.distance.between(vectors.astype(float), vectors[number])
            candidates = [candidate for candidate in range(50) if candidate != number]
            assert (
                built.nearest(number, 20)[0]
                == sorted(candidates, key=lambda candidate: (distances[candidate], candidate))[:20]
            )


@every_distance
def test_tunes_the_recall_of_the_merged_result(tmp_path, distance):
    vectors = vectors_for(distance, 600, 12)
    config = {"n_trees": 3, "recall_target": 0.9, "recall_floor": 0.8}
    built = build_shards(tmp_path, vectors, 170, distance=distance, **config)
    tuned = tune_search_k(built, vectors, IndexConfig(**config), k=9, sample_size=600)
    assert 0.9 <= tuned.recall < 1
    all_items = np.arange(600, dtype=np.int32)
    assert naive_recall(built, vectors, all_items, 9) == pytest.approx(tuned.recall, abs=1e-3)


def test_compares_every_shard_with_its_vectors(tmp_path):
    vectors = unit_vectors(40)
    build_shards(tmp_path, vectors, 10)
    shards = plan_shards(40, 10)
    for shard in shards:
        changed = vectors.copy()
        changed[shard.stop - 1] *= -1
        with pytest.raises(InputError, match=rf"{shard.file} .*another vector for item number {shard.stop - 1}\b"):
            annoy_index.load(tmp_path, shards, changed, search_k=10)


def test_rejects_swapped_shards(tmp_path):
    vectors = unit_vectors(40)
    build_shards(tmp_path, vectors, 20)
    first, second = plan_shards(40, 20)
    swapped = [first.model_copy(update={"file": second.file}), second.model_copy(update={"file": first.file})]
    with pytest.raises(InputError, match=r"index-00001\.ann .*another vector for item number 0\b"):
        annoy_index.load(tmp_path, swapped, vectors, search_k=10)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 20)], "must hold 40 items. Received: 20 items"),
        ([], "must hold 40 items. Received: 0 items"),
        ([(0, 20), (20, 40), (40, 41)], "must hold 40 items. Received: 41 items"),
        ([(0, 20), (21, 40)], r"index-1\.ann .*must start at item number 20.*Received: 21 to 40"),
        ([(0, 20), (19, 40)], r"index-1\.ann .*must start at item number 20.*Received: 19 to 40"),
        ([(20, 40), (0, 20)], r"index-0\.ann .*must start at item number 0.*Received: 20 to 40"),
        ([(0, 20), (20, 20), (20, 40)], r"index-1\.ann .*at least one item. Received: 20 to 20"),
    ],
    ids=["too few", "none", "too many", "gap", "overlap", "wrong order", "empty shard"],
)
def test_rejects_shards_with_gaps_or_overlaps(tmp_path, ranges, message):
    shards = [Shard(file=f"index-{n}.ann", start=start, stop=stop) for n, (start, stop) in enumerate(ranges)]
    with pytest.raises(InputError, match=message):
        annoy_index.load(tmp_path, shards, unit_vectors(40), search_k=10)


# --- build


def test_building_twice_gives_the_same_bytes(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    vectors = unit_vectors(200)
    build(tmp_path / "one", vectors)
    build(tmp_path / "two", vectors)
    assert (tmp_path / "one" / "index.ann").read_bytes() == (tmp_path / "two" / "index.ann").read_bytes()


def test_another_seed_gives_another_index(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    build(tmp_path / "one", unit_vectors(200))
    monkeypatch.setattr(annoy_index, "SEED", 4)
    build(tmp_path / "two", unit_vectors(200))
    assert (tmp_path / "one" / "index.ann").read_bytes() != (tmp_path / "two" / "index.ann").read_bytes()


def test_build_blocks_do_not_change_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(annoy_index, "BLOCK", 4)
    vectors = unit_vectors(11)
    build(tmp_path, vectors)
    loaded = load(tmp_path, vectors, search_k=100)
    assert len(loaded) == 11
    np.testing.assert_array_equal(
        loaded.neighbors(np.arange(11, dtype=np.int32), 3),
        ExactIndex(vectors).neighbors(np.arange(11, dtype=np.int32), 3),
    )


# --- load


def test_a_loaded_index_agrees_with_the_built_one(tmp_path):
    vectors, numbers = unit_vectors(80), np.arange(0, 80, 7, dtype=np.int32)
    built = build(tmp_path, vectors)
    loaded = load(tmp_path, vectors, search_k=built.search_k)
    np.testing.assert_array_equal(loaded.neighbors(numbers, 9), built.neighbors(numbers, 9))
    assert loaded.search_k == built.search_k


@pytest.mark.parametrize("dimension", [DIMENSION - 1, DIMENSION + 1, 2 * DIMENSION], ids="dimension {}".format)
def test_rejects_an_index_of_another_dimension(tmp_path, dimension):
    build(tmp_path, unit_vectors(20))
    with pytest.raises(InputError, match=r"index\.ann"):
        load(tmp_path, unit_vectors(20, dimension), search_k=10)


@pytest.mark.parametrize("num_items", [19, 21], ids="{} items".format)
def test_rejects_an_index_of_another_number_of_items(tmp_path, num_items):
    build(tmp_path, unit_vectors(20))
    with pytest.raises(InputError, match=f"must hold {num_items} items"):
        load(tmp_path, unit_vectors(num_items), search_k=10)


@every_distance
def test_a_loaded_index_has_the_distance_it_was_loaded_with(tmp_path, distance):
    vectors = vectors_for(distance, 20)
    built = build(tmp_path, vectors, distance=distance)
    loaded = load(tmp_path, vectors, built.search_k, distance=distance)
    assert loaded.distance == built.distance == distance
    assert loaded.nearest(3, 5) == built.nearest(3, 5)


@pytest.mark.parametrize(("saved", "loaded"), [("cosine", "euclidean"), ("manhattan", "cosine")], ids=str)
def test_rejects_an_index_of_another_layout(tmp_path, saved, loaded):
    vectors = unit_vectors(20)
    build(tmp_path, vectors, distance=DISTANCES[saved])
    with pytest.raises(InputError, match=r"index\.ann"):
        load(tmp_path, vectors, search_k=10, distance=DISTANCES[loaded])


def test_rejects_an_index_of_other_vectors(tmp_path):
    vectors = unit_vectors(20)
    build(tmp_path, vectors)
    with pytest.raises(InputError, match="another vector"):
        load(tmp_path, vectors[::-1].copy(), search_k=10)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9], ids="{} of the bytes".format)
def test_rejects_a_truncated_file(tmp_path, share):
    vectors, path = unit_vectors(40), tmp_path / "index.ann"
    build(tmp_path, vectors)
    content = path.read_bytes()
    (tmp_path / "index-0.ann").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"index-0\.ann"):
        load(tmp_path, vectors, search_k=10, file="index-0.ann")


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"index\.ann"):
        load(tmp_path, unit_vectors(3), search_k=10)


# --- recall and tuning


def naive_recall(built, vectors, sample, k):
    shares = []
    for number in sample.tolist():
        distances = built.distance.between(vectors.astype(float), vectors[number])
        distances[number] = np.inf
        exact = set(np.argsort(distances)[:k].tolist())
        shares.append(len(exact & set(built.nearest(number, k)[0])) / k)
    return float(np.mean(shares))


def measured_recall(built, vectors, sample, k):
    exact = ExactIndex(vectors, built.distance).neighbors(sample, k)
    return recall.recall(built.neighbors(sample, k), exact, vectors, sample, built.distance)


@every_distance
@pytest.mark.parametrize("search_k", [1, 30, 10_000], ids="search_k {}".format)
def test_recall_agrees_with_a_naive_computation(tmp_path, search_k, distance):
    vectors, sample = vectors_for(distance, 300), np.arange(0, 300, 11, dtype=np.int32)
    built = build(tmp_path, vectors, n_trees=2, distance=distance)
    built.search_k = search_k
    assert measured_recall(built, vectors, sample, 8) == pytest.approx(
        naive_recall(built, vectors, sample, 8), abs=1e-9
    )


@every_distance
@pytest.mark.parametrize("scale", [1, 1_000, 0.001], ids="scale {}".format)
def test_recall_counts_ties(tmp_path, distance, scale):
    """Each vector occurs ten times: any three of the nine equal neighbors are correct."""
    vectors = np.repeat(vectors_for(distance, 4), 10, axis=0) * np.float32(1 if distance.unit_norm else scale)
    built = build(tmp_path, vectors, distance=distance)
    assert measured_recall(built, vectors, np.arange(40, dtype=np.int32), 3) == 1.0


def test_recall_of_a_catalog_smaller_than_k(tmp_path):
    vectors = unit_vectors(6)
    assert measured_recall(build(tmp_path, vectors), vectors, np.arange(6, dtype=np.int32), 20) == 1.0


@every_distance
def test_tuning_chooses_about_the_smallest_search_k(tmp_path, distance):
    vectors = vectors_for(distance, 600, 12)
    config = IndexConfig(n_trees=3, recall_target=0.9, recall_floor=0.8)
    built = annoy_index.build(vectors, config, tmp_path / "index.ann", distance=distance)
    attempts = []
    tuned = tune_search_k(
        built, vectors, config, on_try=lambda *attempt: attempts.append(attempt), k=9, sample_size=120
    )
    all_items = np.arange(600, dtype=np.int32)
    assert built.search_k == tuned.search_k
    assert tuned.recall >= 0.9
    assert naive_recall(built, vectors, all_items, 9) == pytest.approx(tuned.recall, abs=0.05)
    assert tuned.curve == sorted(attempts)
    assert dict(tuned.curve)[tuned.search_k] == tuned.recall
    assert all(value < 0.9 for search_k, value in tuned.curve if search_k < 0.89 * tuned.search_k)


@pytest.mark.parametrize(
    ("recalls", "target", "smallest", "largest"),
    [
        ({10: 0.5}, 0.9, 2, 2),
        ({10: 0.5, 20: 0.75}, 0.875, 2, 2),
        ({10: 0.5, 20: 0.75}, 0.8, 1.24, 1.26),
        ({10: 0.5, 20: 0.75}, 0.751, 1.1, 1.1),
        ({10: 0.5, 20: 0.5 + 1e-9}, 0.9, 2, 2),
        ({10: 0.5, 20: 0.4}, 0.9, 2, 2),
        ({10: 0.5, 20: 0.75}, 1.0, 2, 2),
    ],
    ids=["one try", "misses halve", "between", "nearly reached", "no progress", "chance", "no misses"],
)
def test_tuning_extrapolates_the_misses(recalls, target, smallest, largest):
    """From 10 to 20 the misses halve, as a power of the number of nodes with exponent 1."""
    assert smallest <= recall._growth(recalls, target) <= largest


def test_tuning_is_repeatable(tmp_path):
    vectors = unit_vectors(200, 12)
    config = IndexConfig(n_trees=2, recall_target=0.9, recall_floor=0.8)
    built = annoy_index.build(vectors, config, tmp_path / "index.ann")
    first, second = (tune_search_k(built, vectors, config, k=5, sample_size=50) for _ in range(2))
    assert first == second


def test_tuning_fails_below_the_floor(tmp_path):
    vectors = unit_vectors(600, 24)
    config = IndexConfig(n_trees=1)
    built = annoy_index.build(vectors, config, tmp_path / "index.ann")
    with pytest.raises(StageError, match=r"at least 0\.95.*search_k 3\b"):
        tune_search_k(built, vectors, config, k=10, sample_size=60, max_search_k=3)


def test_tuning_uses_max_search_k_between_floor_and_target(tmp_path):
    vectors = unit_vectors(600, 24)
    config = IndexConfig(n_trees=1, recall_floor=0.05, recall_target=1.0)
    built = annoy_index.build(vectors, config, tmp_path / "index.ann")
    tuned = tune_search_k(built, vectors, config, k=10, sample_size=60, max_search_k=40)
    assert tuned.search_k == built.search_k == 40
    assert 0.05 <= tuned.recall < 1


@pytest.mark.parametrize("num_items", [1, 2, 6], ids="{} items".format)
def test_tuning_supports_tiny_catalogs(tmp_path, num_items):
    vectors = unit_vectors(num_items)
    config = IndexConfig(n_trees=2)
    built = annoy_index.build(vectors, config, tmp_path / "index.ann")
    assert tune_search_k(built, vectors, config).recall == 1.0
