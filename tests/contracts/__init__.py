"""Suites that every implementation of one interface inherits."""

import pytest

pytest.register_assert_rewrite("tests.contracts.losses", "tests.contracts.neighbors")
