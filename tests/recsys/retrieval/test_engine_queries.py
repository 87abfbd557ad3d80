"""What every answer keeps, on a small release and on one that is large enough to be asked by its index.

Expected answers come from a naive loop over the whole catalog that shares no code with the engine.
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
RECENCY = 0.5  # of the fixture's manifest


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


def naive(release, question):
    """The whole ranking that a question has, as (item id, similarity) pairs, by plain loops; no diversity."""
    frame, vectors = release.catalog.frame, np.asarray(release.vectors, np.float64)
    place = np.zeros(vectors.shape[1])
    total = 0.0
    weights = [*question.items]
    weights += [(one, RECENCY**back) for back, one in enumerate(reversed(question.history))]
    for item_id, weight in weights:
        place += weight * vectors[release.catalog.item_ids.index(item_id)]
        total += weight
    if question.vector is not None:
        place += np.array(question.vector) / np.linalg.norm(question.vector)
        total += 1
    place /= total
    if question.negatives:
        away = sum(w * vectors[release.catalog.item_ids.index(i)] for i, w in question.negatives)
        place = 2 * place / np.linalg.norm(place) - away / sum(w for _, w in question.negatives)
    place /= np.linalg.norm(place)
    asked = {i for i, _ in (*weights, *question.negatives)}
    found = []
    for number, row in enumerate(frame.iter_rows(named=True)):
        if row["item_id"] in asked or row["item_id"] in question.exclude:
            continue
        if question.allow is not None and row["item_id"] not in question.allow:
            continue
        if question.only_available and row["available"] is False:
            continue
        if not all(holds(row[condition.column], condition) for condition in question.where):
            continue
        similarity = float(vectors[number] @ place)
        if question.min_similarity is not None and similarity < question.min_similarity:
            continue
        found.append((row["item_id"], similarity))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


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
def questions(draw, diverse=True):
    liked = draw(st.lists(weighted, max_size=3))
    history = draw(st.lists(numbers.map(item), max_size=3))
    vector = draw(st.none() | st.tuples(*[st.floats(0.1, 1)] * 5))
    if not (liked or history or vector):
        liked = [WeightedItem(item(0))]
    named = {i for i, _ in liked} | set(history)
    negatives = [one for one in draw(st.lists(weighted, max_size=2)) if one.item_id not in named]
    balance = draw(st.sampled_from([1.0, 0.7, 0.0])) if diverse else 1.0
    at_most = draw(st.sampled_from([{}, {"genre": 2}, {"tags": 3, "genre": 5}])) if diverse else {}
    return Query(
        items=tuple(liked),
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
        diversity=Diversity(balance, at_most),
    )


hypothesised = settings(max_examples=60, deadline=None, derandomize=True)
sizes = st.sampled_from([SMALL, LARGE])


@hypothesised
@given(question=questions(diverse=False))
def test_a_small_release_agrees_with_a_naive_loop(releases, question):
    release = releases[SMALL]
    answer = release.search(question)
    expected = naive(release, question)
    page = expected[question.offset : question.offset + question.k]
    assert similarities(answer) == pytest.approx([similarity for _, similarity in page], abs=1e-6)
    assert ids(answer) == [item_id for item_id, _ in page]
    assert [n.rank for n in answer.neighbors] == list(range(question.offset + 1, question.offset + 1 + len(page)))
    assert answer.has_more == (len(expected) > question.offset + question.k)
    assert (answer.incomplete_reason is None) == (len(page) == question.k)


@hypothesised
@given(question=questions(), size=sizes)
def test_returns_only_allowed_items(releases, question, size):
    release = releases[size]
    rows = {row["item_id"]: row for row in release.catalog.frame.iter_rows(named=True)}
    found = ids(release.search(question))
    assert len(found) == len(set(found))
    asked = {i for i, _ in (*question.items, *question.negatives)} | {*question.history, *question.exclude}
    assert not asked & set(found)
    assert question.allow is None or set(found) <= set(question.allow)
    for item_id in found:
        assert all(holds(rows[item_id][condition.column], condition) for condition in question.where)
        assert not (question.only_available and rows[item_id]["available"] is False)


@hypothesised
@given(question=questions(), size=sizes, more=st.integers(1, 700))
def test_a_larger_k_keeps_the_prefix(releases, question, size, more):
    few = releases[size].search(question)
    many = releases[size].search(dataclasses.replace(question, k=question.k + more))
    assert many.neighbors[: len(few.neighbors)] == few.neighbors
    assert len(few.neighbors) == min(question.k, len(many.neighbors))


@hypothesised
@given(question=questions(), size=sizes, page=st.integers(1, 40))
def test_small_pages_make_up_a_large_one(releases, question, size, page):
    big = releases[size].search(dataclasses.replace(question, k=4 * page, offset=0))
    small = [releases[size].search(dataclasses.replace(question, k=page, offset=n * page)) for n in range(4)]
    assert [neighbor for answer in small for neighbor in answer.neighbors] == big.neighbors


@hypothesised
@given(question=questions(diverse=False), size=sizes)
def test_similarities_descend(releases, question, size):
    found = similarities(releases[size].search(question))
    assert found == sorted(found, reverse=True)
    assert all(-1 <= similarity <= 1 for similarity in found)


@hypothesised
@given(question=questions(), size=sizes, factor=st.floats(0.01, 100))
def test_scaling_all_weights_changes_nothing(releases, question, size, factor):
    negatives = tuple(negative for negative in question.negatives if negative.item_id != item(0))
    items = question.items or (WeightedItem(item(0)),)
    question = dataclasses.replace(question, history=(), vector=None, items=items, negatives=negatives)
    scaled = dataclasses.replace(
        question,
        items=tuple(WeightedItem(i, weight * factor) for i, weight in question.items),
        negatives=tuple(WeightedItem(i, weight * factor) for i, weight in question.negatives),
    )
    one, other = releases[size].search(question), releases[size].search(scaled)
    assert ids(one) == ids(other)
    assert similarities(one) == pytest.approx(similarities(other), abs=1e-6)


@hypothesised
@given(asked=st.lists(numbers, min_size=2, max_size=4, unique=True), weight=st.floats(0.01, 100))
def test_a_negative_never_raises_its_own_neighbors(releases, asked, weight):
    """Past no item that is less like the negative one."""
    release = releases[SMALL]
    *liked, negative = asked
    question = Query(items=tuple(WeightedItem(item(n)) for n in liked), exclude=(item(negative),), k=SMALL)
    without = ids(release.search(question))
    with_it = ids(release.search(dataclasses.replace(question, negatives=(WeightedItem(item(negative), weight),))))
    assert set(with_it) == set(without)
    likeness = {other: release.similarity(item(negative), other) for other in without}
    before, after = ({other: rank for rank, other in enumerate(order)} for order in (without, with_it))
    for one in without:
        for other in without:
            if likeness[one] > likeness[other] + 1e-6 and before[one] > before[other]:
                assert after[one] > after[other]


@hypothesised
@given(question=questions(), size=sizes)
def test_the_same_query_has_the_same_result(releases, question, size):
    """Also of a release that was loaded again."""
    again = Release.load(releases[size].path) if size == SMALL else releases[size]
    assert repr(again.search(question)) == repr(releases[size].search(question))


@hypothesised
@given(question=questions())
def test_limits_the_neighbors_per_value(releases, question):
    frame = releases[SMALL].catalog.frame
    found = ids(releases[SMALL].search(dataclasses.replace(question, offset=0)))
    for column, most in question.diversity.max_per_value.items():
        cells = [dict(zip(frame["item_id"], frame[column], strict=True))[item_id] for item_id in found]
        counts = Counter(v for cell in cells if cell is not None for v in ([cell] if isinstance(cell, str) else cell))
        assert all(count <= most for count in counts.values())


def test_mmr_agrees_with_the_greedy_algorithm_of_the_paper(releases):
    release = releases[SMALL]
    vectors = dict(zip(release.catalog.item_ids, np.asarray(release.vectors, np.float64), strict=True))
    question = Query(items=(WeightedItem(item(3)),), k=20, diversity=Diversity(0.6))
    left, chosen = dict(naive(release, question)), []
    for _ in range(20):
        value = {
            one: 0.6 * s - 0.4 * max([float(vectors[one] @ vectors[c]) for c in chosen], default=0.0)
            for one, s in left.items()
        }
        chosen.append(max(left, key=lambda one: value[one]))
        del left[chosen[-1]]
    assert ids(release.search(question)) == chosen
    assert ids(release.search(dataclasses.replace(question, diversity=Diversity(1.0)))) != chosen


def test_items_beyond_the_reranked_ones_keep_their_order(releases):
    question = Query(items=(WeightedItem(item(3)),), k=LARGE)
    plain = ids(releases[LARGE].search(question))
    spread = ids(releases[LARGE].search(dataclasses.replace(question, diversity=Diversity(0.5))))
    assert sorted(spread[:MAX_RERANKED]) == sorted(plain[:MAX_RERANKED])
    assert spread[MAX_RERANKED - 100 : MAX_RERANKED] != plain[MAX_RERANKED - 100 : MAX_RERANKED]
    assert spread[MAX_RERANKED:] == plain[MAX_RERANKED:]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.001])
def test_a_large_release_agrees_with_a_naive_loop(releases, share):
    """In one answer at least the recall that a release promises, and never fewer than there are."""
    release = releases[LARGE]
    rng = np.random.default_rng(3)
    recalls = []
    for asked in rng.choice(LARGE, 25, replace=False).tolist():
        allow = None
        if share < 1:
            allow = tuple(item(n) for n in rng.choice(LARGE, round(share * LARGE), replace=False).tolist())
        question = Query(items=(WeightedItem(item(asked)),), allow=allow, k=50)
        expected = [item_id for item_id, _ in naive(release, question)[:50]]
        found = ids(release.search(question))
        assert len(found) == len(expected)
        recalls.append(len(set(found) & set(expected)) / len(expected))
    assert np.mean(recalls) >= 0.95


def test_returns_all_allowed_items_however_far(releases):
    """The index finds none of them: exact search does."""
    release = releases[LARGE]
    order = [item_id for item_id, _ in naive(release, Query.from_item(item(0)))]
    far = tuple(order[-5_500:])
    answer = release.search(Query(items=(WeightedItem(item(0)),), allow=far, k=100))
    assert ids(answer) == list(far[:100])


def test_can_return_all_items(releases):
    assert len(releases[SMALL].similar(item(5), 10_000).neighbors) == SMALL - 1


# --- unknown items


def test_the_error_lists_all_unknown_items(releases):
    question = Query(items=(WeightedItem("x"), WeightedItem(item(1))), history=("y",), negatives=(WeightedItem("z"),))
    with pytest.raises(UnknownItemError, match="'x', 'y', 'z'"):
        releases[SMALL].search(question)


@pytest.mark.parametrize("on_unknown", ["skip", "fallback"])
def test_skips_unknown_items(releases, on_unknown):
    question = Query(items=(WeightedItem("x", 5), WeightedItem(item(1))), exclude=("u",), on_unknown=on_unknown)
    answer = releases[SMALL].search(question)
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
    question = Query(
        items=(WeightedItem("x"),), where=where, only_available=True, exclude=(item(3),), on_unknown="fallback", k=8
    )
    rows = [
        row
        for row in release.catalog.frame.iter_rows(named=True)
        if row["genre"] == "drama" and row["available"] is not False and row["item_id"] != item(3)
    ]
    expected = [row["item_id"] for row in sorted(rows, key=lambda row: (-row["interactions"], row["item_id"]))][:8]
    answer = release.search(question)
    assert answer.fallback
    assert ids(answer) == expected
    assert {(n.similarity, n.probability) for n in answer.neighbors} == {(None, None)}


def test_the_fallback_applies_diversity_and_explains(releases):
    release = releases[SMALL]
    question = Query(
        items=(WeightedItem("x"),),
        on_unknown="fallback",
        k=3,
        explain=True,
        diversity=Diversity(max_per_value={"genre": 1}),
    )
    genres = dict(zip(release.catalog.item_ids, release.catalog.frame["genre"].to_list(), strict=True))
    answer = release.search(question)
    shown = [genres[item_id] for item_id in ids(answer) if genres[item_id] is not None]
    assert len(set(shown)) == len(shown)
    assert [neighbor.explanation.shared_values for neighbor in answer.neighbors] == [{}, {}, {}]


# --- why


def test_explains_by_shared_values(releases):
    release = releases[SMALL]
    rows = {row["item_id"]: row for row in release.catalog.frame.iter_rows(named=True)}
    asked = (item(1), item(9))
    answer = release.search(Query(items=tuple(WeightedItem(i) for i in asked), k=SMALL, explain=True))
    for neighbor in answer.neighbors:
        row, shared = rows[neighbor.item_id], {}
        genres = {rows[i]["genre"] for i in asked} - {None}
        tags = {tag for i in asked for tag in rows[i]["tags"] or []}
        if row["genre"] in genres:
            shared["genre"] = [row["genre"]]
        if tags & set(row["tags"] or []):
            shared["tags"] = [tag for tag in row["tags"] if tag in tags]
        assert neighbor.explanation == (0, shared)  # nobody touched anything here; tests of the audience have people


# --- reasons


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
    everything = releases[SMALL].similar(item(2), SMALL).neighbors
    answer = releases[SMALL].search(Query(items=(WeightedItem(item(2)),), k=SMALL, min_probability=0.5))
    assert answer.neighbors == [n for n in everything if n.probability >= 0.5]


# --- what cannot be asked


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_rejects_queries_that_do_not_fit_the_release(releases, changes, told):
    with pytest.raises(InputError, match=told):
        releases[SMALL].search(dataclasses.replace(Query.from_item(item(2)), **changes))


@pytest.mark.parametrize(
    ("make", "told"),
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
def test_rejects_contradictory_queries(make, told):
    with pytest.raises(InputError, match=told):
        make()


def test_rejects_items_that_cancel_out(releases):
    vector = tuple((-np.asarray(releases[SMALL].vectors[4], np.float64)).tolist())
    with pytest.raises(InputError, match="cancel out"):
        releases[SMALL].search(Query(items=(WeightedItem(item(4)),), vector=vector))


def test_min_probability_requires_a_calibration(write_release):
    release = Release.load(write_release(["a", "b", "c"], calibrated=False))
    with pytest.raises(InputError, match="Use min_similarity"):
        release.search(Query(items=(WeightedItem("a"),), min_probability=0.5))


# --- what changed since the release was built


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
def built():
    """Whole releases in which an overlay's changes are made for good, without an index."""

    class Built:
        def __init__(self, release, overlay):
            rows = {row["item_id"]: row for row in release.catalog.frame.iter_rows(named=True)}
            vectors = dict(zip(release.catalog.item_ids, np.asarray(release.vectors, np.float64), strict=True))
            for item_id, row in overlay.changed.items():
                rows[item_id] = rows[item_id] | row
            empty = dict.fromkeys(release.catalog.frame.columns)
            for item_id, one in overlay.added.items():
                rows[item_id] = empty | {"item_id": item_id} | one.columns
                vectors[item_id] = one.vector.astype(np.float64) / np.linalg.norm(one.vector.astype(np.float64))
            for item_id in overlay.hidden:
                rows.pop(item_id, None)
            frame = pl.DataFrame(list(rows.values()), schema=release.catalog.frame.schema).sort("item_id")
            self.catalog = type(release.catalog)(frame)
            self.vectors = np.array([vectors[item_id] for item_id in self.catalog.item_ids])

    return Built


