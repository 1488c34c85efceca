"""For all tests: compiled programs are kept between runs, under pytest's own cache; a tiny store of synthetic text."""

import jax
import pytest

from tests import tiny


def pytest_configure(config):
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Config keys of a tiny store of synthetic text."""
    return tiny.make_store(tmp_path_factory.mktemp("store"))
