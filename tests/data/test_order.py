"""The global order: a permutation an epoch, independent of batch sizes, in constant memory."""

from dataclasses import dataclass

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.config import InputError
from jaxlab.data.order import Sequences, Validation


@dataclass(frozen=True)
class Counting:
    """A split whose token at position p is p (so that a window shows where it was taken)."""

    num_tokens: int
    name: str = "train"
    eos: int = 7_000_000

    def read(self, starts, length):
        assert (np.asarray(starts) >= 0).all()
        windows = starts[:, None] + np.arange(length)
        return np.where(windows < self.num_tokens, windows, -1).astype(np.int32)


def sequences(num_sequences, seed=0, context=4):
    return Sequences(Counting(num_sequences * context + 1), context, seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(0, 2**63), st.integers(0, 5))
def test_every_sequence_comes_once_an_epoch(n, seed, epoch):
    order = sequences(n, seed).order(np.arange(epoch * n, (epoch + 1) * n))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ():
    n = 1000
    orders = [sequences(n, seed).order(np.arange(4 * n)).reshape(4, n) for seed in range(4)]
    epochs = np.concatenate(orders)  # 16 orders, among them epoch 1 of seed 0 and epoch 0 of seed 1
    for i in range(16):
        for j in range(i):
            assert (epochs[i] == epochs[j]).mean() < 0.02  # 0.001 by chance


def test_order_has_no_trend():
    """Ids at neighbouring positions are uncorrelated, and every tenth of the epoch covers the corpus."""
    order = sequences(5000, 3).order(np.arange(5000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.06
    for part in order.reshape(10, 500):
        assert np.bincount(part // 500, minlength=10).min() > 20


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 10**6))
def test_slices_of_any_size_make_the_same_stream(sizes, begin):
    data = sequences(37)
    whole = data.read(np.arange(begin, begin + sum(sizes)))
    ends = begin + np.cumsum(sizes)
    parts = [data.read(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_sequence_is_a_window_one_longer_than_the_context():
    data = sequences(10, context=4)
    rows = data.read(np.arange(10))
    assert rows.shape == (10, 5)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows[:, 0], data.order(np.arange(10)) * 4)
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(5), (10, 1)))
    assert sorted(rows[:, 1:].ravel().tolist()) == list(range(1, 41))  # each target once an epoch


@pytest.mark.parametrize(("tokens", "expected"), [(5, 1), (8, 1), (9, 2), (41, 10), (44, 10), (45, 11)])
def test_only_full_sequences_count(tokens, expected):
    data = Sequences(Counting(tokens), 4, 0)
    assert data.num_sequences == expected
    assert data.read(np.arange(expected)).min() >= 0


def test_a_billion_sequences_and_positions_beyond_int32():
    data = Sequences(Counting(10**12), 1000, 5)
    n = data.num_sequences
    assert n == 999_999_999
    for begin in (0, 2**31 - 500, 2**32 - 500, 2**40):
        order = data.order(np.arange(begin, begin + 1000))
        assert len(set(order.tolist())) == 1000
        assert order.min() >= 0
        assert order.max() < n
        assert order.max() > 0.9 * n  # not folded into a narrow range


def test_token_positions_beyond_int32():
    class Recording(Counting):
        def read(self, starts, length):
            recorded.append(starts.tolist())
            return super().read(starts, length)

    recorded: list[list[int]] = []
    data = Sequences(Recording(10**12), 1000, 5)
    data.read(np.arange(5))
    assert recorded == [[i * 1000 for i in data.order(np.arange(5)).tolist()]]
    assert max(recorded[0]) > 2**31


def test_epochs():
    data = sequences(8, context=4)
    assert [data.epochs(4 * p) for p in (0, 4, 8, 20, 8 * 2**40)] == [0.0, 0.5, 1.0, 2.5, 2.0**40]


def test_training_goes_on_with_the_first_whole_sequence_that_is_left():
    assert [sequences(8, context=4).position(tokens) for tokens in (0, 4, 5, 8, 4 * 2**40)] == [0, 1, 2, 2, 2**40]


def test_windows_by_hand():
    """Ten tokens in windows of four: inputs one behind their targets, -1 past the end and past the last window."""
    eos = Counting.eos
    assert Validation(Counting(10), 4).read(np.array([2, 0, 1, 3])).tolist() == [
        [7, 8, 9, -1, -1],
        [eos, 0, 1, 2, 3],
        [3, 4, 5, 6, 7],
        [-1, -1, -1, -1, -1],
    ]
    data = Sequences(Counting(10), 4, 0)  # sequences of 0 to 4 and of 4 to 8; 9 is the target of none
    assert sorted(data.read(np.arange(2)).tolist()) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert sorted(data.read(np.arange(2, 4)).tolist()) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_the_order_is_that_of_grain_by_a_hashed_seed():
    """Epoch e of a shuffle of grain has seed + e; SeedSequence(0) gives 2968811710 (numpy's own test values)."""
    seed = 2968811710
    epochs = [list(grain.MapDataset.range(7).shuffle(seed=seed + epoch)) for epoch in range(3)]
    assert sequences(7, 0).order(np.arange(21)).reshape(3, 7).tolist() == epochs


def test_too_short_a_split():
    with pytest.raises(InputError, match=r"split train has 4 tokens, fewer than one .* context\+1 = 5"):
        Sequences(Counting(4), 4, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9))
def test_validation_scores_every_token_once(num_tokens, context, batch):
    split = Counting(num_tokens)
    data = Validation(split, context)
    assert data.num_sequences == -(-num_tokens // context)
    # Batches that go past the end are filled with rows of -1.
    begins = range(0, data.num_sequences, batch)
    rows = np.concatenate([data.read(np.arange(b, b + batch)) for b in begins])
    assert rows.shape[1] == context + 1
    inputs, targets = rows[:, :-1], rows[:, 1:]
    assert targets[targets >= 0].tolist() == list(range(num_tokens))
    assert (rows[data.num_sequences :] == -1).all()
    scored = targets >= 0
    np.testing.assert_array_equal(inputs[scored], [split.eos, *range(num_tokens - 1)])
