"""For all tests: compiled programs are kept between runs, under pytest's own cache; a tiny store of synthetic text."""

from contextlib import nullcontext

import jax
import pytest

from tests import quick, tiny

# Folders and files whose programs run long, and those that are about roundings or the compiler itself.
LONG = {"laws", "studies", "test_resume"}
OPTIMISED = {"quant", "spectral", "test_codec", "test_tpu"}


def pytest_configure(config):
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one that began last would keep a core waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    names = {item.path.parent.name, item.path.stem}
    with nullcontext() if names & OPTIMISED else quick.compiling(quick.LONG if names & LONG else quick.BRIEF):
        return (yield)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Config keys of a tiny store of synthetic text."""
    return tiny.make_store(tmp_path_factory.mktemp("store"))
