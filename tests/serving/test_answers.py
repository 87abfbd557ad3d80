"""Answers are kept up to so many bytes, and the ones that were asked for lately stay."""

from starlette.responses import Response

from serving.answers import BESIDE_BYTES, Answers, Asked, Given, is_known


def given(size: int) -> Given:
    return Given(None, '"tag"', Response(b"x" * size), Response(status_code=304))


def asked(name: str) -> Asked:
    return name, b""


def kept(answers: Answers, names: str) -> str:
    return "".join(name for name in names if answers.get(asked(name)) is not None)


def test_the_ones_that_were_asked_for_lately_are_kept() -> None:
    answers = Answers(kept_bytes=2 * (1_000 + BESIDE_BYTES) + 100)
    for name in "ab":
        answers.keep(asked(name), given(1_000))
    assert kept(answers, "a") == "a"
    answers.keep(asked("c"), given(1_000))
    assert kept(answers, "abc") == "ac"


def test_a_large_one_takes_the_place_of_several() -> None:
    answers = Answers(kept_bytes=4 * (100 + BESIDE_BYTES) + 100)
    for name in "abcd":
        answers.keep(asked(name), given(100))
    answers.keep(asked("e"), given(100 + BESIDE_BYTES))
    assert kept(answers, "abcde") == "cde"
    answers.keep(asked("f"), given(100_000))  # larger than all that may be kept
    assert kept(answers, "abcdef") == ""


def test_one_that_is_kept_again_counts_once() -> None:
    answers = Answers(kept_bytes=2 * (1_000 + BESIDE_BYTES) + 100)
    for name in "baaaa":
        answers.keep(asked(name), given(1_000))
    assert kept(answers, "ab") == "ab"


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
