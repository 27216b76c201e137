"""Fixture: one chain with its page, shared by the tests of a file."""

from collections.abc import Iterator

import pytest
from page_world import PageWorld, page_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageWorld]:
    with page_world(tmp_path_factory.mktemp("page")) as made:
        yield made
