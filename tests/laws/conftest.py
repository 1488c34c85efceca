"""For all tests of laws: a warning of numpy's is a fault, and ends the test."""

import warnings

import pytest


@pytest.fixture(autouse=True)
def numpy_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield
