"""Tokenization of free text: a bag of tokens, or a sequence of words.

Of each text, the first `MAX_WORDS` words are used: runs of letters, marks and digits, after NFKC normalization and
in lower case. The tokens of a bag are words ("red"), pairs of consecutive words ("red wine"), and the character 5-,
4- and 3-grams of each word between "<" and ">", with the prefix "~" ("~<re"), which represent misspelled and rare
words (Bojanowski et al., 2017, https://arxiv.org/abs/1607.04606). Vocabularies are fitted rather than hashed, so
that the tokens that a tower uses are readable in `features.json`.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

MAX_WORDS = 32
"""Maximum number of words of a text."""
MIN_COUNT = 2
"""Minimum number of texts with a token; a token of a single item does not relate it to others."""
MAX_WORD_TOKENS, MAX_PAIR_TOKENS, MAX_CHARACTER_TOKENS = 8_000, 4_000, 8_000
"""Vocabulary sizes of a bag by kind of token; with a shared limit, n-grams would displace the words."""
MAX_SEQUENCE_TOKENS = 20_000
"""Vocabulary size of a sequence."""

WORD = r"[\p{L}\p{M}\p{N}]+"
GRAM_LENGTHS = (5, 4, 3)
"""Longest first: if an item has too many tokens, the more specific ones are kept."""


def words(texts: pl.Series) -> pl.DataFrame:
    """Return the words of each text in order: `row` (uint32, position of the text, ascending) and `token` (text)."""
    plain = texts.cast(pl.String).str.normalize("NFKC").str.to_lowercase()
    read = pl.DataFrame({"token": plain.str.extract_all(WORD).list.head(MAX_WORDS)}).with_row_index("row")
    return read.explode("token", empty_as_null=False, keep_nulls=False)


def fit_sequence(texts: pl.Series) -> list[str]:
    """Return the vocabulary of a sequence: the most frequent words, sorted."""
    return sorted(_most_frequent(_count_texts(words(texts)), MAX_SEQUENCE_TOKENS))


def fit_bag(texts: pl.Series) -> list[str]:
    """Return the vocabulary of a bag: the most frequent tokens of each kind, sorted within the kind.

    A character n-gram counts once for each word of a text that contains it.
    """
    read = words(texts)
    counts = _count_texts(read)
    characters = [_characters(counts, length).group_by("token").agg(pl.col("count").sum()) for length in GRAM_LENGTHS]
    return [
        *sorted(_most_frequent(counts, MAX_WORD_TOKENS)),
        *sorted(_most_frequent(_count_texts(_pairs(read)), MAX_PAIR_TOKENS)),
        *sorted(_most_frequent(pl.concat(characters), MAX_CHARACTER_TOKENS)),
    ]


def bags(texts: pl.Series, vocabulary: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the known tokens of texts by kind, the most specific first, including repeats.

    Args:
        texts: of any length; may be null.
        vocabulary: `token` (text, unique) and `index` (integer).

    Yields:
        `row` (uint32, ascending) and `index`, the tokens of a row in text order.
    """
    read = words(texts)
    for tokens in (read, _pairs(read)):
        yield _indexed(tokens, vocabulary)
    distinct = read.select("token").unique().with_columns(count=0)
    for length in GRAM_LENGTHS:
        ngrams = _indexed(_characters(distinct, length), vocabulary).select(pl.col("word").alias("token"), "index")
        yield read.join(ngrams, on="token", maintain_order="left_right").select("row", "index")


def _pairs(read: pl.DataFrame) -> pl.DataFrame:
    """Return pairs of consecutive words, joined by a space; columns as in `words`."""
    neighbors = pl.col("row") == pl.col("row").shift(-1)
    return read.with_columns(token=pl.col("token") + " " + pl.col("token").shift(-1)).filter(neighbors)


def _characters(counts: pl.DataFrame, length: int) -> pl.DataFrame:
    """Return the n-grams of each word: `word`, `token` and `count`. A whole word is not an n-gram of itself."""
    bounded = counts.select("count", word="token", bounded="<" + pl.col("token") + ">")
    last = pl.col("bounded").str.len_chars().cast(pl.Int64) - length
    starts = bounded.filter(last > 0).with_columns(start=pl.int_ranges(0, last + 1))
    grams = starts.explode("start", empty_as_null=False, keep_nulls=False)
    return grams.select("word", "count", token="~" + pl.col("bounded").str.slice(pl.col("start"), length))


def _indexed(tokens: pl.DataFrame, vocabulary: pl.DataFrame) -> pl.DataFrame:
    return tokens.join(vocabulary, on="token", maintain_order="left").drop("token")


def _count_texts(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the number of texts that contain each token: `token` and `count`."""
    return tokens.unique().group_by("token").agg(count=pl.len())


def _most_frequent(counts: pl.DataFrame, max_tokens: int) -> list[str]:
    """Return the most frequent tokens; ties are broken alphabetically."""
    frequent = counts.filter(pl.col("count") >= MIN_COUNT)
    return frequent.sort("count", "token", descending=[True, False]).head(max_tokens)["token"].to_list()