@hypothesised
@given(question=questions(diverse=False), overlay=overlays())
def test_an_overlay_agrees_with_a_rebuilt_release(releases, built, question, overlay):
    changed = built(releases[SMALL], overlay)
    question = dataclasses.replace(question, on_unknown="skip")

    def known(items):
        return tuple(one for one in items if (one if isinstance(one, str) else one[0]) in changed.catalog.item_ids)

    only_known = dataclasses.replace(
        question,
        items=known(question.items),
        negatives=known(question.negatives),
        history=question.history,
        vector=question.vector or (1.0,) * 5,
    )
    if not set(question.history) <= set(changed.catalog.item_ids):  # steps back count unknown ones too
        only_known = dataclasses.replace(only_known, history=())
    answer = releases[SMALL].search(only_known, overlay)
    expected = naive(changed, only_known)[only_known.offset : only_known.offset + only_known.k]
    assert similarities(answer) == pytest.approx([similarity for _, similarity in expected], abs=1e-5)
    assert set(ids(answer)) == {item_id for item_id, _ in expected}
    titles = dict(zip(changed.catalog.item_ids, changed.catalog.titles, strict=True))
    assert all(neighbor.title == titles[neighbor.item_id] for neighbor in answer.neighbors)


@hypothesised
@given(question=questions(), overlay=overlays(), size=sizes, on_unknown=st.sampled_from(["skip", "fallback"]))
def test_never_returns_hidden_items(releases, question, overlay, size, on_unknown):
    answer = releases[size].search(dataclasses.replace(question, on_unknown=on_unknown), overlay)
    assert not overlay.hidden & set(ids(answer))
    assert set(answer.unknown_item_ids) >= overlay.hidden & {i for i, _ in question.items}


