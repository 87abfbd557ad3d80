"""Answers are sent again as they were, and never instead of another one."""

from serving.answers import Answers


def test_the_ones_that_were_asked_for_lately_are_kept() -> None:
    answers = Answers(kept=2)
    answers.keep("a", b"1")
    answers.keep("b", b"2")
    assert answers.get("a") == b"1"
    answers.keep("c", b"3")
    assert [answers.get(tag) for tag in "abc"] == [b"1", None, b"3"]
