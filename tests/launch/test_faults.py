"""A few of the bad inputs of tests.faults, over all launchers that need no more than a store and a short run."""

import subprocess
import sys

import pytest

from tests import tiny


@pytest.mark.slow
def test_bad_inputs(pytestconfig):
    command = [sys.executable, "-m", "tests.faults", "--short", f"--cache={pytestconfig.cache.mkdir('jax')}"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 cases" not in done.stdout
