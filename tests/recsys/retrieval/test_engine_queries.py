"""Properties of all results, of a small release with exact search and of a large release that uses its index.

Expected results come from a naive loop over the whole catalog that shares no code with the engine.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import Release
from recsys.errors import InputError, UnknownItemError
from recsys.retrieval.overlay import AddedItem, Overlay
from recsys.retrieval.query import Condition, Diversity, Query, WeightedItem
from recsys.retrieval.rerank import MAX_RERANKED
from recsys.testing.releases import release_writer

SMALL, LARGE = 60, 6_000
GENRES = ["drama", "comedy", "crime", "none of them"]
RECENCY = 0.5  # as in the manifest that `release_writer` writes


def columns(size):
    rng = np.random.default_rng(1)
    available = [None if draw < 0.2 else bool(draw < 0.7) for draw in rng.random(size)]
    tags = [sorted(rng.choice(["a", "b", "c"], count, replace=False).tolist()) for count in rng.integers(0, 4, size)]
    return {
        "genre": pl.Series([None if n % 7 == 0 else GENRES[n % 3] for n in range(size)], dtype=pl.String),
        "tags": pl.Series([None if n % 11 == 0 else values for n, values in enumerate(tags)], dtype=pl.List(pl.String)),
        "year": pl.Series([None if n % 5 == 0 else 1990.0 + n % 30 for n in range(size)]),
        "available": pl.Series(available),
        "interactions": pl.Series(rng.integers(0, 9, size)),
    }


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    loaded = {}
    for size in (SMALL, LARGE):
        folder = tmp_path_factory.mktemp(str(size))
        path = release_writer(folder)([f"item {n:05d}" for n in range(size)], **columns(size))
        loaded[size] = Release.load(path)
    return loaded


def item(number):
    return f"item {number:05d}"


def naive(space, query):
    """Return the complete ranking of a query as (item id, similarity) pairs, by plain loops, without diversity."""
    frame, vectors = space.catalog.frame, np.asarray(space.vectors, np.float64)
    vector = np.zeros(vectors.shape[1])
    total = 0.0
    weights = [*query.items]
    weights += [(item_id, RECENCY**steps_back) for steps_back, item_id in enumerate(reversed(query.history))]
    for item_id, weight in weights:
        vector += weight * vectors[space.catalog.item_ids.index(item_id)]
        total += weight
    if query.vector is not None:
        vector += np.array(query.vector) / np.linalg.norm(query.vector)
        total += 1
    vector /= total
    if query.negatives:
        away = sum(w * vectors[space.catalog.item_ids.index(i)] for i, w in query.negatives)
        vector = 2 * vector / np.linalg.norm(vector) - away / sum(w for _, w in query.negatives)
    vector /= np.linalg.norm(vector)
    query_items = {i for i, _ in (*weights, *query.negatives)}
    ranking = []
    for number, row in enumerate(frame.iter_rows(named=True)):
        if row["item_id"] in query_items or row["item_id"] in query.exclude:
            continue
        if query.allow is not None and row["item_id"] not in query.allow:
            continue
        if query.only_available and row["available"] is False:
            continue
        if not all(holds(row[condition.column], condition) for condition in query.where):
            continue
        similarity = float(vectors[number] @ vector)
        if query.min_similarity is not None and similarity < query.min_similarity:
            continue
        ranking.append((row["item_id"], similarity))
    return sorted(ranking, key=lambda pair: (-pair[1], pair[0]))


def holds(value, condition):
    if value is None:
        return False
    if condition.any_of is not None:
        return bool(set(value if isinstance(value, list) else [value]) & set(condition.any_of))
    low = -math.inf if condition.minimum is None else condition.minimum
    high = math.inf if condition.maximum is None else condition.maximum
    return low <= value <= high


def ids(answer):
    return [neighbor.item_id for neighbor in answer.neighbors]


def similarities(answer):
    return [neighbor.similarity for neighbor in answer.neighbors]


numbers = st.integers(0, SMALL - 1)
weighted = st.tuples(numbers.map(item), st.floats(0.01, 100)).map(lambda pair: WeightedItem(*pair))
conditions = (
    st.builds(Condition, st.just("genre"), any_of=st.lists(st.sampled_from(GENRES), min_size=1).map(tuple))
    | st.builds(Condition, st.just("tags"), any_of=st.lists(st.sampled_from("abcx"), min_size=1).map(tuple))
    | st.builds(Condition, st.just("year"), minimum=st.floats(1980, 2030))
    | st.builds(Condition, st.just("year"), maximum=st.floats(1980, 2030))
    | st.builds(Condition, st.just("interactions"), any_of=st.just((1.0, 2.0, 3.0)))
)


@st.composite
def queries(draw, diverse=True):
    items = draw(st.lists(weighted, max_size=3))
    history = draw(st.lists(numbers.map(item), max_size=3))
    vector = draw(st.none() | st.tuples(*[st.floats(0.1, 1)] * 5))
    if not (items or history or vector):
        items = [WeightedItem(item(0))]
    query_items = {i for i, _ in items} | set(history)
    negatives = [negative for negative in draw(st.lists(weighted, max_size=2)) if negative.item_id not in query_items]
    mmr_lambda = draw(st.sampled_from([1.0, 0.7, 0.0])) if diverse else 1.0
    max_per_value = draw(st.sampled_from([{}, {"genre": 2}, {"tags": 3, "genre": 5}])) if diverse else {}
    return Query(
        items=tuple(items),
        negatives=tuple(negatives),
        history=tuple(history),
        vector=vector,
        k=draw(st.integers(1, 80)),
        offset=draw(st.integers(0, 30)),
        min_similarity=draw(st.none() | st.floats(-0.5, 0.9)),
        exclude=tuple(draw(st.lists(numbers.map(item), max_size=5))),
        allow=draw(st.none() | st.lists(numbers.map(item), max_size=30).map(tuple)),
        where=tuple(draw(st.lists(conditions, max_size=2))),
        only_available=draw(st.booleans()),
        diversity=Diversity(mmr_lambda, max_per_value),
    )


property_settings = settings(max_examples=60, deadline=None, derandomize=True)
sizes = st.sampled_from([SMALL, LARGE])


@property_settings
@given(query=queries(diverse=False))
def test_a_small_release_agrees_with_a_naive_loop(releases, query):
    release = releases[SMALL]
    answer = release.search(query)
    expected = naive(release.space("similar"), query)
    page = expected[query.offset : query.offset + query.k]
    assert similarities(answer) == pytest.approx([similarity for _, similarity in page], abs=1e-6)
    assert ids(answer) == [item_id for item_id, _ in page]
    assert [n.rank for n in answer.neighbors] == list(range(query.offset + 1, query.offset + 1 + len(page)))
    assert answer.has_more == (len(expected) > query.offset + query.k)
    assert (answer.incomplete_reason is None) == (len(page) == query.k)


@property_settings
@given(query=queries(), size=sizes)
def test_returns_only_allowed_items(releases, query, size):
    release = releases[size]
    rows = {row["item_id"]: row for row in release.catalog.frame.iter_rows(named=True)}
    returned = ids(release.search(query))
    assert len(returned) == len(set(returned))
    excluded = {i for i, _ in (*query.items, *query.negatives)} | {*query.history, *query.exclude}
    assert not excluded & set(returned)
    assert query.allow is None or set(returned) <= set(query.allow)
    for item_id in returned:
        assert all(holds(rows[item_id][condition.column], condition) for condition in query.where)
        assert not (query.only_available and rows[item_id]["available"] is False)


@property_settings
@given(query=queries(), size=sizes, extra=st.integers(1, 700))
def test_a_larger_k_keeps_the_prefix(releases, query, size, extra):
    shorter = releases[size].search(query)
    longer = releases[size].search(dataclasses.replace(query, k=query.k + extra))
    assert longer.neighbors[: len(shorter.neighbors)] == shorter.neighbors
    assert len(shorter.neighbors) == min(query.k, len(longer.neighbors))


@property_settings
@given(query=queries(), size=sizes, page=st.integers(1, 40))
def test_pages_concatenate_to_a_larger_page(releases, query, size, page):
    large = releases[size].search(dataclasses.replace(query, k=4 * page, offset=0))
    small = [releases[size].search(dataclasses.replace(query, k=page, offset=n * page)) for n in range(4)]
    assert [neighbor for answer in small for neighbor in answer.neighbors] == large.neighbors


@property_settings
@given(query=queries(diverse=False), size=sizes)
def test_similarities_descend(releases, query, size):
    values = similarities(releases[size].search(query))
    assert values == sorted(values, reverse=True)
    assert all(-1 <= similarity <= 1 for similarity in values)


@property_settings
@given(query=queries(), size=sizes, factor=st.floats(0.01, 100))
def test_scaling_all_weights_does_not_change_the_result(releases, query, size, factor):
    negatives = tuple(negative for negative in query.negatives if negative.item_id != item(0))
    items = query.items or (WeightedItem(item(0)),)
    query = dataclasses.replace(query, history=(), vector=None, items=items, negatives=negatives)
    scaled = dataclasses.replace(
        query,
        items=tuple(WeightedItem(i, weight * factor) for i, weight in query.items),
        negatives=tuple(WeightedItem(i, weight * factor) for i, weight in query.negatives),
    )
    plain, rescaled = releases[size].search(query), releases[size].search(scaled)
    assert ids(plain) == ids(rescaled)
    assert similarities(plain) == pytest.approx(similarities(rescaled), abs=1e-6)


@property_settings
@given(item_numbers=st.lists(numbers, min_size=2, max_size=4, unique=True), weight=st.floats(0.01, 100))
def test_a_negative_never_promotes_items_that_are_similar_to_it(releases, item_numbers, weight):
    """No item overtakes one that is less similar to the negative."""
    release = releases[SMALL]
    *positives, negative = item_numbers
    query = Query(items=tuple(WeightedItem(item(n)) for n in positives), exclude=(item(negative),), k=SMALL)
    without = ids(release.search(query))
    with_negative = ids(release.search(dataclasses.replace(query, negatives=(WeightedItem(item(negative), weight),))))
    assert set(with_negative) == set(without)
    similarity = {item_id: release.similarity(item(negative), item_id) for item_id in without}
    rank_without, rank_with = (
        {item_id: rank for rank, item_id in enumerate(order)} for order in (without, with_negative)
    )
    for left in without:
        for right in without:
            if similarity[left] > similarity[right] + 1e-6 and rank_without[left] > rank_without[right]:
                assert rank_with[left] > rank_with[right]


@property_settings
@given(query=queries(), size=sizes)
def test_the_same_query_has_the_same_result(releases, query, size):
    """Also if the release is loaded twice."""
    reloaded = Release.load(releases[size].path) if size == SMALL else releases[size]
    assert repr(reloaded.search(query)) == repr(releases[size].search(query))


@property_settings
@given(query=queries())
def test_limits_the_neighbors_per_value(releases, query):
    frame = releases[SMALL].catalog.frame
    returned = ids(releases[SMALL].search(dataclasses.replace(query, offset=0)))
    for column, limit in query.diversity.max_per_value.items():
        cells = [dict(zip(frame["item_id"], frame[column], strict=True))[item_id] for item_id in returned]
        counts = Counter(v for cell in cells if cell is not None for v in ([cell] if isinstance(cell, str) else cell))
        assert all(count <= limit for count in counts.values())


def test_mmr_agrees_with_the_greedy_algorithm_of_the_paper(releases):
    release = releases[SMALL]
    vectors = dict(zip(release.catalog.item_ids, np.asarray(release.space("similar").vectors, np.float64), strict=True))
    query = Query(items=(WeightedItem(item(3)),), k=20, diversity=Diversity(0.6))
    remaining, chosen = dict(naive(release.space("similar"), query)), []
    for _ in range(20):
        value = {
            item_id: 0.6 * s - 0.4 * max([float(vectors[item_id] @ vectors[c]) for c in chosen], default=0.0)
            for item_id, s in remaining.items()
        }
        chosen.append(max(remaining, key=lambda item_id: value[item_id]))
        del remaining[chosen[-1]]
    assert ids(release.search(query)) == chosen
    assert ids(release.search(dataclasses.replace(query, diversity=Diversity(1.0)))) != chosen


def test_items_beyond_the_reranked_ones_keep_their_order(releases):
    query = Query(items=(WeightedItem(item(3)),), k=LARGE)
    plain = ids(releases[LARGE].search(query))
    spread = ids(releases[LARGE].search(dataclasses.replace(query, diversity=Diversity(0.5))))
    assert sorted(spread[:MAX_RERANKED]) == sorted(plain[:MAX_RERANKED])
    assert spread[MAX_RERANKED - 100 : MAX_RERANKED] != plain[MAX_RERANKED - 100 : MAX_RERANKED]
    assert spread[MAX_RERANKED:] == plain[MAX_RERANKED:]


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.001])
def test_a_large_release_agrees_with_a_naive_loop(releases, share):
    """The mean recall is at least that of a release, and no result is shorter than the ranking."""
    release = releases[LARGE]
    rng = np.random.default_rng(3)
    recalls = []
    for query_item in rng.choice(LARGE, 25, replace=False).tolist():
        allow = None
        if share < 1:
            allow = tuple(item(n) for n in rng.choice(LARGE, round(share * LARGE), replace=False).tolist())
        query = Query(items=(WeightedItem(item(query_item)),), allow=allow, k=50)
        expected = [item_id for item_id, _ in naive(release.space("similar"), query)[:50]]
        returned = ids(release.search(query))
        assert len(returned) == len(expected)
        recalls.append(len(set(returned) & set(expected)) / len(expected))
    assert np.mean(recalls) >= 0.95


def test_returns_allowed_items_that_are_far_from_the_query(releases):
    """The index returns none of them; exact search does."""
    release = releases[LARGE]
    order = [item_id for item_id, _ in naive(release.space("similar"), Query.from_item(item(0)))]
    far = tuple(order[-5_500:])
    answer = release.search(Query(items=(WeightedItem(item(0)),), allow=far, k=100))
    assert ids(answer) == list(far[:100])


def test_can_return_all_items(releases):
    assert len(releases[SMALL].similar(item(5), 10_000).neighbors) == SMALL - 1


# --- unknown items


def test_error_lists_all_unknown_items(releases):
    query = Query(items=(WeightedItem("x"), WeightedItem(item(1))), history=("y",), negatives=(WeightedItem("z"),))
    with pytest.raises(UnknownItemError, match="'x', 'y', 'z'"):
        releases[SMALL].search(query)


@pytest.mark.parametrize("on_unknown", ["skip", "fallback"])
def test_skips_unknown_items(releases, on_unknown):
    query = Query(items=(WeightedItem("x", 5), WeightedItem(item(1))), exclude=("u",), on_unknown=on_unknown)
    answer = releases[SMALL].search(query)
    assert answer.unknown_item_ids == ["x", "u"]
    assert not answer.fallback
    assert ids(answer) == ids(releases[SMALL].similar(item(1)))


def test_skipping_all_items_returns_nothing(releases):
    answer = releases[SMALL].search(Query(items=(WeightedItem("x"),), on_unknown="skip"))
    assert (answer.neighbors, answer.incomplete_reason, answer.unknown_item_ids, answer.fallback) == (
        [],
        "unknown_items",
        ["x"],
        False,
    )


def test_the_fallback_applies_the_filters(releases):
    release = releases[SMALL]
    where = (Condition("genre", any_of=("drama",)),)
    query = Query(
        items=(WeightedItem("x"),), where=where, only_available=True, exclude=(item(3),), on_unknown="fallback", k=8
    )
    rows = [
        row
        for row in release.catalog.frame.iter_rows(named=True)
        if row["genre"] == "drama" and row["available"] is not False and row["item_id"] != item(3)
    ]
    expected = [row["item_id"] for row in sorted(rows, key=lambda row: (-row["interactions"], row["item_id"]))][:8]
    answer = release.search(query)
    assert answer.fallback
    assert ids(answer) == expected
    assert {(n.similarity, n.probability) for n in answer.neighbors} == {(None, None)}


def test_the_fallback_applies_diversity_and_explains(releases):
    release = releases[SMALL]
    query = Query(
        items=(WeightedItem("x"),),
        on_unknown="fallback",
        k=3,
        explain=True,
        diversity=Diversity(max_per_value={"genre": 1}),
    )
    genres = dict(zip(release.catalog.item_ids, release.catalog.frame["genre"].to_list(), strict=True))
    answer = release.search(query)
    genres_of_neighbors = [genres[item_id] for item_id in ids(answer) if genres[item_id] is not None]
    assert len(set(genres_of_neighbors)) == len(genres_of_neighbors)
    assert [neighbor.explanation.shared_values for neighbor in answer.neighbors] == [{}, {}, {}]


# --- explanations


def test_explains_by_shared_values(releases):
    release = releases[SMALL]
    rows = {row["item_id"]: row for row in release.catalog.frame.iter_rows(named=True)}
    query_items = (item(1), item(9))
    answer = release.search(Query(items=tuple(WeightedItem(i) for i in query_items), k=SMALL, explain=True))
    for neighbor in answer.neighbors:
        row, shared = rows[neighbor.item_id], {}
        genres = {rows[i]["genre"] for i in query_items} - {None}
        tags = {tag for i in query_items for tag in rows[i]["tags"] or []}
        if row["genre"] in genres:
            shared["genre"] = [row["genre"]]
        if tags & set(row["tags"] or []):
            shared["tags"] = [tag for tag in row["tags"] if tag in tags]
        assert neighbor.explanation == (0, shared)  # 0 shared users: this release has no interactions


# --- incomplete results


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"k": SMALL}, "catalog"),
        ({"k": SMALL, "exclude": (item(3),)}, "filters"),
        ({"allow": (item(3),)}, "filters"),
        ({"where": (Condition("genre", any_of=("none",)),)}, "filters"),
        ({"min_similarity": 0.99}, "min_similarity"),
        ({"min_probability": 1.0, "k": SMALL}, "min_probability"),
        ({"diversity": Diversity(max_per_value={"genre": 1}), "k": SMALL}, "diversity"),
        ({"k": 5}, None),
    ],
)
def test_gives_the_reason_of_an_incomplete_result(releases, changes, reason):
    answer = releases[SMALL].search(dataclasses.replace(Query.from_item(item(2)), **changes))
    assert answer.incomplete_reason == reason
    assert not (answer.has_more and reason)


def test_applies_the_minimum_probability(releases):
    neighbors = releases[SMALL].similar(item(2), SMALL).neighbors
    answer = releases[SMALL].search(Query(items=(WeightedItem(item(2)),), k=SMALL, min_probability=0.5))
    assert answer.neighbors == [n for n in neighbors if n.probability >= 0.5]


# --- invalid queries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": (Condition("gnre", any_of=("x",)),)}, "Did you mean 'genre'"),
        ({"where": (Condition("genre", minimum=1),)}, "must be a numeric column to have a range"),
        ({"where": (Condition("year", any_of=("x",)),)}, "must be numbers"),
        ({"where": (Condition("available", any_of=("x",)),)}, "must be true or false"),
        ({"where": (Condition("title", any_of=("x",)),)}, "must name a catalog column"),
        ({"diversity": Diversity(max_per_value={"year": 1})}, "must name columns of strings or booleans"),
        ({"vector": (1.0, 2.0)}, "must be of 5 finite numbers"),
        ({"vector": (0.0,) * 5}, "not all of them 0"),
        ({"vector": (math.nan,) * 5}, "finite"),
    ],
)
def test_rejects_queries_that_do_not_fit_the_release(releases, changes, message):
    with pytest.raises(InputError, match=message):
        releases[SMALL].search(dataclasses.replace(Query.from_item(item(2)), **changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Query, "must name items"),
        (lambda: Query(negatives=(WeightedItem("a"),)), "negative items alone"),
        (lambda: Query(items=(WeightedItem("a", 0),)), "above 0"),
        (lambda: Query(items=(WeightedItem("a", math.inf),)), "finite"),
        (lambda: Query(items=(WeightedItem("a", 10**400),)), "finite"),
        (lambda: Query(items=(WeightedItem("a"),), negatives=(WeightedItem("a"),)), "in items and in negatives"),
        (lambda: Query.from_item("a", 0), "k must be at least 1"),
        (lambda: Query(items=(WeightedItem("a"),), offset=-1), "offset must be at least 0"),
        (lambda: Query(items=(WeightedItem("a"),), min_similarity=0, min_probability=0), "Received: both"),
        (lambda: Query(items=(WeightedItem("a"),), min_similarity=math.nan), "finite"),
        (lambda: Query(items=(WeightedItem("a"),), min_similarity=10**400), "finite"),
        (lambda: Query(items=(WeightedItem("a"),), min_probability=2), "from 0 to 1"),
        (lambda: Query(items=(WeightedItem("a"),), sense="alike"), "sense must be one of similar, next"),  # type: ignore[arg-type]
        (lambda: Diversity(2), "from 0 to 1"),
        (lambda: Diversity(max_per_value={"genre": 0}), "at least 1"),
        (lambda: Condition("genre"), "neither"),
        (lambda: Condition("genre", any_of=("a",), minimum=1), "both"),
        (lambda: Condition("genre", any_of=()), "at least one value"),
        (lambda: Condition("year", minimum=2, maximum=1), "must not be above"),
        (lambda: Condition("year", minimum=math.nan), "finite"),
        (lambda: Condition("year", maximum=10**400), "finite"),
        (lambda: Condition("year", any_of=(10**400,)), "finite"),
    ],
)
def test_rejects_contradictory_queries(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_rejects_items_that_cancel_out(releases):
    vector = tuple((-np.asarray(releases[SMALL].space("similar").vectors[4], np.float64)).tolist())
    with pytest.raises(InputError, match="cancel out"):
        releases[SMALL].search(Query(items=(WeightedItem(item(4)),), vector=vector))


def test_min_probability_requires_a_calibration(write_release):
    release = Release.load(write_release(["a", "b", "c"], calibrated=False))
    with pytest.raises(InputError, match="Use min_similarity"):
        release.search(Query(items=(WeightedItem("a"),), min_probability=0.5))


# --- item changes


@st.composite
def overlays(draw):
    vectors = st.tuples(*[st.floats(-1, 1)] * 5).filter(lambda v: max(map(abs, v)) > 0.1)
    rows = st.fixed_dictionaries(
        {},
        optional={
            "title": st.sampled_from(["New", None]),
            "genre": st.sampled_from([*GENRES, None]),
            "tags": st.lists(st.sampled_from("abc"), unique=True),
            "year": st.floats(1990, 2020) | st.none(),
            "available": st.booleans(),
        },
    )
    names = numbers.map(item) | st.sampled_from(["new 1", "new 2", "new 3"])
    added = st.builds(AddedItem, vectors.map(lambda v: np.array(v, np.float32)), rows)
    return Overlay(
        hidden=frozenset(draw(st.lists(names, max_size=5))),
        added=draw(st.dictionaries(names, added, max_size=4)),
        changed=draw(st.dictionaries(numbers.map(item), rows, max_size=4)),
    )


@pytest.fixture(scope="module")
def rebuilt():
    """Catalog and vectors of a release with the changes of an overlay applied to them."""

    class Rebuilt:
        def __init__(self, release, overlay):
            rows = {row["item_id"]: row for row in release.catalog.frame.iter_rows(named=True)}
            vectors = np.asarray(release.space("similar").vectors, np.float64)
            vectors = dict(zip(release.catalog.item_ids, vectors, strict=True))
            for item_id, row in overlay.changed.items():
                rows[item_id] = rows[item_id] | row
            empty = dict.fromkeys(release.catalog.frame.columns)
            for item_id, added in overlay.added.items():
                rows[item_id] = empty | {"item_id": item_id} | added.columns
                vectors[item_id] = added.vector.astype(np.float64) / np.linalg.norm(added.vector.astype(np.float64))
            for item_id in overlay.hidden:
                rows.pop(item_id, None)
            frame = pl.DataFrame(list(rows.values()), schema=release.catalog.frame.schema).sort("item_id")
            self.catalog = type(release.catalog)(frame)
            self.vectors = np.array([vectors[item_id] for item_id in self.catalog.item_ids])

    return Rebuilt


@property_settings
@given(query=queries(diverse=False), overlay=overlays())
def test_an_overlay_agrees_with_a_rebuilt_release(releases, rebuilt, query, overlay):
    changed = rebuilt(releases[SMALL], overlay)
    query = dataclasses.replace(query, on_unknown="skip")

    def select_known(weighted_items):
        return tuple(weighted for weighted in weighted_items if weighted.item_id in changed.catalog.item_ids)

    known_query = dataclasses.replace(
        query,
        items=select_known(query.items),
        negatives=select_known(query.negatives),
        history=query.history,
        vector=query.vector or (1.0,) * 5,
    )
    if not set(query.history) <= set(changed.catalog.item_ids):  # unknown items of a history also count as steps back
        known_query = dataclasses.replace(known_query, history=())
    answer = releases[SMALL].search(known_query, overlay)
    expected = naive(changed, known_query)[known_query.offset : known_query.offset + known_query.k]
    assert similarities(answer) == pytest.approx([similarity for _, similarity in expected], abs=1e-5)
    assert set(ids(answer)) == {item_id for item_id, _ in expected}
    titles = dict(zip(changed.catalog.item_ids, changed.catalog.titles, strict=True))
    assert all(neighbor.title == titles[neighbor.item_id] for neighbor in answer.neighbors)


@property_settings
@given(query=queries(), overlay=overlays(), size=sizes, on_unknown=st.sampled_from(["skip", "fallback"]))
def test_never_returns_hidden_items(releases, query, overlay, size, on_unknown):
    answer = releases[size].search(dataclasses.replace(query, on_unknown=on_unknown), overlay)
    assert not overlay.hidden & set(ids(answer))
    assert set(answer.unknown_item_ids) >= overlay.hidden & {i for i, _ in query.items}


@property_settings
@given(query=queries(), overlay=overlays())
def test_limits_per_value_use_the_changed_values(releases, query, overlay):
    release = releases[SMALL]
    query = dataclasses.replace(query, offset=0, on_unknown="skip")
    limits = {"genre": 2, "tags": 3}
    unlimited = dataclasses.replace(query, k=2 * SMALL, diversity=Diversity(query.diversity.mmr_lambda))
    counts, expected = Counter(), []
    for item_id in ids(release.search(unlimited, overlay)):
        features = release.space("similar").engine.item_details(item_id, overlay).features
        values = [("genre", features["genre"]), *(("tags", tag) for tag in features["tags"] or [])]
        values = [(column, value) for column, value in values if value is not None]
        if all(counts[column, value] < limits[column] for column, value in values):
            expected.append(item_id)
            counts.update(values)
    limited = dataclasses.replace(unlimited, diversity=Diversity(query.diversity.mmr_lambda, limits))
    assert ids(release.search(limited, overlay)) == expected


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_added_item_can_be_returned_and_queried(releases, size):
    release = releases[size]
    vector = np.asarray(release.space("similar").vectors[7], np.float32) * 3
    overlay = Overlay(added={"new": AddedItem(vector, {"title": "Just out", "genre": "drama", "available": False})})
    first = release.search(Query.from_item(item(7)), overlay).neighbors[0]
    assert (first.item_id, first.title) == ("new", "Just out")
    assert first.similarity == pytest.approx(1, abs=1e-6)
    assert "new" not in ids(release.search(Query(items=(WeightedItem(item(7)),), only_available=True), overlay))
    answer = release.search(Query.from_item("new"), overlay)
    assert ids(answer)[0] == item(7)
    assert ids(answer)[1:] == ids(release.similar(item(7), 9))
    assert answer.title == "Just out"


def test_an_added_vector_replaces_the_embedding(releases):
    release = releases[SMALL]
    overlay = Overlay(added={item(5): AddedItem(np.asarray(release.space("similar").vectors[7]), {"title": "Moved"})})
    assert ids(release.search(Query.from_item(item(7)), overlay))[0] == item(5)
    assert ids(release.search(Query.from_item(item(5)), overlay))[0] == item(7)
    assert ids(release.search(Query.from_item(item(7), SMALL), overlay)).count(item(5)) == 1


def test_returns_the_details_of_an_item(releases):
    release = releases[SMALL]
    row = release.catalog.frame.row(1, named=True)
    engine = release.space("similar").engine
    details = engine.item_details(item(1))
    assert details[:3] == ("0123456789ab", item(1), f"Title of {item(1)}")
    assert details.features == {"genre": "comedy", "tags": row["tags"], "year": 1991.0}
    changed = Overlay(changed={item(1): {"genre": "crime", "available": False}})
    assert engine.item_details(item(1), changed).features["genre"] == "crime"
    assert not engine.item_details(item(1), changed).available
    with pytest.raises(UnknownItemError):
        engine.item_details(item(1), Overlay(hidden=frozenset([item(1)])))


def test_rejects_an_added_vector_of_another_dimension(releases):
    with pytest.raises(InputError, match="vector of 'new' must be of 5 finite numbers"):
        releases[SMALL].search(Query.from_item(item(1)), Overlay(added={"new": AddedItem(np.ones(3, np.float32))}))
