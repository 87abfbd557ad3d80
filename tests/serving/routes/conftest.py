"""A service under real HTTP for the release of a test module, which defines a fixture `release`."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from recsys import Release
from recsys.testing.service_process import Service, validated_client

MAX_K = 50


@pytest.fixture(scope="module")
def client(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Return a client whose responses are validated against the OpenAPI description."""
    service = Service.for_release(tmp_path_factory.mktemp("service"), release.path)
    service.configure(max_k=MAX_K)
    with validated_client(service) as http_client:
        yield http_client
