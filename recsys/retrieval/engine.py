"""What a release answers: "more like this", on a catalog and its index, and "are these two the same"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from recsys.data.catalog import Catalog
from recsys.data.item_users import Audience
from recsys.errors import InputError, UnknownItemError
from recsys.evaluation.calibration import Calibration, Threshold
from recsys.index.annoy_index import Index
from recsys.index.embeddings import Vectors
from recsys.retrieval import rerank as diversity
from recsys.retrieval import search as ranking
from recsys.retrieval.filters import AVAILABLE, Facets, Mask
from recsys.retrieval.overlay import UNCHANGED, Overlay, Stock
from recsys.retrieval.query import Question, Value
from recsys.retrieval.search import Allowed, Near, Place, Space

Reason = Literal["unknown_items", "min_similarity", "min_probability", "diversity", "conditions", "catalog"]
"""Why there are fewer neighbors than asked for, the first that holds: no item of the question is known; the others
are less similar, or less probable; the diversity leaves others out; no other items may be in the answer; the catalog
holds no others."""


class Why(NamedTuple):
    """What a neighbor has in common with the items that were asked about."""

    users: int | None
    """How many touched both it and at least one of them; None where the release does not know."""
    shared: dict[str, list[Value]]
    """Column -> values that it shares with one of them."""


class Neighbor(NamedTuple):
    """An item near the one asked about."""

    item_id: str
    title: str | None
    similarity: float | None
    """Larger is closer: a cosine in [-1, 1], or 1 / (1 + distance). None of a popular item that stands in."""
    rank: int
    """1 is the nearest; what an offset skips counts."""
    probability: float | None = None
    """That both belong together, where the release is calibrated; see `recsys.evaluation.metrics.calibration`."""
    why: Why | None = None
    """Where it was asked for."""


class Answer(NamedTuple):
    """Neighbors, nearest first, and the release that gave them."""

    release_id: str
    item_id: str | None
    """The item, where the question was about one alone."""
    title: str | None
    neighbors: list[Neighbor]
    unknown: list[str]
    """Ids that the release does not hold: of the items, the history, the negative ones, `exclude` and `allow`."""
    fallback: bool
    """Whether these are popular items, because none of the question is known."""
    more: bool
    """Whether others would follow."""
    reason: Reason | None
    """Why there are fewer than asked for."""

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        told = [{**one._asdict(), "why": one.why and one.why._asdict()} for one in self.neighbors]
        return {**self._asdict(), "neighbors": told}


class Item(NamedTuple):
    """An item that was asked about."""

    item_id: str
    title: str | None


class Held(NamedTuple):
    """What a release holds of an item."""

    release_id: str
    item_id: str
    title: str | None
    available: bool
    interactions: int
    """How many training saw."""
    features: dict[str, Any]
    """Column of the catalog -> value."""


class Verdict(NamedTuple):
    """Whether two items belong together, why, and the release that says so."""

    release_id: str
    items: tuple[Item, Item]
    similarity: float
    """Exact; larger is closer."""
    probability: float
    """That both belong together, if as many pairs do as do not."""
    same: bool
    """Whether the similarity is at least that of the threshold."""
    threshold: Threshold
    """What it was compared with, and how good that was on pairs that had no part in choosing it."""


class _Asked(NamedTuple):
    """The numbers behind the ids of a question."""

    positives: list[tuple[int, float]]
    """Items and those of the history, with their weights."""
    negatives: list[tuple[int, float]]
    excluded: set[int]
    """What is asked about is too."""
    allowed: list[int] | None
    unknown: list[str]
    unknown_items: list[str]
    """Of the items, the negative ones and the history alone."""


class Engine:
    """Answers questions about a catalog.

    Args:
        release_id: stands in every answer.
        catalog: the items.
        vectors: their embeddings, float32 [num_items, dimension].
        index: of the embeddings.
        recency: weight for each step back of a history.
        calibration: turns similarities into probabilities.
        audience: who touched each item.
    """

    def __init__(
        self,
        release_id: str,
        catalog: Catalog,
        vectors: Vectors,
        index: Index,
        *,
        recency: float = 1.0,
        calibration: Calibration | None = None,
        audience: Audience | None = None,
    ) -> None:
        self.release_id = release_id
        self._catalog = catalog
        self.space = Space(np.asarray(vectors), index, index.distance)
        """Where it looks."""
        self._recency = recency
        self._calibration = calibration
        self._audience = audience
        self._facets = Facets(catalog.frame)
        self.features = self._facets.features
        """Columns of the catalog that say what an item is like."""
        self._overlaid = UNCHANGED, self._stock_of(UNCHANGED)

    def ask(self, question: Question, overlay: Overlay = UNCHANGED) -> Answer:
        """Answer one question: `k` neighbors, fewer only where no others may be in the answer.

        Args:
            question: what is asked.
            overlay: what changed since the release was built.

        Raises:
            UnknownItemError: an item of the question is not known, and the question does not say what then.
            InputError: a condition or a vector that does not go with the release.
        """
        stock = self.stock(overlay)
        asked = self._resolve(question, stock)
        if asked.unknown_items and question.on_unknown == "error":
            raise UnknownItemError(_unknown(asked.unknown_items))
        ended: set[Reason] = set()
        mask = self._mask(question, asked, stock)
        known = bool(asked.positives) or question.vector is not None
        fallback = not known and question.on_unknown == "fallback"
        if known:
            found = self._nearest(question, asked, stock, mask, ended)
        elif fallback:
            found = self._popular(asked, stock, mask)
        else:
            found = iter(())
            ended.add("unknown_items")
        if question.diversity.at_most:
            self._facets.require_terms(question.diversity.at_most)
            found = diversity.at_most(found, stock, question.diversity.at_most, lambda: ended.add("diversity"))
        page = list(islice(found, question.offset, question.offset + question.k + 1))
        more = len(page) > question.k
        page = page[: question.k]
        item_id = question.only_item
        title = None if item_id is None or not known else stock.named([asked.positives[0][0]])[0][1]
        return Answer(
            self.release_id,
            item_id,
            title,
            self._neighbors(question, asked, stock, page, fallback=fallback),
            asked.unknown,
            fallback,
            more,
            _reason(question, ended) if len(page) < question.k else None,
        )

    def item(self, item_id: str, overlay: Overlay = UNCHANGED) -> Held:
        """What is known of one item.

        Raises:
            UnknownItemError: it is not in the catalog, or was taken down.
        """
        stock = self.stock(overlay)
        number = stock.number(item_id)
        if number is None:
            raise UnknownItemError(_unknown([item_id]))
        row = stock.row(number)
        available = row.get(AVAILABLE) is not False
        features = {column: row.get(column) for column in self.features}
        return Held(self.release_id, item_id, row["title"], available, row["interactions"] or 0, features)

    def stock(self, overlay: Overlay = UNCHANGED) -> Stock:
        """The items with what changed; made once for each overlay."""
        made_of, stock = self._overlaid
        if made_of is not overlay:
            stock = self._stock_of(overlay)
            self._overlaid = overlay, stock
        return stock

    def _stock_of(self, overlay: Overlay) -> Stock:
        return Stock(self._catalog, self.space.vectors, self._facets, self.space.distance, overlay)

    def _resolve(self, question: Question, stock: Stock) -> _Asked:
        unknown: dict[str, None] = {}  # in their order

        def known(items: Iterable[tuple[str, float]]) -> list[tuple[int, float]]:
            found = []
            for item_id, weight in items:
                number = stock.number(item_id)
                if number is not None:
                    found.append((number, weight))
                else:
                    unknown[item_id] = None
            return found

        def numbers(item_ids: Iterable[str]) -> list[int]:
            return [number for number, _ in known((item_id, 1.0) for item_id in item_ids)]

        positives = known(question.items)
        if question.history:
            steps_back = range(len(question.history) - 1, -1, -1)
            weights = [self._recency**back for back in steps_back]
            positives += known(zip(question.history, weights, strict=True))
        negatives = known(question.negatives)
        asked = list(unknown)
        excluded = {number for number, _ in positives}
        excluded.update(number for number, _ in negatives)
        excluded.update(numbers(question.exclude))
        allowed = None if question.allow is None else numbers(question.allow)
        return _Asked(positives, negatives, excluded, allowed, list(unknown), asked)

    def _mask(self, question: Question, asked: _Asked, stock: Stock) -> Mask | None:
        """Whether each item may be in the answer by the question's conditions, bool [len(stock)]; None: all may."""
        mask = stock.meeting(question.where, only_available=question.only_available)
        if asked.allowed is None:
            return mask
        named = np.zeros(len(stock), np.bool_)
        named[asked.allowed] = True
        return named if mask is None else mask & named

    def _nearest(
        self, question: Question, asked: _Asked, stock: Stock, mask: Mask | None, ended: set[Reason]
    ) -> Iterator[Near]:
        """What may be in the answer and is near enough, in its order."""
        place = self._place(question, asked, stock)
        distance = self.space.distance
        of_catalog = None if mask is None else mask[: stock.size]
        found = self.space.nearest(place, Allowed(of_catalog, stock.size, asked.excluded, stock.gone))
        if len(stock) > stock.size:
            similarities = ranking.score(distance, self.space.vector(place), stock.added_vectors).tolist()
            added = map(Near, range(stock.size, len(stock)), similarities)
            may = Allowed(mask, len(stock), asked.excluded, stock.gone)
            found = ranking.merged(found, sorted((n for n in added if n.number in may), key=ranking.order))
        if question.min_similarity is not None:
            least = question.min_similarity
            found = ranking.while_near(found, lambda s: s >= least, lambda: ended.add("min_similarity"))
        if question.min_probability is not None:
            calibration, likely = self._calibrated(), question.min_probability
            found = ranking.while_near(
                found, lambda s: calibration.probability(s) >= likely, lambda: ended.add("min_probability")
            )
        if question.diversity.balance < 1:
            found = diversity.spread(found, stock.vectors, distance, question.diversity.balance)
        return found

    def _place(self, question: Question, asked: _Asked, stock: Stock) -> Place:
        """Where to look: the weighted mean of what is asked for, moved away from that of the negative items.

        Away by half as much: of two items, the one that is less like the negative ones can only gain by them.
        """
        if question.only_item is not None and asked.positives[0][0] < stock.size:
            return asked.positives[0][0]
        return self._vector(question, asked, stock)

    def _vector(self, question: Question, asked: _Asked, stock: Stock) -> NDArray[np.float64]:
        """The vector of several items, [dimension], float64."""
        distance = self.space.distance
        vectors = stock.vectors([number for number, _ in asked.positives]).astype(np.float64)
        weights = [weight for _, weight in asked.positives]
        if question.vector is not None:
            given = np.array(question.vector, np.float64)
            vectors = np.vstack([vectors, ranking.checked("vector", given, vectors.shape[1], distance)])
            weights.append(1.0)
        place = _mean(vectors, weights)
        if asked.negatives:
            if distance.metric == "manhattan":
                raise InputError(
                    "negative items must be asked of a release with cosine or Euclidean distance. "
                    f"Received: one with {distance.name} distance. Exclude the items instead."
                )
            away = stock.vectors([number for number, _ in asked.negatives]).astype(np.float64)
            place = 2 * ranking.direction(place, distance) - _mean(away, [weight for _, weight in asked.negatives])
        place = ranking.direction(place, distance)
        # what rounding did to weights and means is not to show
        return place.astype(np.float32).astype(np.float64)

    def _popular(self, asked: _Asked, stock: Stock, mask: Mask | None) -> Iterator[Near]:
        allowed = Allowed(mask, len(stock), asked.excluded, stock.gone)
        return (Near(number, math.nan) for number in map(int, stock.popular) if number in allowed)

    def _calibrated(self) -> Calibration:
        if self._calibration is None:
            raise InputError(
                f"min_probability must be asked of a release with a calibration. Received: {self.release_id}, "
                "which has none. Ask for min_similarity."
            )
        return self._calibration

    def _neighbors(
        self, question: Question, asked: _Asked, stock: Stock, page: list[Near], *, fallback: bool
    ) -> list[Neighbor]:
        similarities: list[float | None] = [None if fallback else max(-1.0, min(1.0, near.similarity)) for near in page]
        probabilities: list[float | None] = [None] * len(page)
        if self._calibration is not None and not fallback:
            probabilities = self._calibration.probabilities_of([near.similarity for near in page]).tolist()
        whys: list[Why | None] = [None] * len(page)
        if question.why:
            whys = self._whys([number for number, _ in asked.positives], stock, page)
        return [
            Neighbor(item_id, title, similarity, rank, probability, why)
            for rank, ((item_id, title), similarity, probability, why) in enumerate(
                zip(stock.named([near.number for near in page]), similarities, probabilities, whys, strict=True),
                question.offset + 1,
            )
        ]

    def _whys(self, positives: list[int], stock: Stock, page: list[Near]) -> list[Why | None]:
        columns = self._facets.of_terms
        asked = {column: {term for number in positives for term in stock.terms(column, number)} for column in columns}
        known = [number for number in positives if number < stock.size]
        users = None if self._audience is None else self._audience.of_any(known)
        whys: list[Why | None] = []
        for number, _ in page:
            common = {column: [t for t in stock.terms(column, number) if t in asked[column]] for column in columns}
            both = None
            if self._audience is not None and users is not None:
                both = self._audience.in_common(users, number) if number < stock.size else 0
            whys.append(Why(both, {column: terms for column, terms in common.items() if terms}))
        return whys


def _mean(vectors: NDArray[np.float64], weights: list[float]) -> NDArray[np.float64]:
    shares = np.array(weights) / max(weights)  # so that no sum overflows
    return np.asarray(shares @ vectors / shares.sum(), np.float64)


def _reason(question: Question, ended: set[Reason]) -> Reason:
    for reason in get_args(Reason):
        if reason in ended:
            return reason  # type: ignore[no-any-return]
    conditions = question.where or question.only_available or question.exclude or question.allow is not None
    return "conditions" if conditions else "catalog"


def _unknown(item_ids: list[str]) -> str:
    named = ", ".join(map(repr, item_ids))
    return f"item_id must be in the catalog. Received: {named}."


def verdict(
    catalog: Catalog,
    release_id: str,
    item_ids: tuple[str, str],
    *,
    similarity: float,
    calibration: Calibration,
    threshold: Threshold,
) -> Verdict:
    """Compare a similarity with a threshold that some similarity reaches."""
    first, second = (Item(item_id, catalog.titles[catalog.number(item_id)]) for item_id in item_ids)
    same = threshold.similarity is not None and similarity >= threshold.similarity
    return Verdict(release_id, (first, second), similarity, calibration.probability(similarity), same, threshold)
