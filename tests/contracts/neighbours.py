"""What holds for everything that can be asked for neighbours: an index, exact search, a baseline."""

import numpy as np
import pytest


class NeighboursContract:
    """Inherit and give `model` (the thing itself) and `num_items` (how many items it knows) as fixtures."""

    @pytest.fixture
    def queries(self, num_items):
        """All items, not in order and one of them twice."""
        order = np.random.default_rng(3).permutation(num_items).astype(np.int32)
        return np.append(order, order[:1])

    @pytest.mark.parametrize("k", [1, 4], ids="k={}".format)
    def test_gives_k_int32_columns_for_each_query(self, model, queries, k):
        answers = model.neighbours(queries, k)
        assert answers.shape == (len(queries), k)
        assert answers.dtype == np.int32

    def test_names_only_items_that_exist_or_padding(self, model, queries, num_items):
        answers = model.neighbours(queries, num_items + 2)
        assert set(answers.ravel().tolist()) <= {-1, *range(num_items)}

    def test_never_names_the_query(self, model, queries, num_items):
        for query, answer in zip(queries.tolist(), model.neighbours(queries, num_items + 2).tolist(), strict=True):
            assert query not in answer

    def test_names_no_neighbour_twice(self, model, queries, num_items):
        for answer in model.neighbours(queries, num_items + 2).tolist():
            named = [number for number in answer if number != -1]
            assert len(named) == len(set(named))

    def test_pads_at_the_end_only(self, model, queries, num_items):
        for answer in model.neighbours(queries, num_items + 2).tolist():
            padded = [number == -1 for number in answer]
            assert padded == sorted(padded)

    @pytest.mark.parametrize("beyond", [0, 1, 5], ids="catalogue+{}".format)
    def test_pads_what_the_catalogue_cannot_fill(self, model, queries, num_items, beyond):
        answers = model.neighbours(queries, num_items + beyond)
        assert answers.shape == (len(queries), num_items + beyond)
        assert (answers[:, num_items - 1 :] == -1).all()

    def test_fewer_neighbours_are_the_first_of_more(self, model, queries, num_items):
        longest = model.neighbours(queries, num_items + 2)
        for k in range(1, num_items + 2):
            np.testing.assert_array_equal(model.neighbours(queries, k), longest[:, :k])

    def test_an_answer_does_not_depend_on_the_other_queries(self, model, queries):
        together = model.neighbours(queries, 4)
        alone = np.concatenate([model.neighbours(queries[row : row + 1], 4) for row in range(len(queries))])
        np.testing.assert_array_equal(together, alone)

    def test_no_queries_have_no_answers(self, model):
        assert model.neighbours(np.empty(0, np.int32), 3).shape == (0, 3)
