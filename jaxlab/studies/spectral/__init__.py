"""How many of the feed-forward's directions are used, by its width: spectral scaling laws of arXiv 2510.00537.

Models train at several feed-forward widths, families and places of the norm; the covariance of what enters the down
projections gives ranks, from the same number of tokens at every width. Each width has its own best learning rate.
Exponents are of straight lines in logarithms over widths, through means over seeds; differences between arms are lines
through ratios of runs with the same width and seed.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxlab.studies.claim import judged
from jaxlab.studies.spectral.claims import CLAIMS
from jaxlab.studies.spectral.grid import SCALES, config, settings
from jaxlab.studies.spectral.measures import measured
from jaxlab.studies.spectral.report import figures, tables
from jaxlab.studies.study import Analysis

__all__ = ["SCALES", "analyse", "measured", "runs"]


def runs(scale: str) -> Iterator[tuple[ConfigDict, dict]]:
    """Every setting of the scale's grids, once."""
    s = SCALES[scale]
    for setting in settings(s):
        yield config(s, setting), setting._asdict()


def analyse(results: list[dict]) -> Analysis:
    """Tables and figures of what the results hold, and the verdicts on all claims."""
    return Analysis(tables(results), figures(results), [judged(claim, results) for claim in CLAIMS])
