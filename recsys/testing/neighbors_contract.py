"""Tests for everything that returns neighbors: an index, exact search, baselines."""

import numpy as np
import pytest

from recsys.evaluation.metrics import target_ranks
from recsys.index.queries import PADDING, Queries


def build_queries(rows, excluded=None):
    """Return queries with rows of (item, weight) and rows of excluded items, by default the items of the query."""
    if excluded is None:
        excluded = [[item for item, _ in row] for row in rows]
    length = max([1, *map(len, rows)])
    width = max([1, *map(len, excluded)])
    items = [[item for item, _ in row] + [PADDING] * (length - len(row)) for row in rows]
    weights = [[weight for _, weight in row] + [0.0] * (length - len(row)) for row in rows]
    padded = [[*row, *[PADDING] * (width - len(row))] for row in excluded]
    return Queries(
        np.array(items, np.int32).reshape(-1, length),
        np.array(weights, np.float32).reshape(-1, length),
        np.array(padded, np.int32).reshape(-1, width),
    )


def histories(num_items):
    """Return rows of 1 to 4 (item, weight), newest first."""
    rng = np.random.default_rng(8)
    lengths = [1 + row % 4 for row in range(11)]
    chosen = [rng.choice(num_items, min(length, num_items), replace=False).tolist() for length in lengths]
    return [[(item, 0.5**step) for step, item in enumerate(row)] for row in chosen]


