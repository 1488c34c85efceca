"""Eight devices compute what one computes, and each only its share: shapes read from the compiled programs."""

import json
import re
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import FrozenConfigDict

from jaxlab import parallel
from jaxlab.config import InputError
from jaxlab.model.decoder import Decoder
from jaxlab.model.families import SIZES, model
from jaxlab.optim.inner import adamw
from jaxlab.train.program import initial_params, initial_state
from tests import tiny
from tests.train.devices import CASES, CONTEXT, SEQUENCES, SPECTRA, groups

MANY = [name for name in CASES if "1 device" not in name]
TOLERANCE = 2e-5  # nats: float32 sums in another order, over four steps of Adam


def reference(name: str) -> str:
    return "2 replicas on 1 device" if name.startswith("2 replicas") else "1 device"


@pytest.fixture(scope="module")
def results(data, request):
    return tiny.on_devices("tests.train.devices", json.dumps(data), cache=request.config.cache.mkdir("jax"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_losses_are_those_of_one_device(results, name):
    expected = results[reference(name)]
    assert results[name]["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
    if results[name]["loss"]:
        assert results[name]["loss"] == pytest.approx(expected["loss"], abs=TOLERANCE)
    assert expected["losses"][0] - expected["losses"][-1] > 0.01  # it learns: equality says something


@pytest.mark.parametrize("name", MANY)
def test_no_product_has_the_whole_batch(results, name):
    replicas, (over_replica, over_data, _), _ = CASES[name]
    share = over_data * (1 if replicas > 1 else over_replica)
    whole = SEQUENCES // replicas
    assert whole % share == 0
    products = results[name]["dots"]
    assert len(products) > 10
    sizes = {size for product in products for shape in product for size in shape}
    assert not sizes & {whole, whole * CONTEXT, SEQUENCES, SEQUENCES * CONTEXT}
    assert sizes & {whole // share, whole // share * CONTEXT}


@pytest.mark.parametrize("name", MANY)
def test_every_device_holds_its_share_of_the_state(results, name):
    _, mesh, fsdp = CASES[name]
    axes = dict(zip(("replica", "data", "tensor"), mesh, strict=True))
    total = 0
    for path, (shape, shard, spec) in results[name]["shards"].items():
        spec = re.findall(r"'(\w+)'|(None)", spec)
        expected = [size // axes.get(axis[0], 1) for size, axis in zip(shape, spec, strict=True)]
        assert shard == expected, path
        size = 4
        for n in shard:
            size *= n
        total += size
    batch = SEQUENCES * (CONTEXT + 1) * 4
    assert results[name]["argument_bytes"] <= total + batch + 1024
    if fsdp and "tensor" not in name:
        copies = 2 if name == "replica 2 x data 4" else 1
        common = results[name]["common_bytes"]  # there on both replicas
        assert total <= 1.1 * (results[name]["state_bytes"] * copies + common) / 8


@pytest.mark.slow
def test_everything_at_once_is_what_it_is_on_one_device(results):
    """DiLoCo in fragments, stochastic casts, a growing batch, WSD, spectra of the global parameters. Draws follow from
    the bits of what is cast: as soon as a sum in another order changes one, they are others. So the first loss
    agrees to rounding, the later ones to the noise of draws, 0.05 nats of the 2.6 that are learned."""
    one, many = results["everything"]
    assert len(one["losses"]) == 4
    assert one["losses"][0] - one["losses"][-1] > 2
    assert many["losses"][0] == pytest.approx(one["losses"][0], abs=TOLERANCE)
    assert many["losses"] == pytest.approx(one["losses"], abs=0.05)
    assert many["ranks"] == pytest.approx(one["ranks"], rel=0.1)


def test_activations_are_shared_out(results):
    one, many = results["1 device"]["temp_bytes"], results["data 8"]["temp_bytes"]
    assert many < one / 3  # gathered parameters and gradients are not an eighth


def test_replicas_exchange_nothing(results):
    """The inner steps communicate within replicas, and never between them."""
    found = results["2 replicas on replica 2 x data 4"]["collectives"]
    crossing = [c for c in found if any(len({device // 4 for device in group}) > 1 for group in c["groups"])]
    assert len(found) - len(crossing) > 5
    assert crossing == []


def test_a_meeting_sends_the_parameters_once(results):
    """Across replicas goes each device's share of one float32 outer gradient, and two numbers about each parameter."""
    meeting = results["2 replicas on replica 2 x data 4"]["meeting"]
    crossing = [c for c in meeting["collectives"] if any(len({d // 4 for d in group}) > 1 for group in c["groups"])]
    assert {c["name"] for c in crossing} == {"all-reduce"}
    assert 0 <= sum(c["bytes"] for c in crossing) - meeting["bytes"] <= 2 * 4 * meeting["leaves"]
    assert results["2 replicas on 1 device"]["meeting"]["collectives"] == []


@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "1 device"])
def test_spectra_are_those_of_one_device(results, name):
    """Eigenvalues within 1e-5 of the largest: the same tokens, added up in another order."""
    ours, alone = results[name]["spectra"], results["1 device"]["spectra"]
    for layer, expected in alone["eigenvalues"].items():
        np.testing.assert_allclose(ours["eigenvalues"][layer], expected, atol=1e-5 * expected[0])
    for key in ("post/hard_rank/0", "post/soft_rank/1", "post/variance/1"):
        assert ours["values"][key] == pytest.approx(alone["values"][key], rel=1e-4)
    assert alone["values"]["post/tokens_per_dimension/0"] == 90 * CONTEXT / 256


def test_moments_of_devices_meet_once(results):
    """Of the scatter, D^2 numbers a layer; before it of means and counts. Nothing of the activations."""
    found = results["data 8, no fsdp"]["spectra"]["collectives"]
    assert {c["name"] for c in found} == {"all-reduce"}
    layers, width = 2, 256
    pooled = 4 * layers * (width**2 + width + 1)
    assert pooled <= sum(c["bytes"] for c in found) <= pooled + 4 * layers


def test_every_family_has_a_rule_for_every_parameter():
    """Of two layers of the smallest published shape of each family, without its arrays."""
    for family, sizes in SIZES.items():
        c = FrozenConfigDict(model(family, next(iter(sizes)), num_layers=2))
        decoder = Decoder(c)
        optimiser = adamw(b1=0.9, b2=0.99, eps=1e-8)
        shapes = jax.eval_shape(
            initial_state(optimiser, replicas=1), jax.eval_shape(partial(initial_params, decoder), np.uint32(0))
        )
        mesh = parallel.mesh(1, 1, 1)
        shardings = parallel.state_shardings(shapes, mesh, replicas=1, fsdp=True)
        specs = dict(parallel.table(shardings))
        assert parallel.without_rule(shapes, shapes.params) == []
        assert len(specs) == len(jax.tree.leaves(shapes))
        for name, spec in specs.items():
            if "kernel" in name or "embedding" in name or name.endswith("head"):
                assert "'data'" in spec, (family, name)
                assert "'tensor'" in spec or "router" in name, (family, name)


def test_what_has_no_rule_is_on_every_device_and_listed():
    """A parameter of an unknown name; and of an optimiser, what has not its parameter's shape: the factors of a second
    moment, of whole stacks and of one layer, whose last axes a rule would cut."""
    mesh = AbstractMesh((1, 2, 2), parallel.AXES)

    def leaf(*shape):
        return jax.ShapeDtypeStruct((1, *shape), "float32")

    params = {"blocks": {"up": {"kernel": leaf(3, 32, 64), "bias": leaf(3, 64)}}}
    params |= {"mystery": leaf(4), "query": {"kernel": leaf(32, 8, 8)}}  # as flax has it, with an axis of heads
    layers = {"blocks": [{"up": {"kernel": leaf(32, 64), "bias": leaf(64)}}]}
    factors = {"blocks": [{"up": {"kernel": leaf(32), "bias": leaf(1)}}]}
    state = {"mu": params, "nu": layers, "row": factors, "column": {"blocks": {"up": {"kernel": leaf(3, 64)}}}}
    found = parallel.table(parallel.state_shardings(state, mesh, replicas=1, fsdp=True, params=params))
    assert {name: spec for name, spec in found if "'" in spec} == {
        "mu/blocks/up/kernel": "(None, None, 'data', 'tensor')", "mu/blocks/up/bias": "(None, None, 'tensor')",
        "nu/blocks/0/up/kernel": "(None, 'data', 'tensor')", "nu/blocks/0/up/bias": "(None, 'tensor')",
    }  # fmt: skip
    listed = ["column/blocks/up/kernel", "mu/mystery", "mu/query/kernel", "row/blocks/0/up/bias"]
    assert parallel.without_rule(state, params) == [*listed, "row/blocks/0/up/kernel"]


def test_an_axis_that_does_not_divide_is_refused():
    mesh = AbstractMesh((1, 2, 4), parallel.AXES)
    tree = {"blocks": {"up": {"kernel": jax.ShapeDtypeStruct((1, 3, 32, 66), "float32")}}}
    message = r"mesh\.tensor=4: does not divide parameter blocks/up/kernel of shape \(3, 32, 66\)"
    with pytest.raises(InputError, match=message):
        parallel.state_shardings(tree, mesh, replicas=1, fsdp=True)


def test_groups_of_devices_are_read_in_every_spelling():
    assert groups("all-reduce(x), replica_groups={{0,2},{1,3}}, ") == [[0, 2], [1, 3]]
    assert groups("x, replica_groups=[2,2]<=[2,2]T(1,0), ") == [[0, 2], [1, 3]]
    assert groups("x, replica_groups=mesh['a'=2,'b'=2] {'a'}, ") == [[0, 2], [1, 3]]
    assert groups("x, replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, ") == [[0, 2], [1, 3]]
