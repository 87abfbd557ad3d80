import pytest

from tests.recsys.model.block_world import BlockWorld


@pytest.fixture
def world(store):
    return BlockWorld(store)