@hypothesised
@given(question=questions(), overlay=overlays())
def test_limits_per_value_use_the_changed_values(releases, question, overlay):
    release = releases[SMALL]
    question = dataclasses.replace(question, offset=0, on_unknown="skip")
    limits = {"genre": 2, "tags": 3}
    every = dataclasses.replace(question, k=2 * SMALL, diversity=Diversity(question.diversity.mmr_lambda))
    came, expected = Counter(), []
    for item_id in ids(release.search(every, overlay)):
        features = release.engine.item_details(item_id, overlay).features
        values = [("genre", features["genre"]), *(("tags", tag) for tag in features["tags"] or [])]
        values = [(column, value) for column, value in values if value is not None]
        if all(came[column, value] < limits[column] for column, value in values):
            expected.append(item_id)
            came.update(values)
    thinned = dataclasses.replace(every, diversity=Diversity(question.diversity.mmr_lambda, limits))
    assert ids(release.search(thinned, overlay)) == expected


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_added_item_can_be_returned_and_queried(releases, size):
    release = releases[size]
    place = np.asarray(release.vectors[7], np.float32) * 3
    overlay = Overlay(added={"new": AddedItem(place, {"title": "Just out", "genre": "drama", "available": False})})
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
    overlay = Overlay(added={item(5): AddedItem(np.asarray(release.vectors[7]), {"title": "Moved"})})
    assert ids(release.search(Query.from_item(item(7)), overlay))[0] == item(5)
    assert ids(release.search(Query.from_item(item(5)), overlay))[0] == item(7)
    assert ids(release.search(Query.from_item(item(7), SMALL), overlay)).count(item(5)) == 1


def test_returns_the_details_of_an_item(releases):
    release = releases[SMALL]
    row = release.catalog.frame.row(1, named=True)
    held = release.engine.item_details(item(1))
    assert held[:3] == ("0123456789ab", item(1), f"Title of {item(1)}")
    assert held.features == {"genre": "comedy", "tags": row["tags"], "year": 1991.0}
    changed = Overlay(changed={item(1): {"genre": "crime", "available": False}})
    assert release.engine.item_details(item(1), changed).features["genre"] == "crime"
    assert not release.engine.item_details(item(1), changed).available
    with pytest.raises(UnknownItemError):
        release.engine.item_details(item(1), Overlay(hidden=frozenset([item(1)])))


def test_rejects_an_added_vector_of_another_dimension(releases):
    with pytest.raises(InputError, match="vector of 'new' must be of 5 finite numbers"):
        releases[SMALL].search(Query.from_item(item(1)), Overlay(added={"new": AddedItem(np.ones(3, np.float32))}))
