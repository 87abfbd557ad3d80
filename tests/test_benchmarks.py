"""Synthetic data and metrics of the benchmarks."""

import json
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy import sparse

from benchmarks import association, likeness, likeness_plot, new_items, training
from recsys.config.loading import load_config
from recsys.data.pairs import Pairs
from recsys.index.exact import ExactIndex
from recsys.testing import world


def test_synthetic_pairs_of_the_memory_benchmark_can_be_loaded(tmp_path):
    training.write_pairs(tmp_path / "pairs.parquet", training.PAIRS_ITEMS, positives=3)
    matrix = Pairs([tmp_path / "pairs.parquet"], training.PAIRS_ITEMS, "weight").to_matrix().toarray()
    assert (matrix > 0).sum() == 3 * len(matrix)
    assert matrix[0, 1] > matrix[0, 2] > matrix[0, 3] > 0
    last = len(matrix) - 1
    assert matrix[last, 0] == matrix[0, 1]


def test_ndcg_of_new_items_uses_pair_weights_as_gains():
    """The first result has an irrelevant item and padding; the second is ideal."""
    relevance = sparse.csr_array(np.array([[0, 5, 2, 0, 1], [0, 0, 0, 4, 3]], float))
    results = np.array([[2, 0, 4, -1], [3, 4, 0, 1]], np.int32)
    ideal = 5 + 2 / np.log2(3) + 1 / np.log2(4)
    assert new_items.ndcg(results[:1], relevance[:1]) == pytest.approx((2 + 1 / np.log2(4)) / ideal)
    assert new_items.ndcg(results, relevance) == pytest.approx(((2 + 1 / np.log2(4)) / ideal + 1) / 2)


def test_hidden_items_are_retrieved_by_one_half_of_the_users_and_judged_by_the_other():
    """Items 4 to 6 are hidden. The halves agree on item 4 and disagree on item 6; the first has no pairs of item 5.

    Ties are ordered by item number.
    """
    vectors = np.eye(7, 5, dtype=np.float32)
    vectors[[4, 5, 6]] = np.eye(5)[[1, 0, 3]]  # by features, item 4 is near item 1, and item 6 near item 3 (correct)
    own_half, other_half = np.zeros((7, 7), np.float32), np.zeros((7, 7), np.float32)
    own_half[[4, 6], [2, 0]] = 3
    own_half[4, 6] = 9  # a pair of two hidden items is ignored
    other_half[[4, 5, 6], [2, 0, 3]] = 2
    halves = [sparse.csr_array(half) for half in (own_half, other_half)]
    report = new_items._compare_own_interactions(
        halves, {"siamese": ExactIndex(vectors)}, vectors, np.array([4, 5, 6], np.int32)
    )
    ranks = {"siamese": (3, 1), "own_half": (1, 4), "own_half_and_features": (2, 2)}
    expected = {name: np.mean([1 / np.log2(rank + 1) for rank in both]) for name, both in ranks.items()}
    assert report["queries"] == 2
    assert report["ndcg_at_20"] == pytest.approx(expected)
    assert report["ratios"]["own_half"] == pytest.approx(expected["siamese"] / expected["own_half"])


MIXES = ("mixed 0.3", "mixed 0.5", "mixed 0.7")
TOWERS = ("next", "similar", "similar_features", "lift", "windowed", *MIXES)


@pytest.mark.slow
def test_likeness_of_blocks_is_found_by_towers_and_not_by_popularity(tmp_path):
    """Items of a block have the same users, the groups are blocks, and the texts are those of a block."""
    config = load_config(world.write(tmp_path / "data"))
    blocks = {str(block): world.item_ids(block) for block in range(world.BLOCKS)}
    (tmp_path / "groups.json").write_text(json.dumps(blocks))
    texts = {item: f"text of block {block}" for block, items in blocks.items() for item in items}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    result = likeness.measure(config, tmp_path, tmp_path / "texts.json", tmp_path / "groups.json")
    assert result["users"] + result["users_held_out"] == world.BLOCKS * world.USERS_A_BLOCK
    assert 0.2 < result["users_held_out"] / (world.BLOCKS * world.USERS_A_BLOCK) < 0.5
    models = result["models"]
    towers = {name: figures for name, figures in models.items() if name.startswith("tower, ")}
    assert set(towers) == {f"tower, {name}" for name in TOWERS}
    assert result["chosen"] in {"next", "similar_features"}
    for figures in towers.values():
        assert figures["group_recall_at_10"] > 0.9
        # 7 of the 10 neighbors at most are of the block
        assert figures["column_agreement_at_10"] > 0.6
        assert figures["agreement_at_10"] > models["popularity"]["agreement_at_10"] + 0.3
        low, high = figures["intervals"]["agreement_at_10"]
        assert low <= figures["agreement_at_10"] <= high


def test_plot_names_every_model_of_every_result(tmp_path):
    def model(agreement, ndcg):
        interval = [agreement - 0.02, agreement + 0.01]
        return {
            "agreement_at_10": agreement,
            "next_item_ndcg_at_20": ndcg,
            "intervals": {"agreement_at_10": interval},
        }

    files = []
    for title, names in (("Movies & more", ("item_knn", "tower, next")), ("Music", ("popularity", "tower, lift"))):
        models = {name: model(0.1 * (number + 1), 0.02 * number) for number, name in enumerate(names)}
        (tmp_path / f"{title}.json").write_text(json.dumps({"models": models}))
        files.append(f"{title}={tmp_path / title}.json")
    likeness_plot.main(["--svg", str(tmp_path / "plot.svg"), *files])
    texts = set(ET.parse(tmp_path / "plot.svg").getroot().itertext())  # noqa: S314 - our own file
    assert texts >= {"Movies & more", "Music", "ItemKNN", "popularity", "tower, next", "tower, lift"}


def test_labels_of_the_plot_keep_their_order_and_a_distance():
    positions = likeness_plot._spread([0.1, 0.5, 0.5, 0.6, 0.6])
    assert positions[-1] == 0.6
    assert np.diff(positions).min() == pytest.approx(likeness_plot.LABEL_GAP * 0.5 / 4)
    assert positions[0] == 0.1


@pytest.mark.parametrize("content", ["[]", '{"Star Wars": "50"}', "no JSON", None])
def test_invalid_groups_are_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "groups.json").write_text(content)
    config = world.write(tmp_path / "data")
    with pytest.raises(SystemExit, match="2"):
        likeness.main(["--config", str(config), "--alike", str(tmp_path / "groups.json")])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: --alike must be a JSON file with an object: name of a group")
    assert "groups.json" in message


def test_synthetic_interactions_have_the_requested_size_and_clusters():
    interactions = association.synthetic_interactions(5_000, 1_200)
    assert interactions.shape == (200, 1_200)
    assert set(interactions.data.tolist()) == {1}
    assert 0.8 * 5_000 < interactions.nnz <= 5_000
    counts = np.asarray(interactions.sum(axis=0)).ravel().reshape(3, 400)
    assert (counts[:, :20].mean(axis=1) > 3 * counts[:, 200:].mean(axis=1)).all()
    dense = interactions.toarray()
    common = dense.T @ dense
    assert association.count_common_users(interactions, step=7) == np.count_nonzero(common)


def test_association_benchmark_measures_every_function(tmp_path):
    association.main(["--interactions", "2000", "--items", "300", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {"plain", "shrunk_lift", "partial_weights"}
    assert all(each["seconds"] >= 0 and each["peak_mib"] > 10 for each in figures.values())
