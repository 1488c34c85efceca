"""Optimisers other than AdamW in training: against optax alone, on devices, with replicas, stopped and resumed."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.files import read_record, write_record
from jaxlab.model import families
from jaxlab.model.ngpt import unit_axis
from jaxlab.optim.inner import adamw
from jaxlab.optim.sphere import unit_norm
from jaxlab.train import loop
from jaxlab.train.build import build
from jaxlab.train.state import Clock
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_figure")
SMALL = {
    "compute__layers": "scan", "log__tensorboard": False, "tokens": 8 * 512, "schedule__warmup_tokens": 1_024,
    "evaluate__every_tokens": 0, "evaluate__tokens": 64, "schedule__peak_lr": 0.01,
}  # fmt: skip
NGPT = {f"model__{key}": value for key, value in families.ARCHITECTURES["ngpt"].items()}


def trained(run):
    """(losses, [(batch [b, L+1], learning rate)]) of all steps."""
    losses, fed = [], []
    for _, done in loop.trained(run, run.program.init(np.uint32(0)), Clock()):
        fed.append((run.arrays(done.block)[0][0, 0, 0], done.block.hypers["lr"][0]))
        losses.append(float(done.by_step["loss"].mean()))
    return losses, fed


def muon(lr):
    """Of optax, each parameter of the small model named: axes [layers, in, out] of the kernels of its blocks."""
    matrix = optax.contrib.MuonDimensionNumbers(1, 2)
    attention = {name: {"kernel": matrix} for name in ("query", "key", "value", "out")}
    attention |= {name: {"scale": None} for name in ("query_norm", "key_norm")}
    blocks = {"attention": attention, "ffn": {name: {"kernel": matrix} for name in ("up", "down")}}
    blocks |= {name: {"scale": None} for name in ("attention_norm", "ffn_norm")}
    axes = {"embedding": None, "blocks": blocks, "final_norm": {"scale": None}}
    options = {"adam_b2": 0.99, "consistent_rms": 0.2, "muon_weight_dimension_numbers": axes}
    return optax.contrib.muon(lr, **options)


PEERS = {
    "muon": muon,
    "lion": lambda lr: optax.lion(lr, b2=0.99, weight_decay=0.0),
    "sgd": lambda lr: optax.sgd(lr, momentum=0.95),
}


@pytest.mark.parametrize("name", [*PEERS, "adafactor", "optax:lamb", "given"])
def test_the_loss_falls_as_optax_alone_makes_it(data, name):
    """Eight steps on gradients of the same batches, clipped to 1, at the learning rates of the schedule."""
    given = {"optimiser": optax.inject_hyperparams(optax.lion)(0.0, b2=0.99, weight_decay=0.0)}
    options = given if name == "given" else {}
    run = build(tiny.config(data, **SMALL, **({} if options else {"optim__name": name})), **options)
    losses, fed = trained(run)
    assert losses[0] - losses[-1] > 0.02
    rates = [lr for _, lr in fed]
    assert rates[0] < rates[2] > rates[-1] > 0
    make = PEERS.get("lion" if options else name)
    if make is None:
        return  # of a leaf's norms; tests/optim/test_inner.py has each layer by itself
    params = jax.tree.map(lambda p: p[0], run.program.init(np.uint32(0)).params)
    peer = make(1.0).init(params)

    @jax.jit
    def step(params, peer, tokens, lr):
        grads, sums = jax.grad(run.program.loss_fn, has_aux=True)(params, tokens)
        grads = jax.tree.map(lambda g: g / sums["tokens"], grads)
        grads, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        updates, peer = make(lr).update(grads, peer, params)
        return optax.apply_updates(params, updates), peer, sums["nll"] / sums["tokens"]

    for (tokens, lr), loss in zip(fed, losses, strict=True):
        params, peer, wanted = step(params, peer, tokens, np.float32(lr))
        assert loss == pytest.approx(float(wanted), abs=2e-4)  # signs of lion's tiny sums may differ


@pytest.fixture(scope="module")
def synchronised(data, tmp_path_factory):
    """A run of Muon on two replicas that synchronise every two steps, and its workdir."""
    changes = {"replicas": 2, "diloco__sync_every": 2, "checkpoint__every_tokens": 3 * 512, "checkpoint__keep": 9}
    run, workdir = build(tiny.config(data, **SMALL, **changes, optim__name="muon")), tmp_path_factory.mktemp("muon")
    loop.train(run, workdir, Console(quiet=True))
    return run, workdir


def cut(workdir, folder, tokens):
    """A copy of a finished run as it was after its checkpoint at `tokens`, in the middle of a round."""
    shutil.copytree(workdir, folder)
    (folder / "result.json").unlink()
    for newer in [t for t in tiny.saved(folder) if t > tokens]:
        shutil.rmtree(folder / "checkpoints" / str(newer))
    return folder


def test_muon_with_replicas_is_resumed_bit_for_bit(synchronised, tmp_path):
    run, workdir = synchronised
    resumed = cut(workdir, tmp_path / "resumed", 3 * 512)
    loop.train(run, resumed, Console(quiet=True))
    assert tiny.fingerprint(resumed) == tiny.fingerprint(workdir)
    assert tiny.rows(resumed) == tiny.rows(workdir)


def test_replicas_of_muon_are_equal_after_an_outer_step(synchronised):
    """And between them are not: the outer step is that of DiLoCo whatever the inner optimiser."""
    run, _ = synchronised
    apart = []
    for state, _ in loop.trained(run, run.program.init(np.uint32(0)), Clock()):
        kernel = np.asarray(state.params["blocks"]["ffn"]["up"]["kernel"])
        apart.append(np.abs(kernel[0] - kernel[1]).max())
    assert [difference > 1e-4 for difference in apart] == [True, False] * 4


def test_a_run_from_before_there_were_names_goes_on(data, tmp_path):
    """Its config.json has no optim.name; it was AdamW, and its checkpoints are those of AdamW."""
    run = build(tiny.config(data, **SMALL, checkpoint__every_tokens=3 * 512))
    loop.train(run, tmp_path / "new", Console(quiet=True))
    old = cut(tmp_path / "new", tmp_path / "old", 3 * 512)
    record = read_record(old / "config.json")
    for key in ("optim.name", "optim.momentum"):
        del record["config"][key]
    del record["own"]
    write_record(old / "config.json", {k: v for k, v in record.items() if k != "crc32"})
    loop.train(run, old, Console(quiet=True))
    assert tiny.fingerprint(old) == tiny.fingerprint(tmp_path / "new")
    other = build(tiny.config(data, **SMALL, checkpoint__every_tokens=3 * 512, optim__name="lion"))
    with pytest.raises(InputError, match=r"optim\.name: adamw -> lion"):
        loop.train(other, old, Console(quiet=True))
    given = build(tiny.config(data, **SMALL), optimiser=adamw(b1=0.9, b2=0.99, eps=1e-8))
    with pytest.raises(InputError, match="functions given to build: none -> optimiser"):
        loop.train(given, old, Console(quiet=True))


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_ngpt_stays_on_its_spheres(data, name):
    """After every step and every outer step, of replicas and of the global parameters."""
    small = {"model__num_layers": 1, "replicas": 2, "diloco__sync_every": 2, "optim__weight_decay": 0.01}
    run = build(tiny.config(data, **SMALL | NGPT | small | {"tokens": 4 * 512}, optim__name=name))
    losses = []
    for state, done in loop.trained(run, run.program.init(np.uint32(0)), Clock()):
        losses.append(float(done.by_step["loss"].mean()))
        for params in (state.params, run.program.params(state)):
            on_sphere = jax.tree.map(jnp.subtract, params, unit_norm(params, unit_axis))
            assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(on_sphere)) < 1e-6
    assert losses[-1] < losses[0] - 0.01


@pytest.fixture(scope="module")
def on_devices(data, request):
    return tiny.on_devices("tests.train.optimiser_devices", json.dumps(data), cache=request.config.cache.mkdir("jax"))


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_eight_devices_train_as_one(on_devices, name):
    """Sums in another order, and nothing crosses between replicas in the inner steps."""
    one, many = on_devices[name]
    assert many["losses"] == pytest.approx(one["losses"], abs=2e-4)
    assert one["losses"][0] - one["losses"][-1] > 0.01
    assert many["collectives"] > 5
    assert many["crossing"] == []


def test_moments_lie_where_their_parameters_do(on_devices):
    """Muon's one moment and its Adam's two; of Adafactor the factors are on every device, and listed."""
    table = on_devices["muon"][1]["table"]
    moments = {name: spec for name, spec in table.items() if re.search("/(mu|nu)/", name)}
    params = {name.removeprefix("params/"): spec for name, spec in table.items() if name.startswith("params/")}
    assert len(moments) == sum(1 if name.endswith("kernel") else 2 for name in params)
    for name, spec in moments.items():
        assert spec == params[re.split("/(?:mu|nu)/", name)[-1]]
    assert [name.split("/")[-1] for name in on_devices["muon"][1]["unsharded"]] == ["ns_coeffs"]
    assert any("/v_row/blocks/1/ffn/up/kernel" in name for name in on_devices["adafactor"][1]["unsharded"])
