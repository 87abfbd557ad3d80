"""What holds for everything that can be asked for neighbors: an index, exact search, a baseline."""

import numpy as np
import pytest

from recsys.evaluation.metrics import target_ranks
from recsys.index.queries import PADDING, Queries


def asked(rows, excluded=None):
    """Queries of rows of (item, weight); without `excluded` (rows of items), what is asked about is left out."""
    if excluded is None:
        excluded = [[item for item, _ in row] for row in rows]
    length = max([1, *map(len, rows)])
    width = max([1, *map(len, excluded)])
    items = [[item for item, _ in row] + [PADDING] * (length - len(row)) for row in rows]
    weights = [[weight for _, weight in row] + [0.0] * (length - len(row)) for row in rows]
    left_out = [[*row, *[PADDING] * (width - len(row))] for row in excluded]
    return Queries(
        np.array(items, np.int32).reshape(-1, length),
        np.array(weights, np.float32).reshape(-1, length),
        np.array(left_out, np.int32).reshape(-1, width),
    )


def histories(num_items):
    """Rows of (item, weight), newest first and of 1 to 4 items: each has its own number of them."""
    rng = np.random.default_rng(8)
    lengths = [1 + row % 4 for row in range(11)]
    chosen = [rng.choice(num_items, min(length, num_items), replace=False).tolist() for length in lengths]
    return [[(item, 0.5**step) for step, item in enumerate(row)] for row in chosen]


