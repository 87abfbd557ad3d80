"""`notebooks/tour.ipynb` is stored with its outputs; executed on MovieLens 100k, it has the expected results."""

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from tests import ROOT

pytestmark = pytest.mark.e2e

TOUR = ROOT / "notebooks" / "tour.ipynb"
FIGURES = {1: 1, 3: 1, 4: 3, 5: 1, 6: 2}
"""Number of figures in each section."""
BASELINES = [
    "popularity",
    "co-occurrence",
    "ItemKNN",
    "windowed ItemKNN",
    "EASE",
    "content",
]

PROBE = """
import json

print(json.dumps({
    "ndcg_at_20": quality["ndcg_at_20"].to_dict(),
    "recall": tuned.recall,
    "curve": tuned.curve,
    "paired": float(np.median(paired)),
    "random": float(np.median(random_pairs)),
    "new_genres": list(new_movies["genres"][0]),
    "near_new": [text.split(", ") for text in nearest_to(new_vectors[0])["genres"]],
    "near_star_wars": list(nearest("50")["movie"]),
}))
"""


class Executed(NamedTuple):
    """The executed notebook."""

    cells: list[Any]
    """Cells with outputs."""
    values: dict[str, Any]
    """Values printed by PROBE, a cell appended to the notebook."""


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(TOUR, as_version=4)


@pytest.fixture(scope="module")
def executed(stored: Any, movielens: Path) -> Executed:
    notebook = copy.deepcopy(stored)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_TOUR_DATA", str(movielens))
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    *cells, probe = notebook.cells
    return Executed(cells, json.loads(probe.outputs[0].text))


def test_stored_notebook_is_valid_and_has_unique_cell_ids(stored: Any) -> None:
    nbformat.validate(stored)
    ids = [cell.id for cell in stored.cells]
    assert len(set(ids)) == len(ids)
    assert stored.metadata.kernelspec.name == "python3"


def test_stored_outputs_are_those_of_one_execution_in_order(stored: Any) -> None:
    """The documentation shows them."""
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert figures == sum(FIGURES.values())


def test_stored_outputs_have_the_kinds_of_those_of_an_execution(stored: Any, executed: Executed) -> None:
    def kinds(cells: list[Any]) -> list[list[list[str]]]:
        return [[sorted(output.get("data", {})) for output in cell.get("outputs", [])] for cell in cells]

    assert kinds(stored.cells) == kinds(executed.cells)


def test_each_section_has_the_expected_number_of_figures(executed: Executed) -> None:
    section, figures = 0, Counter[int]()
    for cell in executed.cells:
        if cell.cell_type == "markdown":
            heading = re.match(r"## (\d+)", cell.source)
            section = int(heading[1]) if heading else section
        else:
            figures[section] += sum("image/png" in output.get("data", {}) for output in cell.outputs)
    assert {number: count for number, count in figures.items() if count} == FIGURES
    assert section == 8


def test_outputs_are_only_tables_figures_and_values(executed: Executed) -> None:
    """TensorFlow writes no warnings and no log lines."""
    kinds = {output.output_type for cell in executed.cells for output in cell.get("outputs", [])}
    assert kinds == {"display_data", "execute_result"}


def test_tower_has_a_higher_ndcg_than_every_baseline(executed: Executed) -> None:
    scores = executed.values["ndcg_at_20"]
    assert set(BASELINES) < set(scores)
    assert scores["tower"] > max(scores[name] for name in BASELINES)
    table = next(cell for cell in executed.cells if cell.id == "evaluate").outputs[0].data["text/html"]
    assert f"{scores['tower']:.3f}" in table


def test_index_curve_reaches_the_target_recall(executed: Executed) -> None:
    recalls = [recall for _, recall in executed.values["curve"]]
    assert recalls[0] < executed.values["recall"] <= max(recalls)
    assert executed.values["recall"] >= 0.98


def test_paired_movies_are_more_similar_than_random_pairs(executed: Executed) -> None:
    assert executed.values["paired"] > executed.values["random"] + 0.2


def test_neighbors_of_star_wars_contain_its_sequel(executed: Executed) -> None:
    assert "Return of the Jedi" in executed.values["near_star_wars"][:3]


def test_most_neighbors_of_a_new_movie_share_a_genre_with_it(executed: Executed) -> None:
    """Most movies of the catalog share no genre with it."""
    new_genres, neighbor_genres = set(executed.values["new_genres"]), executed.values["near_new"]
    assert len(neighbor_genres) == 10
    assert sum(bool(new_genres & set(genres)) for genres in neighbor_genres) >= 6
