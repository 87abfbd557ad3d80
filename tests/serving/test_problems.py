"""The table from the library's exceptions to HTTP."""

from __future__ import annotations

from recsys import errors
from serving.problems import TABLE


def test_every_exception_of_the_library_has_a_status() -> None:
    """A new exception without a row would be answered as its parent: say so on purpose."""
    tree = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.RecsysError)
    }
    assert set(TABLE) == tree


def test_the_drawn_tree_names_every_exception() -> None:
    """The outline in the docstring is what people read."""
    drawn = errors.__doc__ or ""
    assert all(error.__name__ in drawn for error in TABLE)
