"""The global order of training sequences: a batch is a slice of it, the data position one integer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlab.config import InputError
from jaxlab.data.store import Split


@dataclass(frozen=True)
class Sequences:
    """A split as training sequences in shuffled order.

    Sequence j holds tokens [j*L, j*L + L + 1), L = context: L inputs and, one further, their L targets. A
    position counts sequences from the start of training, through all epochs; each epoch permutes anew.
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
        """Full sequences in the split, i.e. positions in an epoch."""
        return (self.split.num_tokens - 1) // self.context

    @cached_property
    def _shuffled(self):
        import grain  # a second to import

        # Grain seeds epoch e with seed + e; a hashed seed keeps the epochs of seeds 0 and 1 apart.
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
        """The position at which training goes on after so many tokens."""
        return -(-tokens // self.context)

    def epochs(self, tokens: int) -> float:
        """How often the split has been seen after so many tokens."""
        return tokens / (self.num_sequences * self.context)


@dataclass(frozen=True)
class Validation:
    """A split in plain order such that each of its tokens is the target of exactly one window.

    Window j holds L inputs and, one further, the targets [j*L, j*L + L); the first input of all is eos. What
    lies past the end is -1, also in whole windows at positions >= `num_sequences` (to fill up a batch).
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
