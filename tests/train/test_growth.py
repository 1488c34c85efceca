"""A batch that grows: the same sequences in the same order, other lengths, rates, and what is compiled when."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.train import loop, report, session
from jaxlab.train.build import batches, build, hypers
from jaxlab.train.state import Clock
from tests import tiny

GROWING = {
    "tokens": 8_192, "batch__growth": "0:512 2K:1000 4Ki:1536", "batch__micro_tokens": 256,
    "compute__steps_per_call": 2, "log__tensorboard": False, "evaluate__every_tokens": 0,
    "checkpoint__every_tokens": 1_500,
}  # fmt: skip


def read(run):
    """Every training sequence of a run, in order."""
    found = []
    for block in run.blocks(Clock()):
        rows = np.asarray(run.arrays(block)[0]).reshape(-1, block.batch.context + 1)
        found.extend(tuple(row) for row in rows if row[0] >= 0)
    return found


@pytest.fixture(scope="module")
def growing(data):
    return build(tiny.config(data, **GROWING))


def test_a_growing_batch_sees_what_a_fixed_one_sees(growing, data):
    fixed = build(tiny.config(data, **GROWING | {"batch__growth": ""}))
    first, second = read(growing), read(fixed)
    assert len(second) == 8_192 // 64
    assert first == second[: len(first)]
    assert len(second) - len(first) < 1_536 // 64  # less than a batch is left


def test_sizes_are_rounded_to_micro_batches_and_change_where_a_step_starts(growing):
    steps = [
        (block.start.tokens + i * block.batch.tokens, block.batch.tokens)
        for block in growing.blocks(Clock())
        for i in range(block.count)
    ]
    small, middle, large = (
        ((start, 512) for start in range(0, 2048, 512)),
        ((2048, 1024), (3072, 1024)),
        ((4096, 1536),),
    )
    assert steps == [*small, *middle, *large, (5632, 1536)]
    assert "from 2,000 tokens 1,024 tokens: 1 replicas x 4 micro-batches x 4 sequences of 64 (1,000 wanted)" in "".join(
        report.header(growing, None, "")
    )


def test_growth_is_trained_killed_and_resumed_bit_for_bit(growing, tmp_path, monkeypatch):
    """Stopped after every second call, in all stages; the rows say how large the batch was."""
    assert loop.train(growing, tmp_path / "whole", Console(quiet=True))["steps"] == 8
    wanted = tiny.rows(tmp_path / "whole")
    assert [row["batch_tokens"] for row in wanted if row["kind"] == "train"] == [512] * 4 + [1024] * 2 + [1536] * 2
    assert all(row["noise"] for row in wanted if row["kind"] == "train")

    class Stop:
        def __init__(self, after):
            self.left = after

        def is_set(self):
            self.left -= 1
            return self.left < 0

    class Stopping:
        def __enter__(self):
            return Stop(1)

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(session, "stop_on_signal", Stopping)
        for _ in range(8):
            if loop.train(growing, tmp_path / "cut", Console(quiet=True)):
                break
    loop.train(growing, tmp_path / "cut", Console(quiet=True))
    assert tiny.rows(tmp_path / "cut") == wanted
    assert tiny.fingerprint(tmp_path / "cut") == tiny.fingerprint(tmp_path / "whole")


@pytest.mark.parametrize(("micro", "programs"), [(256, [(4, 4)]), (0, [(1, 8), (1, 16)])])
def test_every_size_is_compiled_once_and_ahead(data, micro, programs):
    """And where sizes are micro-batches of one size, all at once."""
    changes = {"batch__growth": "0:512 1024:1024 2048:512 3072:1024", "batch__micro_tokens": micro}
    run = build(tiny.config(data, **GROWING | changes))
    compiled = []
    original = type(run.program)._compile

    def compile_(self, shape):
        compiled.append(shape[2:4])
        return original(self, shape)

    object.__setattr__(run.program, "_compile", compile_.__get__(run.program))
    for _ in loop.trained(run, run.program.init(np.uint32(0)), Clock()):
        until = time.monotonic() + 10
        while (
            len(compiled) < len(programs) and time.monotonic() < until
        ):  # on its own thread, while the first size trains
            time.sleep(0.01)
        assert compiled == programs


def test_longer_sequences_go_on_where_shorter_ones_were(data):
    changes = {"model__context": 96, "batch__context_growth": "0:64 2048:96", "batch__growth": "0:512 2048:768"}
    run = build(tiny.config(data, **GROWING | changes | {"batch__micro_tokens": 0, "compute__steps_per_call": 1}))
    blocks = list(run.blocks(Clock()))
    assert [(b.start.tokens, *b.batch) for b in blocks[3:6]] == [(1536, 512, 64), (2048, 768, 96), (2816, 768, 96)]
    tokens, order = np.asarray(run.arrays(blocks[4])[0])[0, 0, 0], run.order(96)
    np.testing.assert_array_equal(tokens, order.read(np.arange(22, 30)))  # 2048 / 96 = 21.3
    np.testing.assert_array_equal(np.asarray(run.arrays(blocks[5])[0])[0, 0, 0], order.read(np.arange(30, 38)))


@pytest.mark.parametrize(("rule", "factors"), [("kept", (1, 1)), ("sqrt", (2**0.5, 2)), ("linear", (2, 4))])
def test_what_becomes_of_the_rate(data, rule, factors):
    keys = {"batch__growth": "0:512 2Ki:1Ki 4Ki:2Ki", "batch__lr_rule": rule, "schedule__warmup_tokens": 0}
    config = tiny.config(data, **GROWING | keys, schedule__name="constant", schedule__peak_lr=0.5)
    rates = {block.start.tokens: block.hypers["lr"][0] for block in build(config).blocks(Clock())}
    assert (rates[0], rates[2_048], rates[4_096]) == pytest.approx((0.5, 0.5 * factors[0], 0.5 * factors[1]))


def test_a_run_of_any_length_is_described_at_once(growing, data):
    """Of 10^14 tokens in 195 thousand million steps, and of 10,000 sizes."""
    run = planned(growing, data, batch__growth="", tokens=10**14)
    assert f"{10**14 // 512 * 512:,} tokens in {10**14 // 512:,} steps" in "".join(report.header(run, None, ""))
    assert next(run.blocks(Clock(512 * 10**11, 10**11))).start.steps == 10**11
    run = planned(growing, data, batch__growth="curve:1,0.2,0.3 every 10B", tokens=10**14)
    assert len(run.batches) == 10_000
    text = "".join(report.header(run, None, ""))
    assert text.count("sequences of 64") == 20
    assert "; ... 9,980 more ...; from 99,900,000,000,000 tokens" in text
    assert (
        run.compiled_shape(run.batches[0]).micro_batches == max(batch.tokens for batch in run.batches.values()) // 256
    )
    assert next(run.blocks(Clock())).batch == run.batches[0]


def planned(growing, data, **changes):
    """The growing run with other sizes: nothing is compiled."""
    config = tiny.config(data, **GROWING | changes)
    return replace(growing, config=config, batches=batches(config, growing.program.mesh))


def test_a_fitted_curve(growing, data):
    """2 N^0.2 D^0.3 of the N that the header prints, at every 2 Ki tokens, half of the way: by hand, rounded to 256."""
    run = planned(growing, data, batch__growth="curve:2,0.2,0.3 every 2Ki momentum 0.5")
    text = "\n".join(report.header(run, None, ""))
    N, size, expected = int(text.split(" without embeddings")[0].split("(")[1].replace(",", "")), 512, [512]
    for tokens in (2_048, 4_096, 6_144):
        size += (2 * N**0.2 * tokens**0.3 - size) / 2
        expected.append(round(size / 256) * 256)
        assert f"from {tokens:,} tokens {expected[-1]:,} tokens" in text
        assert f"({round(size):,} wanted)" in text
    assert [batch.tokens for batch in run.batches.values()] == expected
    assert len(set(expected)) > 1


def test_seesaw(growing, data):
    """LR / sqrt(B) is the base schedule's in every step; B has doubled where that has halved."""
    run = planned(growing, data, batch__growth="seesaw:2", batch__lr_rule="sqrt", tokens=32_768)
    s, grown = run.config.schedule, []
    for block in run.blocks(Clock()):
        for i, lr in enumerate(block.hypers["lr"]):
            tokens, size = block.start.tokens + i * block.batch.tokens, block.batch.tokens
            done = [max(0, (t - 2_048) / (32_768 - 2_048)) for t in (tokens, tokens + size / 2)]
            at, middle = (0.05 + 0.95 * (1 + math.cos(math.pi * x)) / 2 for x in done)
            warm = min(1, (tokens + size / 2) / 2_048)
            assert lr / math.sqrt(size / 512) == pytest.approx(s.peak_lr * warm * middle)
            assert size == 512 * 2 ** int(-math.log2(at))
            grown.append(size)
    assert grown[-1] == 512 * 8  # a sixteenth is reached 2,250 tokens before the end: twice as many do not fit


