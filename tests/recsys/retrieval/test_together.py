"""`together` against a naive loop over the whole catalog that shares no code with the search."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import Release
from recsys.errors import InputError, UnknownItemError
from recsys.retrieval.overlay import AddedItem, Overlay
from recsys.retrieval.query import Condition, TogetherQuery
from recsys.retrieval.together import ALPHA, NEAREST, TEMPERATURE
from recsys.testing.releases import release_writer
from tests import GOLDEN_RELEASES

SMALL, LARGE = 150, 6_000
GENRES = ["drama", "comedy", "crime"]


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    loaded = {}
    for size in (SMALL, LARGE):
        columns = {
            "genre": pl.Series([GENRES[n % 3] for n in range(size)]),
            "available": pl.Series([n % 5 != 0 for n in range(size)]),
            "interactions": pl.Series([n * 7 % 31 for n in range(size)]),
        }
        path = release_writer(tmp_path_factory.mktemp(str(size)))([item(n) for n in range(size)], **columns)
        loaded[size] = Release.load(path)
    return loaded


def item(number):
    return f"item {number:05d}"


def prior(similarities, followers):
    """Return the prior of each item from its similarity, a softmax over the followers and the nearest other items."""
    others = sorted((n for n in similarities if n not in followers), key=lambda n: -similarities[n])[:NEAREST]
    weights = {n: math.exp((similarity - 1) / TEMPERATURE) for n, similarity in similarities.items()}
    total = sum(weights[n] for n in (*followers, *others))
    return {n: weight / total for n, weight in weights.items()}


def similarities_to(release, number):
    """Return the similarities of all other items to an item by item number."""
    vectors = np.asarray(release.spaces["next"].vectors, np.float64)
    return {n: float(vectors[n] @ vectors[number]) for n in range(len(vectors)) if n != number}


def naive(release, query):
    """Return the complete ranking as (item id, users, score), by a plain loop."""
    number = release.catalog.item_ids.index(query.item_id)
    followers, counts = release.followers.of(number)
    users = dict(zip(followers.tolist(), counts.tolist(), strict=True))
    probability = prior(similarities_to(release, number), users)
    ranking = []
    for other, row in enumerate(release.catalog.frame.iter_rows(named=True)):
        count = users.get(other, 0)
        if other == number or row["item_id"] in query.exclude or count < query.min_users:
            continue
        if query.allow is not None and row["item_id"] not in query.allow:
            continue
        if query.only_available and not row["available"]:
            continue
        if any(row[condition.column] not in condition.any_of for condition in query.where):
            continue
        score = (count + ALPHA * probability[other]) / (int(release.followers.users[number]) + ALPHA)
        ranking.append((row["item_id"], count, score))
    return sorted(ranking, key=lambda entry: (-entry[2], entry[0]))


def ids(number):
    return st.lists(st.integers(0, number - 1).map(item), max_size=60).map(tuple)


queries = st.builds(
    TogetherQuery,
    item_id=st.integers(0, SMALL - 1).map(item),
    k=st.integers(1, 200),
    offset=st.integers(0, 30),
    min_users=st.sampled_from([0, 0, 1, 10]),
    exclude=ids(SMALL),
    allow=st.none() | ids(SMALL),
    where=st.sampled_from([(), (Condition("genre", any_of=("drama", "crime")),)]),
    only_available=st.booleans(),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(query=queries)
def test_ranks_like_a_loop_over_the_catalog(releases, query):
    release = releases[SMALL]
    expected = naive(release, query)
    result = release.search_together(query)
    page = expected[query.offset : query.offset + query.k]
    assert [(n.item_id, n.users) for n in result.neighbors] == [entry[:2] for entry in page]
    assert [n.score for n in result.neighbors] == pytest.approx([entry[2] for entry in page])
    assert [n.rank for n in result.neighbors] == [query.offset + 1 + row for row in range(len(page))]
    assert result.has_more == (len(expected) > query.offset + query.k)


@pytest.mark.parametrize("number", [0, 17, 4_321])
def test_large_catalog_is_ranked_with_the_index(releases, number):
    release = releases[LARGE]
    query = TogetherQuery(item(number), k=20)
    result = release.search_together(query)
    expected = {item_id: score for item_id, _, score in naive(release, query)}
    scores = [neighbor.score for neighbor in result.neighbors]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([expected[neighbor.item_id] for neighbor in result.neighbors], rel=0.02)


def test_figures_of_a_follower(releases):
    release = releases[SMALL]
    followers = release.followers
    number = int(np.argmax(followers.users))
    result = release.together(item(number), k=SMALL)
    first = max(result.neighbors, key=lambda neighbor: neighbor.users)
    other = release.catalog.item_ids.index(first.item_id)
    num_users = followers.num_users
    assert (result.item_id, result.title) == (item(number), f"Title of {item(number)}")
    assert result.users == followers.users[number]
    assert first.users == dict(zip(*map(list, followers.of(number)), strict=True))[other] > 0
    assert first.support == first.users / num_users
    assert first.confidence == first.users / result.users
    assert first.lift == pytest.approx(first.confidence / (followers.users[other] / num_users))
    last = result.neighbors[-1]
    assert (last.users, last.support, last.confidence, last.lift) == (0, 0, 0, 0)
    assert 0 < last.score < first.score <= 1


def test_pages_continue_each_other(releases):
    whole = releases[SMALL].together(item(3), k=50).neighbors
    pages = [
        releases[SMALL].search_together(TogetherQuery(item(3), k=10, offset=offset)).neighbors
        for offset in range(0, 50, 10)
    ]
    assert [neighbor for page in pages for neighbor in page] == whole


def follower_of(release, number):
    """Return the id of the item that is first among the followers of an item."""
    return item(int(release.followers.of(number)[0][0]))


def item_with_followers(release):
    return int(np.argmax(np.diff(release.followers.offsets)))


def test_hidden_and_changed_items(releases):
    release = releases[SMALL]
    number = item_with_followers(release)
    hidden, changed = [item(int(other)) for other in release.followers.of(number)[0][:2]]
    overlay = Overlay(hidden=frozenset({hidden}), changed={changed: {"title": "New", "available": False}})
    neighbors = release.search_together(TogetherQuery(item(number), k=SMALL), overlay).neighbors
    titles = {neighbor.item_id: neighbor.title for neighbor in neighbors}
    assert hidden not in titles
    assert titles[changed] == "New"
    available = release.search_together(TogetherQuery(item(number), k=SMALL, only_available=True), overlay).neighbors
    assert changed not in {neighbor.item_id for neighbor in available}
    with pytest.raises(UnknownItemError):
        release.search_together(TogetherQuery(hidden), overlay)


def test_added_items_are_ranked_by_the_prior(releases):
    release = releases[SMALL]
    number = item_with_followers(release)
    vector = np.asarray(release.spaces["next"].vectors[number], np.float64)
    overlay = Overlay(added={"new": AddedItem(3 * vector, {"title": "New"})})
    neighbors = release.search_together(TogetherQuery(item(number), k=SMALL), overlay).neighbors
    (new,) = [neighbor for neighbor in neighbors if neighbor.item_id == "new"]
    users = int(release.followers.users[number])
    expected = prior(similarities_to(release, number) | {"new": 1.0}, release.followers.of(number)[0].tolist())
    assert (new.title, new.users, new.lift) == ("New", 0, 0)
    assert new.score == pytest.approx(ALPHA * expected["new"] / (users + ALPHA), rel=1e-4)

    of_new = release.search_together(TogetherQuery("new", k=1), overlay)
    expected = prior(similarities_to(release, number) | {number: 1.0}, [])
    assert (of_new.title, of_new.users, of_new.neighbors[0].item_id) == ("New", 0, item(number))
    assert of_new.neighbors[0].score == pytest.approx(expected[number], rel=1e-4)


def test_item_with_another_embedding_keeps_its_counts(releases):
    release = releases[SMALL]
    number = item_with_followers(release)
    follower = follower_of(release, number)
    overlay = Overlay(added={follower: AddedItem(np.arange(1.0, 6.0)), item(number): AddedItem(np.ones(5))})
    before = release.together(item(number), k=SMALL)
    after = release.search_together(TogetherQuery(item(number), k=SMALL), overlay)
    assert after.users == before.users
    assert [n.users for n in after.neighbors if n.item_id == follower] == [release.followers.of(number)[1][0]]
    assert len(after.neighbors) == len({n.item_id for n in after.neighbors}) == SMALL - 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"item_id": "nowhere", "on_unknown": "skip"}, "unknown_items"),
        ({"min_users": 1, "only_available": True}, "min_users"),
        ({"only_available": True}, "filters"),
        ({}, "catalog"),
    ],
)
def test_says_why_there_are_fewer_neighbors(releases, changes, reason):
    query = dataclasses.replace(TogetherQuery(item(1), k=1_000), **changes)
    result = releases[SMALL].search_together(query)
    assert result.incomplete_reason == reason
    assert result.unknown_item_ids == (["nowhere"] if reason == "unknown_items" else [])


def test_unknown_item_falls_back_to_popular_items(releases):
    result = releases[SMALL].search_together(TogetherQuery("nowhere", k=SMALL, min_users=3, on_unknown="fallback"))
    interactions = releases[SMALL].catalog.frame["interactions"].to_list()
    order = sorted(range(SMALL), key=lambda number: (-interactions[number], number))
    assert result.fallback
    assert [neighbor.item_id for neighbor in result.neighbors] == [item(number) for number in order]
    assert {(neighbor.users, neighbor.score) for neighbor in result.neighbors} == {(0, None)}
    with pytest.raises(UnknownItemError):
        releases[SMALL].together("nowhere")


@pytest.mark.parametrize(
    ("changes", "message"), [({"min_users": -1}, "min_users must be"), ({"k": 0}, "k must"), ({"offset": -1}, "offset")]
)
def test_rejects_invalid_queries(changes, message):
    with pytest.raises(InputError, match=message):
        TogetherQuery("1", **changes)


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_releases_of_older_formats_say_what_to_do(version):
    release = Release.load(GOLDEN_RELEASES / version)
    with pytest.raises(InputError, match=f"of format {version[1]}. Build a release with recsys nightly"):
        release.together(release.catalog.item_ids[0])
