"""What is evaluated, against the model's own logits in numpy; the figure and the lines of a run."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlab.config import default
from jaxlab.train import report
from jaxlab.train.build import build, hypers
from tests import tiny

SMALL = {"compute__layers": "scan", "model__num_layers": 1, "replicas": 2, "model__z_loss": 0.1}


@pytest.fixture(scope="module")
def run(data):
    return build(tiny.config(data, **SMALL, evaluate__tokens=1_000))


def nats(run, params, first, count):
    """-log p of `count` validation tokens from `first` on, in windows of 64 whose inputs are the tokens before, in
    float64."""
    split = run.store.split("validation")
    (tokens,) = split.read(np.zeros(1, int), first + count)
    before = np.append(split.eos, tokens[:-1])
    total = 0.0
    for start in range(first, first + count, 64):
        end = min(start + 64, first + count)
        logits = np.float64(run.program.model.apply({"params": params}, before[None, start:end])[0])
        top = logits.max(-1)
        chosen = logits[np.arange(end - start), tokens[start:end]]
        total += (np.log(np.exp(logits - top[:, None]).sum(-1)) + top - chosen).sum()
    return total


def test_the_loss_is_that_of_the_logits_and_the_mean_over_replicas(run):
    """1,000 tokens asked for are 16 windows of 64. Replicas that never met differ; bits count the text's bytes."""
    state = run.program.init(np.uint32(0))
    params = jax.tree.map(lambda p: p * np.float32([1, 1.5]).reshape(2, *[1] * (p.ndim - 1)), state.params)
    scores = run.evaluate(state._replace(params=params))
    each = [nats(run, jax.tree.map(lambda p, m=m: p[m], params), 0, 1_024) / 1_024 for m in range(2)]
    assert abs(each[0] - each[1]) > 0.02
    assert scores["scored_tokens"] == 1_024
    assert scores["loss"] == pytest.approx(np.mean(each), rel=1e-5)
    split = run.store.split("validation")
    assert split.num_bytes < split.num_tokens  # an end of each document, which is no text
    wanted = np.mean(each) * split.num_tokens / (np.log(2) * split.num_bytes)
    assert scores["bits_per_byte"] == pytest.approx(wanted, rel=1e-5)


def test_all_of_the_validation_split(run, data):
    """The last window is cut, and what fills it up does not count."""
    whole = build(tiny.config(data, **SMALL), compiled=run.program)
    state = whole.program.init(np.uint32(0))
    tokens = whole.store.split("validation").num_tokens
    assert tokens % 64
    scores = whole.evaluate(state)
    assert scores["scored_tokens"] == tokens
    one = jax.tree.map(lambda p: p[0], state.params)
    assert scores["loss"] == pytest.approx(nats(whole, one, 0, tokens) / tokens, rel=1e-5)


def test_rates_by_hand():
    """Warm-up to 1,000 of 9,000 tokens, half a cosine to a tenth; the rate is 0.5 and B has grown from 100 to 400."""
    c = default()
    c.tokens = 9_000
    c.schedule.update(name="cosine", peak_lr=0.5, warmup_tokens=1_000, final_fraction=0.1)
    c.batch.lr_rule = "sqrt"
    c.optim.update(weight_decay=0.2, decay="coupled")
    at = hypers(c, first=100)
    assert at(500, 100) == pytest.approx({"lr": 0.25, "weight_decay": 0.05})
    assert at(5_000, 400) == pytest.approx({"lr": 0.5 * 0.55 * 2, "weight_decay": 0.2 * 0.55})
    assert at(9_000, 100) == pytest.approx({"lr": 0.05, "weight_decay": 0.01})


def test_what_a_compiled_step_needs():
    """Arguments and results that share their memory count once."""
    sizes = {"argument": 10, "temp": 3, "output": 9, "alias": 8}
    memory = SimpleNamespace(**{f"{name}_size_in_bytes": size * 10**6 for name, size in sizes.items()})
    line = report.compiled(1.25, memory)
    assert line == "compiled  in 1.2 s; a step needs 14.0 MB a device, 3.0 MB of it temporary"


@pytest.mark.parametrize("title", ["files:$HOME/$x_{1.txt", "files:[bold]a.txt", "files:\udcff.txt"])
def test_a_figure_of_any_name(tmp_path, title):
    """Neither formulae nor encodings: the names of files are drawn as they are."""
    rows = [{"kind": "train", "tokens": t, "loss": 9.0 - t, "lr": 0.1} for t in range(1, 5)]
    rows.append({"kind": "eval", "tokens": 4, "loss": 5.0, "bits_per_byte": 2.0})
    report.figure(rows, tmp_path / "curves.png", title)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
