"""Multiple choice: boundaries of tokens, log-likelihoods against a float64 reference, the arithmetic of the scores."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from jaxlab import parallel
from jaxlab.config import InputError
from jaxlab.data.tokenizer import load, train_bpe
from jaxlab.evaluate.choice import (
    SCORES,
    Choice,
    Layout,
    batches,
    by_domain,
    chooser,
    encode,
    evaluate,
    score_tasks,
    scorer,
    summarise,
)  # fmt: skip
from jaxlab.evaluate.tasks import Item, read_items
from jaxlab.model.decoder import Decoder
from tests import tiny

SAMPLES = tiny.ROOT / ".." / "shared" / "data" / "evals"
BYTES = load("bytes", None)
ITEMS = [
    Item("a", "Birds sing in the", (" morning.", " night, and the rest of the time they sleep.", " tea"), 0, "x"),
    Item("b", "One and one is ", ("two", "three"), 0, "x"),
    Item("c", "", (" Nothing before.", " b"), 1, "y"),
    Item("d", "Letters:", (" A", " B", " C", " D"), 3, "y"),
    Item("e", "long " * 30 + "context", (" end", " or another end"), 1, "y"),
]


@pytest.fixture(scope="module")
def model():
    c = FrozenConfigDict(tiny.config({}).model.to_dict() | {"vocab_size": 257})
    return Decoder(c, scan=True)


@pytest.fixture(scope="module")
def params(model):
    """Two replicas with different parameters, leaves with a leading axis of 2."""
    init = jax.jit(model.init)
    each = [init(jax.random.key(seed), np.zeros((1, 1), np.int32))["params"] for seed in (0, 1)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def only(params, replica: int):
    return jax.tree.map(lambda x: x[replica : replica + 1], params)


def compiled(model, chunk: int):
    return jax.jit(scorer(model, chunk))


@pytest.fixture(scope="module")
def reference(model, params):
    """Log-likelihood of a continuation under the first replica: one text at a time, its full logits, float64."""
    one = jax.tree.map(lambda x: x[0], params)
    logits = jax.jit(lambda tokens: model.apply({"params": one}, tokens))

    def log_likelihood(context: str, continuation: str) -> float:
        before = list(context.encode()) or [256]
        ids = [*before, *continuation.encode()]
        kept = ids[-65:]
        tokens = np.full((1, 64), 7, np.int32)
        tokens[0, : len(kept) - 1] = kept[:-1]
        rows = np.asarray(logits(tokens)[0], np.float64)
        total = 0.0
        for i in range(len(kept) - (len(ids) - len(before)), len(kept)):
            row = rows[i - 1]
            total += row[kept[i]] - row.max() - math.log(np.exp(row - row.max()).sum())
        return total

    return log_likelihood


def test_log_likelihoods_are_those_of_the_full_logits_whatever_the_batch(model, params, reference):
    """Within 1e-4 nats: float32 sums of up to 64 log-probabilities of order 5."""
    layouts = [
        Layout(context=64, groups=1, tokens=512, unit=16, chunk=1 << 20),
        Layout(context=64, groups=2, tokens=64, unit=64, chunk=32),  # one sequence a group, the head in two pieces
    ]
    for layout in layouts:
        score = partial(compiled(model, layout.chunk), only(params, 0))
        records = [r for window in evaluate(score, ITEMS, BYTES, layout) for r in window]
        assert [r["id"] for r in records] == list("abcde")
        for item, record in zip(ITEMS, records, strict=True):
            space = " " if item.context.endswith(" ") else ""  # counts as the continuation's
            wanted = [reference(item.context.rstrip(), space + choice) for choice in item.choices]
            np.testing.assert_allclose(record["log_likelihood"], wanted, atol=1e-4)
            assert record["tokens"] == [len((space + choice).encode()) for choice in item.choices]
            assert record["bytes"] == [len(choice.lstrip().encode()) for choice in item.choices]


def test_the_mean_over_replicas(model, params):
    layout = Layout(context=64, groups=1, tokens=512, unit=64, chunk=1 << 20)
    score = compiled(model, layout.chunk)

    def likelihoods(params):
        records = next(evaluate(partial(score, params), ITEMS, BYTES, layout))
        return np.array([x for r in records for x in r["log_likelihood"]])

    alone = [likelihoods(only(params, i)) for i in (0, 1)]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(likelihoods(params), (alone[0] + alone[1]) / 2, rtol=1e-5)


def test_spaces_at_the_end_of_a_context_go_to_the_continuation():
    """With merges over the boundary the ids are those of the whole text, split where the context's own end."""
    text = ["the cat sat on the mat and the dog ran to the man"] * 20
    bpe = load("bpe:300", train_bpe(text, 300))
    (choices,) = encode(bpe, [Item("", "on the ", ("mat", "dog and cat"), 0)], 64)
    assert bpe.decode(choices[0].targets) == " mat"
    assert bpe.decode(np.append(choices[0].inputs[:1], choices[0].inputs[1:])).startswith("on the")
    assert [c.text for c in choices] == ["mat", "dog and cat"]
    whole = bpe.encode(["on the dog and cat"])[0]
    assert np.array_equal(np.append(choices[1].inputs, choices[1].targets[-1]), whole)


