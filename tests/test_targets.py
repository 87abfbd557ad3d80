"""Targets of the benchmarks, and the plot of the growth of nights."""

from xml.etree import ElementTree as ET

import pytest

from benchmarks import growth_plot, nights
from benchmarks.targets import targets_of
from recsys.errors import InputError

SYNTHETIC = [
    {
        "items": items,
        "interactions": 15 * items,
        "wall_s": wall_s,
        "peak_mib": 2_048,
        "seconds": {"train": 0.7 * wall_s},
    }
    for items, wall_s in ((20, 60.0), (100, 390.0))
]


def values_of(**results):
    return {target.text: (value, target.is_reached(value)) for target, value in targets_of(results)}


def test_a_figure_is_compared_with_its_bound():
    service = {"throughput": {"new_ratio": 0.71, "ratio": 0.84, "new_p99_ms": 5.1, "p99_ms": 4.9}}
    assert values_of(service=service) == {
        "new queries, to an empty endpoint": (0.71, True),
        "repeated queries, to it": (0.84, False),
        "p99 of new queries at half load, ms": (5.1, False),
        "p99 of repeated queries at half load, ms": (4.9, True),
    }


def test_skipped_parts_have_no_figure():
    assert values_of(service={"concurrent_changes": {}}, memory={"queried": 201}) == {
        "memory of a worker beyond mapped files, bytes an item": (201, False)
    }


def test_rows_bring_their_bounds():
    rows = [{"name": "embed", "ratio": 1.2, "limit": 1.25}, {"name": "warm", "ratio": 3.0, "limit": None}]
    assert values_of(speed={"rows": rows}) == {"embed": (1.2, True)}


def test_quality_is_compared_with_baselines_and_published_results():
    def with_ndcg(ndcg_at_20):
        return {"test": {"ndcg_at_20": ndcg_at_20, "hr_at_10": 0.1, "ndcg_at_10": 0.07}}

    result = {
        "model": with_ndcg(0.08),
        "last_item": {"model": with_ndcg(0.06), "baselines": {"a": with_ndcg(0.05), "b": with_ndcg(0.04)}},
    }
    values = values_of(**{"quality-beauty": result})
    assert values["last-item NDCG@20 of beauty, to the best baseline"] == (pytest.approx(1.2), True)
    assert values["history HR@10 of beauty"] == (0.1, False)
    assert values["history NDCG@10 of beauty"] == (0.07, True)


def test_growth_is_that_of_the_last_night():
    figures = {"synthetic": {"nights": SYNTHETIC, "growth": [1.0, 1.3]}}
    values = values_of(nights=figures)
    assert values["largest synthetic catalog to the smallest, time per item"] == (1.3, True)
    assert values["night of the largest synthetic catalog, s"] == (390.0, True)


def test_plot_names_stages_and_sizes(tmp_path):
    growth_plot.plot(SYNTHETIC, tmp_path / "growth.svg")
    root = ET.parse(tmp_path / "growth.svg").getroot()  # noqa: S314 - written above
    texts = {text.text.strip() for text in root.iter() if text.tag.endswith("text")}
    assert {"train", "others", "ms per item", "1.0 min, 2.0 GiB", "6.5 min, 2.0 GiB"} <= texts


def test_shop_has_no_ids_in_common(tmp_path):
    source, shop = tmp_path / "sets", tmp_path / "shop"
    source.mkdir()
    for name in nights.SETS.values():
        (source / f"{name}.sequences.txt").write_text("1 10 11\n2 11 12\n")
        (source / f"{name}.item_attributes.json").write_text('{"10": [5], "11": [5, 6]}')
    nights.write_shop(source, shop)
    lines = (shop / "sequences.txt").read_text().splitlines()
    assert lines == [f"{letter}{user} {letter}1{user - 1} {letter}1{user}" for letter in "btl" for user in (1, 2)]
    (source / "toys.sequences.txt").unlink()
    with pytest.raises(InputError, match=r"toys\.sequences\.txt"):
        nights.write_shop(source, tmp_path / "other")
