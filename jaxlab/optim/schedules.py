"""Learning-rate schedules as plain functions of tokens consumed, evaluated on the host.

A step that consumes tokens [t, t + B) takes the value at t + B/2, so that the mean over a run does not depend on how
it is cut into steps: a growing batch neither stretches a schedule nor shifts it.
"""

import math
from collections.abc import Callable

DECAYS = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def schedule(
    name: str,
    *,
    total_tokens: int,
    warmup_tokens: int = 0,
    final_fraction: float = 0.0,
    decay_tokens: int = 0,
    decay_shape: str = "linear",
) -> Callable[[float], float]:
    """tokens -> fraction of the peak in [0, 1]: linear warm-up from 0, then by name.

    constant: 1. cosine: half a cosine from 1 at the end of the warm-up to final_fraction at total_tokens (DiLoCo
    paper: 0.05). wsd: 1, then over the last decay_tokens a decay of the given shape to final_fraction (batch-size
    paper: linear to 0.1).
    """
    decay = {"constant": 0, "cosine": total_tokens - warmup_tokens, "wsd": decay_tokens}[name]
    shape = DECAYS["cosine" if name == "cosine" else decay_shape]

    def fraction(tokens: float) -> float:
        warm = min(1.0, tokens / warmup_tokens) if warmup_tokens else 1.0
        if not decay:
            return warm
        progress = min(1.0, max(0.0, 1 - (total_tokens - tokens) / decay))
        return warm * (final_fraction + (1 - final_fraction) * shape(progress))

    return fraction
