"""Answers are kept up to so many bytes, and the ones that were asked for lately stay."""

import tracemalloc

import pytest
from starlette.responses import Response

from serving.live.response_cache import Answers, Asked, Given, is_known


def given(size: int) -> Given:
    return Given(None, '"tag"', Response(b"x" * size), Response(status_code=304))


def asked(name: str) -> Asked:
    return name, b""


def kept(answers: Answers, names: str) -> str:
    return "".join(name for name in names if answers.get(asked(name)) is not None)


def test_the_ones_that_were_asked_for_lately_are_kept() -> None:
    answers = Answers(kept_bytes=2_500_000)
    for name in "ab":
        answers.keep(asked(name), given(1_000_000))
    assert kept(answers, "a") == "a"
    answers.keep(asked("c"), given(1_000_000))
    assert kept(answers, "abc") == "ac"


def test_a_large_one_takes_the_place_of_several() -> None:
    answers = Answers(kept_bytes=4_500_000)
    for name in "abcd":
        answers.keep(asked(name), given(1_000_000))
    answers.keep(asked("e"), given(2_000_000))
    assert kept(answers, "abcde") == "cde"
    answers.keep(asked("f"), given(5_000_000))  # larger than all that may be kept
    assert kept(answers, "abcdef") == ""


def test_one_that_is_kept_again_counts_once() -> None:
    answers = Answers(kept_bytes=2_500_000)
    for name in "baaaa":
        answers.keep(asked(name), given(1_000_000))
    assert kept(answers, "ab") == "ab"


@pytest.mark.parametrize("size", [1, 2_000])
def test_many_take_about_the_memory_that_they_may(size: int) -> None:
    """However small they are, and whatever is kept beside them."""
    may, sent = 2 << 20, 4_000
    answers = Answers(kept_bytes=may)
    tracemalloc.start()
    for number in range(sent):
        headers = {"ETag": f'"{number:032}"', "Cache-Control": "no-cache", "Recsys-Release": f"release {number}"}
        whole = Response(bytes(size), media_type="application/json", headers=headers)
        unchanged = Response(status_code=304, headers=headers)
        query = f"min_similarity=0.{number}".encode()
        answers.keep((f"/v1/items/{number}/similar", query), Given(None, headers["ETag"], whole, unchanged))
    takes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 * may < takes < 1.2 * may


def test_the_query_is_part_of_the_request() -> None:
    answers = Answers()
    answers.keep(("path", b"k=1"), given(1))
    assert answers.get(("path", b"k=1")) is not None
    assert answers.get(("path", b"k=2")) is None


def test_if_none_match_names_one_of_several() -> None:
    assert is_known('"a"', '"b", W/"a"')
    assert is_known('"a"', "*")
    assert not is_known('"a"', '"b"')
    assert not is_known('"a"', None)
