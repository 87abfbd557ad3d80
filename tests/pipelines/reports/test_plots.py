"""The plots of the run report show the values of the report."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pipelines.reports import plots

SVG = "{http://www.w3.org/2000/svg}"
EMPTY: dict[str, Any] = dict.fromkeys(("training", "index", "quality", "likeness", "similarity", "exposure", "map"))
FULL = {
    "training": {"curve": [{"loss": 3.0, "validation_ndcg_at_20": 0.1}, {"loss": 2.0}, {"loss": 2.5}]},
    "index": {"curve": [[16, 0.5], [32, 0.9], [64, 1.0]], "k": 20, "target": 0.95},
    "quality": None,
    "likeness": None,
    "similarity": {"edges": [-1.0, 0.0, 0.5, 1.0], "nearest": [0.0, 0.2, 0.8], "any": [0.5, 0.4, 0.1]},
    "exposure": {
        "interactions": {"head": 0.4, "torso": 0.3, "tail": 0.3, "new": 0.0},
        "items": {"head": 0.1, "torso": 0.3, "tail": 0.5, "new": 0.1},
        "neighbors": {"head": 0.2, "torso": 0.2, "tail": 0.5, "new": 0.1},
    },
    "map": {"items": [{"title": "<b> & c", "stratum": "head", "x": 25.0, "y": 90.0}]},
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, ET.Element]:
    return {name: ET.fromstring(svg) for name, svg in plots.draw(FULL).items()}  # noqa: S314 - our own


def test_missing_values_are_not_drawn(drawn: dict[str, ET.Element]) -> None:
    assert plots.draw(EMPTY) == {}
    assert set(drawn) == {"loss", "recall", "similarity", "exposure", "map"}  # one point is no curve


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("similarity", FULL["similarity"]["any"], FULL["similarity"]["nearest"]),
        ("exposure", list(FULL["exposure"]["interactions"].values()), list(FULL["exposure"]["neighbors"].values())),
    ],
)
def test_bar_heights_are_proportional_to_shares(
    drawn: dict[str, ET.Element], name: str, before: list[float], now: list[float]
) -> None:
    bars = [bar for bar in drawn[name].iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    for kind, shares in (("before", before), ("now", now)):
        heights = [float(bar.attrib["height"]) for bar in bars if bar.attrib["class"] == kind]
        assert heights == pytest.approx([plots.HEIGHT * share / max(*before, *now) for share in shares], abs=0.01)


def test_ranges_have_the_models_with_agreement_on_one_scale() -> None:
    models = {
        "similar": {"agreement_at_10": 0.6, "intervals": {"agreement_at_10": [0.5, 0.8]}},
        "ease": {"agreement_at_10": 0.3, "intervals": {"agreement_at_10": [0.2, 0.4]}},
        "content": {"group_recall_at_10": 0.9, "intervals": {"group_recall_at_10": [0.8, 1.0]}},
    }
    ranges = plots.coordinates({**EMPTY, "likeness": {"models": models}})["agreement"]
    assert [(each["name"], each["value"], each["low"], each["high"]) for each in ranges] == [
        ("similar", 0.6, 0.5, 0.8),
        ("ease", 0.3, 0.2, 0.4),
    ]
    assert {each["scale"] for each in ranges} == {100 / 0.8}
    assert plots.coordinates(EMPTY)["agreement"] == []


def test_curves_follow_their_values(drawn: dict[str, ET.Element]) -> None:
    heights = [-float(dot.attrib["cy"]) for dot in drawn["loss"].iter(f"{SVG}circle")]
    assert sorted(range(3), key=heights.__getitem__) == [1, 2, 0]
    across = [float(dot.attrib["cx"]) for dot in drawn["recall"].iter(f"{SVG}circle")]
    assert across == pytest.approx([0, 320, 640])  # each twice the one before
    assert next(drawn["recall"].iter(f"{SVG}line")) is not None


def test_map_labels_its_items(drawn: dict[str, ET.Element]) -> None:
    (dot,) = drawn["map"].iter(f"{SVG}circle")
    place = {key: float(dot.attrib[key]) for key in ("cx", "cy")}
    assert place == pytest.approx({"cx": plots.SQUARE * 0.25, "cy": plots.SQUARE * 0.9})
    assert dot.findtext(f"{SVG}title") == "<b> & c"