def test_what_does_not_fit():
    """The right end is kept; a continuation that alone is longer leaves its item without choices."""
    cut, none = encode(BYTES, [Item("", "0123456789", ("abc", "de"), 0), Item("", "x", ("a" * 9, "b"), 0)], 8)
    assert bytes(cut[0].inputs.tolist()) == b"456789ab"
    assert bytes(cut[0].targets.tolist()) == b"abc"
    assert [c.cut for c in cut] == [4, 3]
    assert none == []
    with pytest.raises(InputError, match="item 7: the continuation '' has no token of its own"):
        encode(BYTES, [Item("7", "x", ("",), 0)], 8)


def read_back(made) -> dict[int, list]:
    """{number of a choice: [(the inputs at its positions, its targets)]} of batches, once for each batch it is in."""
    found = {}
    for tokens, positions, targets, owners in made:
        assert positions.min() >= 0
        for g in range(len(tokens)):
            for number in set(owners[g].tolist()) - {-1}:
                here = owners[g] == number
                inputs = tokens[g].ravel()[positions[g][here]]
                found.setdefault(number, []).append((inputs.tolist(), targets[g][here].tolist()))
    return found


def test_every_choice_is_scored_once():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 65, 200)
    choices = [Choice(np.arange(n) % 200, rng.integers(0, 200, rng.integers(1, n + 1)), "", 0) for n in sizes]
    layout = Layout(context=64, groups=2, tokens=256, unit=16, chunk=48)
    scored = layout.scored(choices)
    assert scored >= 64
    assert scored % 48 == 0
    made = list(batches(choices, layout, scored))
    assert {b.tokens.shape for b in made} == {(2, 256 // length, length) for length in (16, 32, 48, 64)}
    expected = {i: [(c.inputs[-len(c.targets) :].tolist(), c.targets.tolist())] for i, c in enumerate(choices)}
    assert read_back(made) == expected


@pytest.mark.parametrize(("scored", "groups"), [(64, 1), (5, 2)])
def test_letters_share_a_row_also_where_not_all_fit_into_a_group(scored, groups):
    (letters,) = encode(BYTES, [ITEMS[3]], 64)
    made = list(batches(letters, Layout(context=64, groups=1, tokens=64, unit=16, chunk=64), scored))
    assert len(made) == groups
    assert all(len(np.unique(b.positions[b.owners >= 0])) == 2 for b in made)  # of ": ", once each
    assert read_back(made) == {i: [([58, 32], [32, ord("ABCD"[i])])] for i in range(4)}


def test_lengths_are_padded_to_four_an_octave():
    lengths = Layout(context=1000, groups=1, tokens=1, unit=16, chunk=1)
    assert sorted({lengths.length(n) for n in range(1, 1001)}) == [
        *range(16, 129, 16), 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1000]  # fmt: skip
    assert all(lengths.length(n) >= n for n in range(1, 1001))


def record(log_likelihood, gold=0, domain="", **lengths) -> dict:
    """A record; lengths that are not given are 1."""
    ones = [1] * len(log_likelihood)
    known = {"tokens": ones, "characters": ones, "bytes": ones, "cut": [0] * len(ones)}
    return known | {"domain": domain, "gold": gold, "log_likelihood": log_likelihood} | lengths


def test_scores_by_hand():
    """Items of 2 and 4 choices: chance (1/2 + 1/4) / 2; the likeliest by sum, by token and by byte differ."""
    records = [
        record([-4.0, -6.0], 1, "x", tokens=[2, 4], bytes=[8, 10]),
        record([-9.0, -8.0, -8.5, -99.0], 0, "y", tokens=[9, 2, 2, 2], bytes=[10] * 4, cut=[0, 3, 0, 0]),
        record([], 0, "y"),
    ]
    found = summarise(records)
    assert found["chance"] == pytest.approx(0.375)
    assert (found["acc"], found["acc_norm"], found["acc_bytes"], found["acc_tokens"]) == (0.0, 0.0, 0.0, 1.0)
    assert (found["items"], found["cut"], found["left_out"]) == (2, 1, 1)
    # -6/4 + 4/2 = 0.5, and -1 + (4 + 4.25 + 49.5) / 3 = 18.25; standard deviation 8.875
    assert found["margin"] == pytest.approx((0.5 + 18.25) / 2)
    assert found["margin_se"] == pytest.approx(8.875 / math.sqrt(2))
    domains = by_domain(records)["domains"]
    assert {name: (s["items"], s["left_out"], s["chance"], s["margin"]) for name, s in domains.items()} == {
        "x": (1, 0, 0.5, 0.5), "y": (1, 1, 0.25, 18.25)}  # fmt: skip
    assert "domains" not in by_domain(records[:1])


def test_the_harness_divides_by_characters_and_by_bytes():
    """lm-evaluation-harness 0.4.13, api/task.py: acc_norm is argmax(lls / len(choice)), acc_bytes argmax(lls /
    len(choice.encode())). Here each score prefers another choice:

                    nats  characters      bytes       tokens
        "a"           -3   1 (-3)      1 (-3)      1 (-3)     acc
        "morning."    -8   8 (-1)      8 (-1)      2 (-4)     acc_norm
        "日本語日本語"  -9   6 (-1.5)   18 (-0.5)   3 (-3)     acc_bytes
        "tiles"      -10   5 (-2)      5 (-2)      5 (-2)     acc_tokens
    """
    lengths = {"characters": [1, 8, 6, 5], "bytes": [1, 8, 18, 5], "tokens": [1, 2, 3, 5]}
    for gold, name in enumerate(("acc", "acc_norm", "acc_bytes", "acc_tokens")):
        found = summarise([record([-3.0, -8.0, -9.0, -10.0], gold, **lengths)])
        scores = {key: found[key] for key in ("acc", "acc_norm", "acc_bytes", "acc_tokens")}
        assert scores == {key: float(key == name) for key in scores}


def test_lengths_are_those_of_the_text_without_the_space_that_joins_it():
    """Of log-probabilities that are -1/256 of the id: a byte's value, summed."""
    item = Item("a", "Q:", (" é", " 日本語", "  two", "no"), 1)
    layout = Layout(context=64, groups=1, tokens=64, unit=16, chunk=64)
    ((found,),) = evaluate(lambda tokens, positions, targets: -targets / 256, [item], BYTES, layout)
    assert found["characters"] == [1, 3, 4, 2]
    assert found["bytes"] == [2, 9, 4, 2]
    assert found["tokens"] == [3, 10, 5, 2]
    assert found["log_likelihood"] == [-sum(choice.encode()) / 256 for choice in item.choices]


def test_standard_error():
    """1 of 4 right: sqrt(0.25 * 0.75 / 4), of every score; and for 3 of 4 the same."""
    for right in (1, 3):
        found = summarise([record([-1.0, -2.0], int(i >= right)) for i in range(4)])
        for name in ("acc", "acc_norm", "acc_bytes", "acc_tokens"):
            assert found[name] == right / 4
            assert found[f"{name}_se"] == pytest.approx(0.21650635094610965)


def test_where_nothing_fits_there_are_only_counts():
    nothing = {"items": 0, "cut": 0, "left_out": 2}
    assert summarise([record([]), record([])]) == by_domain([record([]), record([])]) == nothing
    assert score_tasks(lambda items: [[record([]), record([])]], {"piqa": [None]}) == {
        "piqa/items": 0, "piqa/cut": 0, "piqa/left_out": 2}  # fmt: skip


@pytest.mark.parametrize("context", [1, 2, 3, 8])
def test_a_window_in_which_nothing_fits(context):
    """The first windows have no item that fits into the context, the last item does; a context of 1 has windows of one
    item. Each fitting choice has the log-probability -1 for its one byte."""
    long, short = Item("long", "x", ("a" * 9, "b"), 0), Item("short", "x", ("a", "b"), 1)
    layout = Layout(context=context, groups=1, tokens=context, unit=16, chunk=64)
    score = lambda tokens, positions, targets: np.full(targets.shape, -1.0)  # noqa: E731
    found = [r for window in evaluate(score, [long] * 5 + [short], BYTES, layout) for r in window]
    assert [r["log_likelihood"] for r in found] == [[]] * 5 + [[-1.0, -1.0]]
    nothing = [r for window in evaluate(score, [long] * 5, BYTES, layout) for r in window]
    assert nothing == found[:5]


def test_no_choices_are_no_batches():
    layout = Layout(context=8, groups=1, tokens=64, unit=16, chunk=64)
    assert layout.scored([]) == 8
    assert list(batches([], layout, 8)) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_log_likelihood_that_is_not_finite_is_no_score(value):
    layout = Layout(context=64, groups=1, tokens=64, unit=16, chunk=64)
    with pytest.raises(InputError, match="item d: a log-likelihood is not finite"):
        list(evaluate(lambda tokens, positions, targets: np.full(targets.shape, value), ITEMS[3:4], BYTES, layout))


@pytest.mark.skipif(not SAMPLES.exists(), reason=f"no sample items in {SAMPLES}")
def test_an_untrained_model_is_at_chance():
    """On the first 200 items of HellaSwag: each accuracy within three standard errors of a quarter."""
    items = read_items("hellaswag", str(SAMPLES), archives="", tfds_dir="")
    tokenizer = load("bpe:512", train_bpe((item.context for item in items), 512))
    c = FrozenConfigDict(tiny.config({}).model.to_dict() | {"vocab_size": 512, "context": 256})
    model = Decoder(c, scan=True)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    choose = chooser(model, parallel.mesh(1, 1, 1), 1, sequences=8, chunk=256)
    records = [r for window in choose(jax.tree.map(lambda x: x[None], params), items, tokenizer) for r in window]
    found = summarise(records)
    assert found["items"] == 200
    for name in SCORES:
        assert abs(found[name] - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 200)