class NeighborsContract:
    """Inherit and provide the fixtures `model` and `num_items`, the number of its items.

    A model without a fixed order of ties overrides `assert_equal`.
    """

    def assert_equal(self, answers, expected):
        """Check that two results of a query are equal."""
        np.testing.assert_array_equal(answers, expected)

    @pytest.fixture
    def queries(self, num_items):
        """Single-item queries of all items in random order, one of them twice."""
        order = np.random.default_rng(3).permutation(num_items).astype(np.int32)
        return Queries.from_items(np.append(order, order[:1]))

    @pytest.fixture(params=["items", "histories"])
    def any_queries(self, request, queries, num_items):
        return queries if request.param == "items" else build_queries(histories(num_items))

    @pytest.mark.parametrize("k", [1, 4], ids="k={}".format)
    def test_returns_k_int32_columns_for_each_query(self, model, any_queries, k):
        answers = model.top_k(any_queries, k)
        assert answers.shape == (len(any_queries), k)
        assert answers.dtype == np.int32

    def test_returns_only_existing_items_or_padding(self, model, any_queries, num_items):
        answers = model.top_k(any_queries, num_items + 2)
        assert set(answers.ravel().tolist()) <= {PADDING, *range(num_items)}

    def test_never_returns_excluded_items(self, model, any_queries, num_items):
        answers = model.top_k(any_queries, num_items + 2)
        for excluded, answer in zip(any_queries.excluded.tolist(), answers.tolist(), strict=True):
            assert not ({*excluded} - {PADDING}) & {*answer}

    def test_exclusion_removes_only_the_excluded_items(self, model, num_items):
        """Excluded items can differ from the query items; their order and padding do not matter."""
        rows = histories(num_items)
        rng = np.random.default_rng(4)
        query_items = [[item for item, _ in row] for row in rows]
        exclusions = [
            [*row, PADDING, *rng.integers(0, num_items, number % 4).tolist()] for number, row in enumerate(query_items)
        ]
        complete = model.top_k(build_queries(rows, query_items), num_items).tolist()
        remaining = [
            [item for item in answer if item != PADDING and item not in excluded]
            for answer, excluded in zip(complete, exclusions, strict=True)
        ]
        expected = [answer + [PADDING] * (num_items - len(answer)) for answer in remaining]
        self.assert_equal(model.top_k(build_queries(rows, exclusions), num_items), np.array(expected, np.int32))

    @pytest.mark.parametrize("k", [1, 4], ids="k={}".format)
    def test_ranks_agree_with_the_result(self, model, any_queries, num_items, k):
        """Each item is the target of each query once, also if it is excluded."""
        answers = model.top_k(any_queries, k).tolist()
        for target in range(num_items):
            expected = [answer.index(target) if target in answer else k for answer in answers]
            ranks = target_ranks(model, any_queries, np.full(len(any_queries), target, np.int32), k)
            assert ranks.tolist() == expected
            assert ranks.dtype == np.int64

    def test_neighbors_are_distinct(self, model, any_queries, num_items):
        for answer in model.top_k(any_queries, num_items + 2).tolist():
            neighbors = [number for number in answer if number != PADDING]
            assert len(neighbors) == len(set(neighbors))

    def test_pads_at_the_end_only(self, model, any_queries, num_items):
        for answer in model.top_k(any_queries, num_items + 2).tolist():
            padded = [number == PADDING for number in answer]
            assert padded == sorted(padded)

    @pytest.mark.parametrize("beyond", [0, 1, 5], ids="catalog+{}".format)
    def test_pads_if_k_exceeds_the_catalog(self, model, queries, num_items, beyond):
        answers = model.top_k(queries, num_items + beyond)
        assert answers.shape == (len(queries), num_items + beyond)
        assert (answers[:, num_items - 1 :] == PADDING).all()

    def test_pads_if_all_other_items_are_excluded(self, model, num_items):
        row = histories(num_items)[3]
        assert (model.top_k(build_queries([row], [range(num_items)]), 3) == PADDING).all()
        assert (model.top_k(build_queries([row], [range(1, num_items)]), 3)[:, 1:] == PADDING).all()

    def test_smaller_k_returns_a_prefix(self, model, any_queries, num_items):
        longest = model.top_k(any_queries, num_items + 2)
        for k in range(1, num_items + 2):
            self.assert_equal(model.top_k(any_queries, k), longest[:, :k])

    def test_result_does_not_depend_on_other_queries(self, model, any_queries):
        batch = model.top_k(any_queries, 4)
        single = [model.top_k(any_queries[row : row + 1], 4) for row in range(len(any_queries))]
        self.assert_equal(batch, np.concatenate(single))

    def test_no_queries_have_no_results(self, model, any_queries):
        assert model.top_k(any_queries[:0], 3).shape == (0, 3)

    def test_order_of_query_items_does_not_matter(self, model, num_items):
        rows = histories(num_items)
        reversed_rows = [row[::-1] for row in rows]
        self.assert_equal(
            model.top_k(build_queries(reversed_rows), num_items), model.top_k(build_queries(rows), num_items)
        )

    def test_scaling_the_weights_does_not_change_the_result(self, model, num_items):
        """A power of two scales without rounding, so ties remain ties."""
        rows = histories(num_items)
        scaled = [[(item, weight * 8) for item, weight in row] for row in rows]
        self.assert_equal(model.top_k(build_queries(scaled), num_items), model.top_k(build_queries(rows), num_items))

    def test_padding_does_not_change_the_result(self, model, num_items):
        rows = histories(num_items)
        queries = build_queries(rows)
        single = [model.top_k(build_queries([row]), 4) for row in rows]
        n, width = len(rows), 3
        padded = Queries(
            np.hstack([queries.items, np.full((n, width), PADDING, np.int32)]),
            np.hstack([queries.weights, np.zeros((n, width), np.float32)]),
            np.hstack([queries.excluded, np.full((n, width + 2), PADDING, np.int32)]),
        )
        self.assert_equal(model.top_k(padded, 4), np.concatenate(single))

    def test_item_without_weight_does_not_change_the_result(self, model, num_items):
        rows = histories(num_items)
        excluded = [[item for item, _ in row] for row in rows]
        with_zero_weight = [[*row, ((row[0][0] + 1) % num_items, 0.0)] for row in rows]
        self.assert_equal(
            model.top_k(build_queries(with_zero_weight, excluded), num_items),
            model.top_k(build_queries(rows, excluded), num_items),
        )

    def test_weights_of_a_repeated_item_are_added(self, model, num_items):
        rows = histories(num_items)
        halves = [[(item, weight / 2) for item, weight in [*row, *row]] for row in rows]
        self.assert_equal(model.top_k(build_queries(halves), num_items), model.top_k(build_queries(rows), num_items))
