"""Free text -> tokens: of a bag, or words in their order.

A text is its first `MAX_WORDS` words: runs of letters, marks and digits, after NFKC and in lower case. A bag's
tokens are words ("red"), pairs of neighboring words ("red wine"), and the 5-, 4- and 3-grams of the characters
of each word between "<" and ">", written with a "~" ahead ("~<re"): they tell what a misspelt or rare word looks
like (Bojanowski et al., 2017, https://arxiv.org/abs/1607.04606). Vocabularies are fitted rather than hashed, so
that a person can read in `features.json` what a tower knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

MAX_WORDS = 32
"""Words of a text that are read."""
MIN_COUNT = 2
"""Texts that a token must be in: what only one item has says nothing about others."""
MAX_WORD_TOKENS, MAX_PAIR_TOKENS, MAX_CHARACTER_TOKENS = 8_000, 4_000, 8_000
"""Most frequent tokens of a kind that a bag knows: in one heap the characters would crowd the words out."""
MAX_SEQUENCE_TOKENS = 20_000
"""Most frequent words that a sequence knows."""

WORD = r"[\p{L}\p{M}\p{N}]+"
GRAM_LENGTHS = (5, 4, 3)
"""Longest first: where an item has too many tokens, the more specific ones stay."""


def words(texts: pl.Series) -> pl.DataFrame:
    """The words of texts in their order: `row` (uint32, position of the text, ascending) and `token` (text)."""
    plain = texts.cast(pl.String).str.normalize("NFKC").str.to_lowercase()
    read = pl.DataFrame({"token": plain.str.extract_all(WORD).list.head(MAX_WORDS)}).with_row_index("row")
    return read.explode("token", empty_as_null=False, keep_nulls=False)


def fit_sequence(texts: pl.Series) -> list[str]:
    """The most frequent words, sorted."""
    return sorted(_most_frequent(_texts_with(words(texts)), MAX_SEQUENCE_TOKENS))


def fit_bag(texts: pl.Series) -> list[str]:
    """The most frequent tokens of each kind, sorted within the kind.

    Characters count once for each word of a text that has them.
    """
    read = words(texts)
    counts = _texts_with(read)
    characters = [_characters(counts, length).group_by("token").agg(pl.col("count").sum()) for length in GRAM_LENGTHS]
    return [
        *sorted(_most_frequent(counts, MAX_WORD_TOKENS)),
        *sorted(_most_frequent(_texts_with(_pairs(read)), MAX_PAIR_TOKENS)),
        *sorted(_most_frequent(pl.concat(characters), MAX_CHARACTER_TOKENS)),
    ]


def bags(texts: pl.Series, known: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The known tokens of texts, kind by kind and the most telling first, repeats and all.

    Args:
        texts: any length; may be missing.
        known: `token` (text, unique) and `index` (integer).

    Yields:
        `row` (uint32, ascending) and `index`, the tokens of a row in the order of the text.
    """
    read = words(texts)
    for found in (read, _pairs(read)):
        yield _indexed(found, known)
    distinct = read.select("token").unique().with_columns(count=0)
    for length in GRAM_LENGTHS:
        of_words = _indexed(_characters(distinct, length), known).select(pl.col("word").alias("token"), "index")
        yield read.join(of_words, on="token", maintain_order="left_right").select("row", "index")


def _pairs(read: pl.DataFrame) -> pl.DataFrame:
    """Neighboring words of a text, with one blank between: as `words`."""
    neighbors = pl.col("row") == pl.col("row").shift(-1)
    return read.with_columns(token=pl.col("token") + " " + pl.col("token").shift(-1)).filter(neighbors)


def _characters(counts: pl.DataFrame, length: int) -> pl.DataFrame:
    """The n-grams of each word: `word`, `token` and `count`. A whole word is none of its own n-grams."""
    bounded = counts.select("count", word="token", bounded="<" + pl.col("token") + ">")
    last = pl.col("bounded").str.len_chars().cast(pl.Int64) - length
    starts = bounded.filter(last > 0).with_columns(start=pl.int_ranges(0, last + 1))
    grams = starts.explode("start", empty_as_null=False, keep_nulls=False)
    return grams.select("word", "count", token="~" + pl.col("bounded").str.slice(pl.col("start"), length))


def _indexed(found: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    return found.join(known, on="token", maintain_order="left").drop("token")


def _texts_with(found: pl.DataFrame) -> pl.DataFrame:
    """Number of texts that each token is in: `token` and `count`."""
    return found.unique().group_by("token").agg(count=pl.len())


def _most_frequent(counts: pl.DataFrame, at_most: int) -> list[str]:
    """Tokens; of equally frequent ones the first in the order of the alphabet."""
    enough = counts.filter(pl.col("count") >= MIN_COUNT)
    return enough.sort("count", "token", descending=[True, False]).head(at_most)["token"].to_list()