class NeighborsContract:
    """Inherit and give `model` (the thing itself) and `num_items` (how many items it knows) as fixtures.

    A model whose choice among equals is free overrides `same`.
    """

    def same(self, answers, expected):
        """Two answers to one question."""
        np.testing.assert_array_equal(answers, expected)

    @pytest.fixture
    def queries(self, num_items):
        """All items one by one, not in order and one of them twice."""
        order = np.random.default_rng(3).permutation(num_items).astype(np.int32)
        return Queries.from_items(np.append(order, order[:1]))

    @pytest.fixture(params=["items", "histories"])
    def any_queries(self, request, queries, num_items):
        return queries if request.param == "items" else asked(histories(num_items))

    @pytest.mark.parametrize("k", [1, 4], ids="k={}".format)
    def test_gives_k_int32_columns_for_each_query(self, model, any_queries, k):
        answers = model.top_k(any_queries, k)
        assert answers.shape == (len(any_queries), k)
        assert answers.dtype == np.int32

    def test_names_only_items_that_exist_or_padding(self, model, any_queries, num_items):
        answers = model.top_k(any_queries, num_items + 2)
        assert set(answers.ravel().tolist()) <= {PADDING, *range(num_items)}

    def test_never_names_what_is_excluded(self, model, any_queries, num_items):
        answers = model.top_k(any_queries, num_items + 2)
        for excluded, answer in zip(any_queries.excluded.tolist(), answers.tolist(), strict=True):
            assert not ({*excluded} - {PADDING}) & {*answer}

    def test_excluding_takes_out_nothing_else(self, model, num_items):
        """What is excluded need not be what is asked about; its order and its padding do not matter."""
        rows = histories(num_items)
        rng = np.random.default_rng(4)
        own = [[item for item, _ in row] for row in rows]
        more = [[*row, PADDING, *rng.integers(0, num_items, number % 4).tolist()] for number, row in enumerate(own)]
        everything = model.top_k(asked(rows, own), num_items).tolist()
        left = [
            [item for item in answer if item != PADDING and item not in excluded]
            for answer, excluded in zip(everything, more, strict=True)
        ]
        expected = [answer + [PADDING] * (num_items - len(answer)) for answer in left]
        self.same(model.top_k(asked(rows, more), num_items), np.array(expected, np.int32))

    @pytest.mark.parametrize("k", [1, 4], ids="k={}".format)
    def test_ranks_are_the_places_in_the_answer(self, model, any_queries, num_items, k):
        """Every item is the target of every query once, also those that are excluded."""
        answers = model.top_k(any_queries, k).tolist()
        for target in range(num_items):
            expected = [answer.index(target) if target in answer else k for answer in answers]
            found = target_ranks(model, any_queries, np.full(len(any_queries), target, np.int32), k)
            assert found.tolist() == expected
            assert found.dtype == np.int64

    def test_names_no_neighbor_twice(self, model, any_queries, num_items):
        for answer in model.top_k(any_queries, num_items + 2).tolist():
            named = [number for number in answer if number != PADDING]
            assert len(named) == len(set(named))

    def test_pads_at_the_end_only(self, model, any_queries, num_items):
        for answer in model.top_k(any_queries, num_items + 2).tolist():
            padded = [number == PADDING for number in answer]
            assert padded == sorted(padded)

    @pytest.mark.parametrize("beyond", [0, 1, 5], ids="catalog+{}".format)
    def test_pads_what_the_catalog_cannot_fill(self, model, queries, num_items, beyond):
        answers = model.top_k(queries, num_items + beyond)
        assert answers.shape == (len(queries), num_items + beyond)
        assert (answers[:, num_items - 1 :] == PADDING).all()

    def test_pads_what_is_left_after_the_excluded(self, model, num_items):
        row = histories(num_items)[3]
        assert (model.top_k(asked([row], [range(num_items)]), 3) == PADDING).all()
        assert (model.top_k(asked([row], [range(1, num_items)]), 3)[:, 1:] == PADDING).all()

    def test_fewer_neighbors_are_the_first_of_more(self, model, any_queries, num_items):
        longest = model.top_k(any_queries, num_items + 2)
        for k in range(1, num_items + 2):
            self.same(model.top_k(any_queries, k), longest[:, :k])

    def test_an_answer_does_not_depend_on_the_other_queries(self, model, any_queries):
        together = model.top_k(any_queries, 4)
        alone = [model.top_k(any_queries[row : row + 1], 4) for row in range(len(any_queries))]
        self.same(together, np.concatenate(alone))

    def test_no_queries_have_no_answers(self, model, any_queries):
        assert model.top_k(any_queries[:0], 3).shape == (0, 3)

    def test_the_order_of_a_querys_items_does_not_matter(self, model, num_items):
        rows = histories(num_items)
        backwards = [row[::-1] for row in rows]
        self.same(model.top_k(asked(backwards), num_items), model.top_k(asked(rows), num_items))

    def test_only_the_proportions_of_the_weights_matter(self, model, num_items):
        """Powers of two scale without rounding, so that even ties stay ties."""
        rows = histories(num_items)
        scaled = [[(item, weight * 8) for item, weight in row] for row in rows]
        self.same(model.top_k(asked(scaled), num_items), model.top_k(asked(rows), num_items))

    def test_padding_changes_nothing(self, model, num_items):
        rows = histories(num_items)
        queries = asked(rows)
        ragged = [model.top_k(asked([row]), 4) for row in rows]
        n, wide = len(rows), 3
        padded = Queries(
            np.hstack([queries.items, np.full((n, wide), PADDING, np.int32)]),
            np.hstack([queries.weights, np.zeros((n, wide), np.float32)]),
            np.hstack([queries.excluded, np.full((n, wide + 2), PADDING, np.int32)]),
        )
        self.same(model.top_k(padded, 4), np.concatenate(ragged))

    def test_an_item_without_weight_changes_nothing(self, model, num_items):
        rows = histories(num_items)
        excluded = [[item for item, _ in row] for row in rows]
        more = [[*row, ((row[0][0] + 1) % num_items, 0.0)] for row in rows]
        self.same(model.top_k(asked(more, excluded), num_items), model.top_k(asked(rows, excluded), num_items))

    def test_an_item_may_stand_twice(self, model, num_items):
        """Its weights add up."""
        rows = histories(num_items)
        halves = [[(item, weight / 2) for item, weight in [*row, *row]] for row in rows]
        self.same(model.top_k(asked(halves), num_items), model.top_k(asked(rows), num_items))
