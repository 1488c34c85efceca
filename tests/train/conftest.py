"""For tests of the trainer within the process."""

import pytest

from jaxlab.train import report


@pytest.fixture(scope="module")
def no_figure():
    """It would be drawn a hundred times, at a second each; test_log.py and launch/test_train.py look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figure", lambda *_: None)
        yield
