"""Training with operands rounded to small floating-point formats: the Capybara law of Sun et al. (arXiv 2501.02423).

Models train with some operands of their linears cast to a format of E exponent and M mantissa bits, in blocks of B
elements that share a scale, and unquantised. Runs of one seed share initial weights and the order of the data, so what
a format costs is the difference to the unquantised twin; intervals come from redrawing every loss with the noise
between seeds. Part base has the twins of all others. N counts the weights of the blocks' linears, as in the paper; B is
averaged over the operands and layers, each of which ends its blocks where its own axis ends.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxlab.studies.claim import judged
from jaxlab.studies.floating_point.claims import CLAIMS
from jaxlab.studies.floating_point.grid import SCALES, config, settings
from jaxlab.studies.floating_point.report import figures, tables
from jaxlab.studies.study import Analysis


def runs(scale: str) -> Iterator[tuple[ConfigDict, dict]]:
    """Every setting of the scale's grids, once."""
    s = SCALES[scale]
    for setting in settings(s):
        yield config(s, setting), setting._asdict()


def analyse(results: list[dict]) -> Analysis:
    """Tables and figures of what the results hold, and the verdicts on all claims."""
    return Analysis(tables(results), figures(results), [judged(claim, results) for claim in CLAIMS])
