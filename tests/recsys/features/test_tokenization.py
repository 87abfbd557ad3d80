import itertools
from collections import Counter

import polars as pl
import pytest

from recsys.features import tokenization as text


def listed(frame):
    """Tokens by row."""
    return {row: part["token"].to_list() for (row,), part in frame.group_by("row", maintain_order=True)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("Red WINE", ["red", "wine"]),
        ("rock'n'roll, 1999!", ["rock", "n", "roll", "1999"]),
        ("Ⅷ ﬁne", ["viii", "fine"]),
        ("CAFE\u0301", ["café"]),
        ("Über straße", ["über", "straße"]),
        ("हिन्दी 日本", ["हिन्दी", "日本"]),
        ("a_b", ["a", "b"]),
    ],
    ids=repr,
)
def test_words_are_normalized_runs_of_letters_and_digits(given, words):
    assert listed(text.words(pl.Series([given]))) == {0: words}


def test_text_without_words_is_empty_and_long_text_is_truncated():
    long = " ".join(str(number) for number in range(text.MAX_WORDS + 5))
    result = listed(text.words(pl.Series([None, "", "--", long, "x"])))
    assert result == {3: [str(number) for number in range(text.MAX_WORDS)], 4: ["x"]}


def test_no_texts_give_no_words():
    assert text.words(pl.Series([], dtype=pl.String)).height == 0
    assert text.fit_bag(pl.Series([None, None], dtype=pl.String)) == []


TEXTS = ["red wine glass", "red wine", "glass", "blue wine", "wines of wine", "of wine"]


def test_vocabulary_of_a_bag_has_tokens_of_several_texts():
    words, pairs, grams = Counter(), Counter(), Counter()
    for given in TEXTS:
        read = given.split()
        words.update(set(read))
        pairs.update({" ".join(pair) for pair in itertools.pairwise(read)})
        for word in set(read):
            bounded = f"<{word}>"
            grams.update(
                f"~{bounded[start : start + length]}"
                for length in (3, 4, 5)
                for start in range(len(bounded) - length + 1)
                if length < len(bounded)
            )
    expected = [token for counts in (words, pairs, grams) for token in sorted(counts) if counts[token] > 1]
    assert text.fit_bag(pl.Series(TEXTS)) == expected
    assert text.fit_sequence(pl.Series(TEXTS)) == [word for word in sorted(words) if words[word] > 1]


def test_full_vocabulary_keeps_the_most_frequent_tokens_of_each_kind(monkeypatch):
    for cap in ("MAX_WORD_TOKENS", "MAX_PAIR_TOKENS", "MAX_CHARACTER_TOKENS", "MAX_SEQUENCE_TOKENS"):
        monkeypatch.setattr(text, cap, 1)
    assert text.fit_bag(pl.Series(TEXTS)) == ["wine", "of wine", "~<wi"]
    assert text.fit_sequence(pl.Series(TEXTS)) == ["wine"]
