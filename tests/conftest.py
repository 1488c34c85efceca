"""For all tests: compiled programs are kept between runs, under pytest's own cache; a tiny store of synthetic text."""

import os

import jax
import pytest

from tests import tiny

# Folders and files whose programs run longer than they compile, or are about roundings or the compiler itself.
OPTIMISED = {"laws", "quant", "spectral", "studies", "test_codec", "test_tpu"}


def pytest_configure(config):
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def optimisation(request):
    """Tiny programs compile in half the time without most optimisations, here and in launched processes."""
    less = not OPTIMISED & {request.path.parent.name, request.path.stem}
    jax.config.update("jax_disable_most_optimizations", less)
    launched = less or request.path.parent.name == "studies"  # what studies launch is tiny too, what they fit is not
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(launched))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Config keys of a tiny store of synthetic text."""
    return tiny.make_store(tmp_path_factory.mktemp("store"))
