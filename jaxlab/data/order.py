"""The shuffled order of training sequences: a batch is a slice of it, and the position in the data is one integer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlab.config import InputError
from jaxlab.data.store import Split


@dataclass(frozen=True)
class Sequences:
    """A split as training sequences in shuffled order.

    Sequence j holds tokens [j*L, j*L + L + 1), L = context: L inputs and their L targets, which are the inputs shifted
    by one. A position counts sequences from the start of training through all epochs, each with its own permutation.
    Raises InputError when the split is shorter than one sequence.
    """

    split: Split
    context: int
    seed: int

    def __post_init__(self):
        if self.num_sequences < 1:
            raise InputError(
                f"split {self.split.name} has {self.split.num_tokens} tokens, fewer than one sequence of "
                f"context+1 = {self.context + 1}; shorten the context or prepare a larger corpus"
            )

    @property
    def num_sequences(self) -> int:
        """Number of whole sequences in the split, which is the number of positions in an epoch."""
        return (self.split.num_tokens - 1) // self.context

    @cached_property
    def _shuffled(self):
        import grain  # a second to import

        # Grain seeds epoch e with seed + e. Hashing the seed keeps epoch 1 of seed 0 from equalling epoch 0 of seed 1.
        seed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        return grain.MapDataset.range(self.num_sequences).shuffle(seed=seed)

    def order(self, positions: np.ndarray) -> np.ndarray:
        """Sequence ids at the positions: int64 [n] -> int64 [n]; constant memory for any corpus."""
        shuffled = self._shuffled
        return np.array([shuffled[position] for position in np.asarray(positions).tolist()], np.int64)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Tokens of the sequences at the positions: int64 [n] -> int32 [n, L + 1]."""
        return self.split.read(self.order(positions) * self.context, self.context + 1)

    def position(self, tokens: int) -> int:
        """The position at which training continues after `tokens` tokens."""
        return -(-tokens // self.context)

    def epochs(self, tokens: int) -> float:
        """Number of epochs, as a fraction too, after `tokens` tokens."""
        return tokens / (self.num_sequences * self.context)


@dataclass(frozen=True)
class Validation:
    """A split in its stored order, cut so that each of its tokens is the target of exactly one window.

    The targets of window j are tokens [j*L, j*L + L), its inputs the tokens one before each; the first input of the
    split is eos. Entries past the end of the split are -1, and so are whole windows at positions >= `num_sequences`,
    which fill up the last batch.
    """

    split: Split
    context: int

    @property
    def num_sequences(self) -> int:
        return -(-self.split.num_tokens // self.context)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Tokens of the windows at the positions: int64 [n] -> int32 [n, L + 1]."""
        starts = np.asarray(positions, np.int64) * self.context - 1
        windows = self.split.read(np.maximum(starts, 0), self.context + 1)
        first = starts < 0
        windows[first, 1:] = windows[first, :-1]
        windows[first, 0] = self.split.eos
        windows[np.asarray(positions) >= self.num_sequences] = -1
        return windows
