"""How the batch size should go over a run under a constant learning rate: Zhou et al. (arXiv 2601.05034).

Models train at constant batches and with batches that grow, on the same tokens in the same order; tokens to a target
loss are read off curves of held-out loss, smoothed over three evaluations, by the first crossing in log tokens. Batches
that never get there count as such. Batches are in tokens; the ramp has 1, 2, 2.5 and 3 times its first one, the
constant run 2 times, the mean batch 1.79 times: as many steps as the ramp. Decay, linear to 10 %, takes a sixth of the
tokens. In part curve the largest model's batch follows f(N, D), asked every eighth of the tokens, of a fit that `grid`
has in numbers: what runs is planned before there are results.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxlab.studies.batch_size.claims import CLAIMS
from jaxlab.studies.batch_size.grid import SCALES, config, settings
from jaxlab.studies.batch_size.measures import measured
from jaxlab.studies.batch_size.report import figures, tables
from jaxlab.studies.claim import judged
from jaxlab.studies.study import Analysis

__all__ = ["CLAIMS", "SCALES", "analyse", "measured", "runs"]


def runs(scale: str) -> Iterator[tuple[ConfigDict, dict]]:
    """Every setting of the scale's grids, once."""
    s = SCALES[scale]
    for setting in settings(s):
        yield config(s, setting), setting._asdict()


def analyse(results: list[dict]) -> Analysis:
    """Tables and figures of what the results hold, and the verdicts on all claims."""
    return Analysis(tables(results), figures(results), [judged(claim, results) for claim in CLAIMS])
