"""Branches of a run (Merrill et al. 2505.23971): from a checkpoint training goes on at several times the batch."""

import math
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.optim.batch_growth import size_at
from jaxlab.train.build import Run, build, hypers
from jaxlab.train.checkpoint import NonFinite, complete, load
from jaxlab.train.claim import begin
from jaxlab.train.log import say
from jaxlab.train.loop import train


def branch(run: Run, tokens: int, times: int, window: int) -> ConfigDict:
    """The config of a run that goes on from `tokens` of `run` at `times` its batch there, for `window` tokens more.

    The learning rate is sqrt(times) what it is there, for Adam's noise to stay, and constant. Batches are accumulated
    in parts as large as before, which fit the devices. InputError: a window that is not whole batches.
    """
    batch, c = size_at(run.batches, tokens), run.config.copy_and_resolve_references()
    size = times * batch.tokens
    if window < size or window % size:
        raise InputError(f"window={window}: must be whole batches of each branch, of {size} tokens at {times} times")
    lr = hypers(run.config, run.batches[0].tokens)(tokens, batch.tokens)["lr"]
    micro = c.batch.micro_tokens or (batch.tokens // c.replicas if times > 1 else 0)
    c.batch.update(tokens=size, context=batch.context, micro_tokens=micro, growth="", context_growth="", lr_rule="kept")
    if c.optim.decay == "timescale":  # by the batch, of which this is the first of a run
        c.optim.weight_decay *= size / run.batches[0].tokens
    c.schedule.update(name="constant", peak_lr=lr * math.sqrt(times), warmup_tokens=0, decay_tokens=0)
    c.evaluate.update(every_tokens=0, tasks="")
    c.checkpoint.keep = 1
    c.spectra.at = ""
    c.tokens = tokens + window
    return c


def loss(run: Run, workdir: Path, config: ConfigDict, tokens: int, *, folder: Path, console: Console) -> float | None:
    """Held-out loss, nats/token, of the branch with `config` from the checkpoint at `tokens` of `run` in workdir, a run
    of its own in `folder`: inf if it diverged, None if it was told to stop."""
    one = build(config)
    if not complete(folder):
        state, clock = load(workdir, run.program.abstract_state(), tokens)
        begin(one, folder, state, clock, {"branch_of": str(workdir), "began": list(clock)})
    try:
        result = train(one, folder, console)
    except NonFinite as error:
        say(console, f"diverged: {error}")
        return math.inf
    return result and result["loss"]
