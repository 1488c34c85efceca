"""All steps of a run, without files."""

import jax
import numpy as np

from jaxlab.train.loop import trained
from jaxlab.train.state import Clock


def losses_and_end(run):
    """(losses [steps, M] of every step on every replica, the last state, its clock)."""
    losses = []
    for state, done in trained(run, run.program.init(np.uint32(run.config.seed)), Clock()):
        losses.extend(jax.device_get(done.by_step["loss"])[: done.block.count])
        end = state, done.block.end
    return np.array(losses), *end
