"""The tour: what is stored is clean, and on the real data it runs, draws and says what it should."""

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
"""Section: figures that it draws."""
BASELINES = [
    "popularity",
    "co-occurrence",
    "ItemKNN",
    "windowed ItemKNN",
    "EASE",
    "content",
    "content, popularity",
]

PROBE = """
import json

print(json.dumps({
    "ndcg_at_20": quality["ndcg_at_20"].to_dict(),
    "recall": tuned.recall,
    "curve": tuned.curve,
    "paired": float(np.median(paired)),
    "random": float(np.median(random_pairs)),
    "new_genres": list(new_films["genres"][0]),
    "near_new": [text.split(", ") for text in nearest_to(new_vectors[0])["genres"]],
    "near_star_wars": list(nearest("50")["film"]),
}))
"""


class Executed(NamedTuple):
    """The tour after a run."""

    cells: list[Any]
    """With outputs."""
    scrap: dict[str, Any]
    """What the probe, a cell appended to the tour, found in the namespace."""


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


def test_stored_notebook_is_valid_and_for_any_python(stored: Any) -> None:
    nbformat.validate(stored)
    ids = [cell.id for cell in stored.cells]
    assert len(set(ids)) == len(ids)
    assert stored.metadata.kernelspec.name == "python3"


def test_stored_cells_carry_no_outputs_and_no_execution_counts(stored: Any) -> None:
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert code
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_each_section_draws_its_figures(executed: Executed) -> None:
    section, figures = 0, Counter[int]()
    for cell in executed.cells:
        if cell.cell_type == "markdown":
            heading = re.match(r"## (\d+)", cell.source)
            section = int(heading[1]) if heading else section
        else:
            figures[section] += sum("image/png" in output.get("data", {}) for output in cell.outputs)
    assert {number: count for number, count in figures.items() if count} == FIGURES
    assert section == 8


def test_nothing_is_printed_between_the_plots(executed: Executed) -> None:
    """No warnings and no log lines of TensorFlow: every output is a table, a figure or a value."""
    kinds = {output.output_type for cell in executed.cells for output in cell.get("outputs", [])}
    assert kinds == {"display_data", "execute_result"}


def test_quality_table_has_the_tower_above_every_baseline(executed: Executed) -> None:
    scores = executed.scrap["ndcg_at_20"]
    assert set(BASELINES) < set(scores)
    assert scores["tower"] > max(scores[name] for name in BASELINES)
    shown = next(cell for cell in executed.cells if cell.id == "evaluate").outputs[0].data["text/html"]
    assert f"{scores['tower']:.3f}" in shown


def test_index_curve_rises_to_the_wanted_recall(executed: Executed) -> None:
    recalls = [recall for _, recall in executed.scrap["curve"]]
    assert recalls[0] < executed.scrap["recall"] <= max(recalls)
    assert executed.scrap["recall"] >= 0.98


def test_films_that_go_together_are_more_similar_than_others(executed: Executed) -> None:
    assert executed.scrap["paired"] > executed.scrap["random"] + 0.2


def test_famous_film_has_its_sequel_near(executed: Executed) -> None:
    assert "Return of the Jedi" in executed.scrap["near_star_wars"][:3]


def test_made_up_film_lands_among_films_of_its_genres(executed: Executed) -> None:
    """Most films of the catalog share no genre with it; most of its neighbors do."""
    new_genres, near = set(executed.scrap["new_genres"]), executed.scrap["near_new"]
    assert len(near) == 10
    assert sum(bool(new_genres & set(genres)) for genres in near) >= 6
