from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import PrepareConfig
from recsys.data import followers
from recsys.data.followers import Followers
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, TimeCut
from recsys.errors import InputError

ITEMS = 7
sequence = st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(1, 40)), min_size=1, max_size=9)
logs = st.lists(st.lists(sequence, min_size=1, max_size=4), min_size=1, max_size=3)
"""Shards of users; an interaction is an item and the minutes since the previous one."""


def to_split(users, cut):
    items = [[item for item, _ in user] for user in users]
    times = [np.cumsum([60.0 * pause for _, pause in user]) for user in users]
    offsets = np.cumsum([0, *map(len, items)])
    names = [str(number) for number in range(len(users))]
    sequences = Sequences(names, np.concatenate(items).astype(np.int32), offsets, np.concatenate(times))
    return Split(sequences, None if cut is None else TimeCut(cut / 2, cut))


def known(user, cut):
    """Return the items of a user before the test target, with their times in minutes."""
    times = np.cumsum([pause for _, pause in user]).tolist()
    rows = [(item, time) for (item, _), time in zip(user, times, strict=True)]
    if cut is not None:
        return [(item, time) for item, time in rows if 60 * time < cut]
    return rows[:-1] if len(rows) >= 3 else rows


def naive_pairs(user, window, gap_minutes):
    """Return the pairs of distinct items of one user, each once."""
    pairs = set()
    for one, (item, _) in enumerate(user):
        for two in range(one + 1, min(one + window, len(user) - 1) + 1):
            pauses = [user[step + 1][1] - user[step][1] for step in range(one, two)]
            if user[two][0] != item and (gap_minutes is None or max(pauses) <= gap_minutes):
                pairs.add((item, user[two][0]))
    return pairs


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    log=logs,
    window=st.integers(1, 4),
    gap_minutes=st.sampled_from([None, 5.0, 20.0]),
    cut=st.sampled_from([None, 3_000.0]),
    most=st.integers(1, 4),
    block=st.integers(1, 12),
)
def test_counts_each_user_once_for_each_pair(tmp_path_factory, *, log, window, gap_minutes, cut, most, block):
    config = PrepareConfig(window=window, session_gap_minutes=gap_minutes)
    counts = pl.concat([followers.count_followers(to_split(users, cut), config, block) for users in log])
    everyone = [known(user, cut) for users in log for user in users]
    item_users = Counter(item for user in everyone for item in {item for item, _ in user})
    expected = Counter(pair for user in everyone for pair in naive_pairs(user, window, gap_minutes))

    folder, parts = tmp_path_factory.mktemp("followers"), []
    users = np.array([item_users[item] for item in range(ITEMS)])
    for first, stop in ((0, 3), (3, ITEMS)):
        part = counts.filter(pl.col("item").is_between(first, stop - 1))
        parts.append(folder / f"{first}.parquet")
        followers.group_by_item(part, users[first:stop], first, most).write_parquet(parts[-1])
    followers.save(len(everyone), parts, folder / "followers.npy")
    loaded = Followers.load(folder / "followers.npy", ITEMS)

    assert loaded.num_users == len(everyone)
    assert loaded.users.tolist() == users.tolist()
    for item in range(ITEMS):
        own = sorted((-count, two) for (one, two), count in expected.items() if one == item)[:most]
        assert [array.tolist() for array in loaded.of(item)] == [[two for _, two in own], [-count for count, _ in own]]


def test_file_is_mapped_and_not_read(tmp_path):
    write(tmp_path / "followers.npy")
    loaded = Followers.load(tmp_path / "followers.npy", 3)
    arrays = [loaded.users, loaded.offsets, *loaded.of(0)]
    assert not any(array.flags.owndata for array in arrays)


def write(path, *, num_users=5, users=(4, 2, 0), follower=1, count=3):
    """Write a file of three items: item 0 has one follower."""
    counts = pl.DataFrame({"item": [0], "follower": [follower], "users": [count]})
    followers.group_by_item(counts, np.array(users), 0).write_parquet(path.parent / "part.parquet")
    followers.save(num_users, [path.parent / "part.parquet"], path)


def changed(position, value):
    """Return a change of one value of the file; its last two values are the follower and its count."""

    def change(content):
        content[position] = value
        return content

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:4],
        lambda content: content[:, None],
        lambda content: content.astype(np.int64),
        changed(-2, 3),
        changed(-2, -1),
        changed(-1, 0),
        changed(-1, 6),
        changed(10, 6),
        changed(10, -1),
        changed(2, 1),
        changed(4, 2),
    ],
)
def test_rejects_a_damaged_file(tmp_path, damage):
    path = tmp_path / "followers.npy"
    write(path)
    np.save(path, damage(np.load(path)))
    with pytest.raises(InputError, match="followers must be the int32"):
        Followers.load(path, 3)


def test_rejects_a_file_of_another_number_of_items(tmp_path):
    write(tmp_path / "followers.npy")
    with pytest.raises(InputError, match="followers of 4 items"):
        Followers.load(tmp_path / "followers.npy", 4)
