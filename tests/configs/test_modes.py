"""What may not be asked of a config file: python -m launch.train --config=FILE.py:MODE."""

import re
import runpy
from pathlib import Path

import pytest

from jaxlab.config import InputError, check

REFUSED = {  # file: (mode, what its message says)
    "diloco": (
        ("35b", "'35b': must be one of 35m, 90m"),
        ("35m,N=4", "'N=4': must be dp, or one of M, B, lr"),
        ("35m,M=two", "M=two: must be a whole number"),
        ("35m,M=0", "M=0: must be a whole number above 0"),
        ("35m,eta", "eta: must be a number"),
        ("35m,dp,H=10", "data-parallel takes no H"),
        ("35m,dp,M=2", "data-parallel takes no M"),
        ("35m,H=10,tau=10", "diloco.overlap=10: must be below"),
        ("35m,M=4,B=5000", "batch.tokens=5000: must be a multiple"),
    ),
    "floating_point": (
        ("35m", "'35m': must be one of 41m, 85m"),
        ("85m,fp8", "format='fp8': must read like e4m3"),
        ("85m,e4m3,M=4", "'M=4': must be one of block, targets, D, lr"),
        ("85m,e4m3,block=0", "block=0: must be a whole number above 0, channel or tensor"),
        ("85m,e4m3,block=row", "block=row: must be"),
        ("85m,e4m3,targets=P7", "targets=P7: must be operands of P1, P2"),
        ("85m,targets=P2,block=8", "block, targets needs a format"),
        ("85m,e4m3,D=1e6", "D=1e6: must be a batch, 2,097,152, or more"),
        ("85m,lr=0", "lr=0: must be above 0"),
        ("85m,lr=fast", "lr=fast: must be a number"),
    ),
}


@pytest.mark.parametrize(("name", "mode", "says"), [(name, *case) for name, cases in REFUSED.items() for case in cases])
def test_what_may_not_be_asked(name, mode, says):
    get_config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / f"{name}.py"))["get_config"]
    with pytest.raises(InputError, match=re.escape(says)):
        check(get_config(mode))