def test_a_decay_that_keeps_its_time_scale(data):
    """Shares in proportion to lr and B (2505.13738): tau = B / (lr weight_decay) stays while the batch doubles."""
    keys = {"optim__weight_decay": 0.1, "schedule__name": "constant", "schedule__peak_lr": 0.5}
    for decay, shares in (("independent", (0.1, 0.1)), ("coupled", (0.05, 0.05)), ("timescale", (0.05, 0.1))):
        at = hypers(tiny.config(data, **keys, optim__decay=decay), first=512)
        assert [at(4_096, batch)["weight_decay"] for batch in (512, 1_024)] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch__growth": "512:512"}, "batch.growth='512:512'"),
        ({"batch__growth": "0:5x"}, "batch.growth='0:5x'"),
        ({"batch__growth": "curve:1,2 every 2K"}, "batch.growth='curve:1,2 every 2K': 'curve': must be"),
        ({"batch__growth": "seesaw:2"}, "batch.growth='seesaw:2': needs batch.lr_rule=sqrt, which is kept, and a sch"),
        ({"batch__growth": "0:9K"}, "tokens=8192: less than the first batch, 8960"),
        (
            {"batch__growth": "curve:1,0.2,0.3 every 1", "tokens": 10**14},
            "batch.growth='curve:1,0.2,0.3 every 1': every=1: must be at least 10000000000 for 10,000 stages",
        ),
        (
            {"batch__growth": "seesaw:1.00000000001", "batch__lr_rule": "sqrt"},
            "batch.growth='seesaw:1.00000000001': drop=1.00000000001: must be larger, for at most 10,000 stages",
        ),
        (
            {"batch__growth": " ".join(f"{i}:512" for i in range(10_001))},
            "10,001 stages: must be at most 10,000",
        ),
        ({"batch__context_growth": f"0:{'9' * 5_000}"}, "must be a whole number, as in 500_000 or 125B"),
        ({"batch__context_growth": f"{'9' * 5_000}:64"}, "must be a whole number, as in 500_000 or 125B"),
        ({"batch__context_growth": "0:64 2K:128"}, "batch.context_growth=128: longer than the model's positions"),
        ({"batch__context_growth": "0:32 2K:48"}, "batch.micro_tokens=256: must be whole sequences of 48"),
    ],
)
def test_bad_growth_is_refused(data, changes, message):
    with pytest.raises(InputError) as error:
        build(tiny.config(data, **GROWING | changes))
    assert message in str(error.value)
