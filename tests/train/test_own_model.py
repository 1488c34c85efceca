"""docs/own_model.md: models, losses and optimisers of a user's, trained as the page says."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.train.build import build
from jaxlab.train.loop import trained
from jaxlab.train.state import Clock
from tests import tiny
from tests.train.own_model import snippets

pytestmark = pytest.mark.usefixtures("no_figure")
MODELS = {"A model of Flax NNX": "flax.nnx", "A model of Equinox": "equinox"}


@pytest.mark.parametrize("section", MODELS)
def test_a_model_of_the_page_trains_on_eight_devices(section, request):
    """Random words, whose letters have about 1 nat: the loss of the uniform guess is log 257 = 5.5. A copy of the run
    cut off after its first checkpoint goes on bit for bit; two replicas synchronise."""
    pytest.importorskip(MODELS[section], reason=f"{MODELS[section]} is not installed")
    found = tiny.on_devices("tests.train.own_model", section, cache=request.config.cache.mkdir("jax"))
    assert found["losses"][0] > 4 > 2 > found["losses"][-1]
    assert found["validation"] < 2
    assert found["fingerprints"][0] == found["fingerprints"][1]
    assert len(found["saved"][0]) == 2
    assert found["replicas"] < 4
    assert found["lines"] <= 30
    header = {line.split()[0]: line for line in found["header"]}
    assert "given, " in header["model"]
    assert "8 x cpu" in header["devices"]
    assert found["unsharded"][0] in header["unsharded"]
    sharded = [name for name in found["unsharded"] if name.endswith(("up/kernel", "embedding"))]
    assert sharded == []  # those of flax have the names and shapes of ours


def test_the_optimiser_of_the_page_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("books")
    tiny.make_store(Path("books"))
    names = {}
    for code in snippets("An optimiser"):
        exec(code, names)
    assert names["result"]["loss"] < 3
    assert (tmp_path / "runs/adabelief/config.json").exists()


def test_a_loss_alone_is_of_our_decoder(data):
    """Twice the objective has twice the gradient; AdamW's steps, unclipped, are the same to rounding."""
    config = tiny.config(data, compute__layers="scan", model__num_layers=1, tokens=4 * 512, optim__clip=0.0)
    plain, losses = build(config), []

    def doubled(params, tokens):
        total, sums = plain.program.loss_fn(params, tokens)
        return 2 * total, sums

    for run in (plain, build(config, loss_fn=doubled)):
        steps = [done.by_step for _, done in trained(run, run.program.init(np.uint32(0)), Clock())]
        losses.append(([float(step["loss"].mean()) for step in steps], float(steps[-1]["grad_norm"].mean())))
    assert losses[1][0] == pytest.approx(losses[0][0], abs=1e-3)
    assert losses[1][1] == pytest.approx(2 * losses[0][1], rel=0.01)


REFUSED = {
    "a model without its loss": ({}, {"init": lambda key: {}}, r"init: needs a loss_fn"),
    "casts": ({"quant__recipe": "all"}, {"loss_fn": lambda p, t: 0}, r"quant\.recipe='all': .*must be 'none'"),
    "spectra": (
        {"spectra__at": "log:5"},
        {"init": lambda key: {}, "loss_fn": lambda p, t: 0},
        r"spectra\.at='log:5': .*must be ''",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_our_decoder_has_is_refused(data, case):
    changes, given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        build(tiny.config(data, **changes), **given)


def test_the_functions_of_a_run_compile_with_it_alone(data):
    """A run of the config alone does not take the program of one that was given its loss, nor the other way about."""
    config = tiny.config(data, compute__layers="scan")
    plain = build(config)
    given = build(config, compiled=plain.program, loss_fn=plain.program.loss_fn)
    assert given.program is not plain.program
    assert build(config, compiled=given.program).program is not given.program
    assert build(config, compiled=plain.program).program is plain.program
    assert jax.tree.structure(given.program.abstract_state()) == jax.tree.structure(plain.program.abstract_state())
