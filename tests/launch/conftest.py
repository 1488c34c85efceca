"""A tiny store for the tests of launchers."""

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Config keys of a tiny store of synthetic text."""
    return tiny.make_store(tmp_path_factory.mktemp("store"))
