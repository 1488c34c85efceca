"""Two replicas on two TPU slices, compiled ahead of time: what crosses between the slices, and what does not."""

import importlib.util

import pytest

from tests import tiny

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra `tpu`")
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "e3m0": 0.5}


@pytest.fixture(scope="module")
def found():
    return tiny.on_devices("tests.train.tpu", devices=1, optimised=True, TPU_SKIP_MDS_QUERY="1")


def test_inner_steps_stay_on_their_slice(found):
    assert found["inner"] == []
    assert found["across"] == []
    assert found["inside"] > 10


@pytest.mark.parametrize("codec", BYTES)
def test_a_meeting_sends_each_chips_share_once(found, codec):
    """In the codec's type; scales of rows and numbers for the log are float32, and less than a twentieth."""
    parameters, sent = sum(found["parameters"]), found[codec]
    kind = {"float32": "f32", "bfloat16": "u16", "int8": "s8", "e3m0": "u8"}[codec]
    payload = sum(size for name, size in sent if name == kind)
    rest = sum(size for name, size in sent if name != kind)
    assert 0 <= payload / (parameters * BYTES[codec]) - 1 < 0.05  # padded to tiles
    assert rest <= 0.05 * 4 * parameters
