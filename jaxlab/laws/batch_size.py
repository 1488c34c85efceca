"""How many tokens E and steps S reach a target loss at batch size B, E = B S (Zhou et al. 2601.05034), and rules for B.

In McCandlish et al. 1812.06162 E always rises with B. Under a constant learning rate there is instead a best batch
B_opt, which needs the fewest tokens, and a smallest batch B_min, below which gradient noise keeps the loss above the
target. The laws have B as their input, because it is chosen without error, whereas E and S share a measurement
error. B and E are in tokens.

From loss curves: `crossings` finds E at a target loss for every batch, `optimum` fits a law to them, and `best_batch`
fits B_opt over several targets and model sizes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxlab.config import InputError
from jaxlab.laws.fit import Fit, fit
from jaxlab.laws.law import Law, Parameter
from jaxlab.laws.lines import PowerLaw, power_law
from jaxlab.laws.resample import bootstrap


def hyperbola(p, x):
    """E = E_min (1 + B / B_crit), that is (S / S_min - 1) (E / E_min - 1) = 1 with B_crit = E_min / S_min
    (McCandlish et al.)."""
    return p["E_min"] * (1 + x["B"] / p["B_crit"])


def noise_floor(p, x):
    """E = B S_min (1 - B_min / B)^(-1/s): the loss falls with steps t as t^-s towards a floor ~ 1 / B, the gradient
    noise. B_opt = B_min (1 + 1/s)."""
    return x["B"] * p["S_min"] * jnp.exp(-jnp.log1p(-p["B_min"] / x["B"]) / p["s"])  # accurate near B_min = s = 0


def constants(p: dict) -> dict:
    """Constants of the three pieces (Zhou et al.) from the six free parameters, continuous in value and slope.

    Inverse stage E = B_inverse / (S - S_min) + B_0 up to S_1, transition E = C (S - S_opt)^2 + E_min up to S_2, linear
    stage E = A_1 S + A_0 beyond; B_min = A_1, B_opt = E_min / S_opt. The free parameters are S_opt, E_min, wall =
    S_min / S_1, joint = S_1 / S_opt, curvature = C S_opt^2 / E_min and tail = 1 - A_0 / E_min. With them the order
    S_min < S_1 < S_opt < S_2 and A_0 > 0, without which B_min would not be a threshold, hold by construction.
    """
    S_opt, E_min = p["S_opt"], p["E_min"]
    curvature = p["curvature"] + 1e-300  # a fitted one may underflow to 0; then S_2 is unbounded and B_min 0
    S_1 = p["joint"] * S_opt
    S_min = p["wall"] * S_1
    S_2 = S_opt * (1 + p["tail"] / curvature) ** 0.5
    C = curvature * E_min / S_opt**2
    fall, rise = S_opt - S_1, S_1 - S_min
    A_1 = 2 * C * (S_2 - S_opt)
    return {
        "S_min": S_min, "S_1": S_1, "S_opt": S_opt, "S_2": S_2, "E_min": E_min, "C": C,
        "B_inverse": 2 * C * fall * rise**2, "B_0": E_min + C * fall**2 - 2 * C * fall * rise,
        "A_1": A_1, "A_0": E_min * (1 - p["tail"]), "B_min": A_1, "B_opt": E_min / S_opt,
    }  # fmt: skip


def free_parameters(S_min: float, S_1: float, S_opt: float, S_2: float, E_min: float, C: float) -> dict:
    """The six free parameters for given S_min, S_1, S_opt, S_2, E_min and C: the inverse of `constants`."""
    curvature = C * S_opt**2 / E_min
    return {
        "S_opt": S_opt, "E_min": E_min, "curvature": curvature, "joint": S_1 / S_opt, "wall": S_min / S_1,
        "tail": curvature * ((S_2 / S_opt) ** 2 - 1),
    }  # fmt: skip


def tokens_of_steps(p, x):
    """E(S) of the three pieces."""
    c, steps = constants(p), x["S"]
    inverse = c["B_inverse"] / (jnp.minimum(steps, c["S_1"]) - c["S_min"]) + c["B_0"]
    middle = c["C"] * (steps - c["S_opt"]) ** 2 + c["E_min"]
    linear = c["A_1"] * steps + c["A_0"]
    return jnp.where(steps < c["S_1"], inverse, jnp.where(steps < c["S_2"], middle, linear))


def tokens_of_batch(p, x):
    """E(B): where the ray E = B S intersects the three pieces; infinite for B <= B_min."""
    c, batch = constants(p), x["B"]
    half = (c["S_min"] + c["B_0"] / batch) / 2
    inverse = half + jnp.sqrt(jnp.maximum(half**2 + (c["B_inverse"] - c["B_0"] * c["S_min"]) / batch, 1e-30))
    top = c["C"] * c["S_opt"] ** 2 + c["E_min"]
    slope = 2 * c["C"] * c["S_opt"] + batch
    middle = 2 * top / (slope + jnp.sqrt(jnp.maximum(slope**2 - 4 * c["C"] * top, 1e-30)))
    above = batch > c["A_1"]
    linear = jnp.where(above, c["A_0"] / jnp.where(above, batch - c["A_1"], 1), jnp.inf)
    first = (c["C"] * (c["S_1"] - c["S_opt"]) ** 2 + c["E_min"]) / c["S_1"]
    last = (c["A_1"] * c["S_2"] + c["A_0"]) / c["S_2"]
    return batch * jnp.where(batch > first, inverse, jnp.where(batch > last, middle, linear))


def _least_tokens(_, E):
    return E.min() * np.array([0.85, 1.0])


def _best_steps(x, E):
    S = x["S"] if "S" in x else E / x["B"]
    return S[E.argmin()] * np.array([0.6, 0.8, 1.0, 1.25, 1.6])


HYPERBOLA = Law(
    "McCandlish hyperbola",
    (Parameter("E_min", _least_tokens), Parameter("B_crit", lambda x, _: np.quantile(x["B"], [0.1, 0.5, 0.9]))),
    ("B",),
    hyperbola,
)
NOISE_FLOOR = Law(
    "noise floor",
    (
        Parameter("S_min", lambda x, E: (E / x["B"]).min() * np.array([0.3, 0.6, 0.9])),
        Parameter("B_min", lambda x, _: x["B"].min() * np.array([0.3, 0.6, 0.9])),
        Parameter("s", (0.5, 1.0, 2.0)),
    ),
    ("B",),
    noise_floor,
)
_SIX = (
    Parameter("S_opt", _best_steps),
    Parameter("E_min", _least_tokens),
    Parameter("curvature", (0.02, 0.1, 0.5, 2.0)),
    Parameter("joint", (0.3, 0.5, 0.7, 0.9), "unit"),
    Parameter("wall", (0.1, 0.3, 0.6, 0.9), "unit"),
    Parameter("tail", (0.1, 0.4, 0.7, 0.95), "unit"),
)
THREE_PIECE = Law("three-piece E(B)", _SIX, ("B",), tokens_of_batch)
THREE_PIECE_STEPS = Law("three-piece E(S)", _SIX, ("S",), tokens_of_steps)


def smoothed(tokens, loss, window: float) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mean loss) [m]: the loss averaged over windows of `window` tokens around every record whose window lies
    within the curve."""
    tokens, loss = np.asarray(tokens, float), np.asarray(loss, float)
    inside = (tokens - window / 2 >= tokens[0]) & (tokens + window / 2 <= tokens[-1])
    low = np.searchsorted(tokens, tokens[inside] - window / 2, "left")
    high = np.searchsorted(tokens, tokens[inside] + window / 2, "right")
    sums = np.append(0, np.cumsum(loss))
    with np.errstate(invalid="ignore"):  # losses that are not finite give nan from there on
        return tokens[inside], (sums[high] - sums[low]) / (high - low)


def first_crossing(tokens, loss, target: float, window: float = 0.0) -> float:
    """Number of tokens at which the smoothed loss first reaches `target`, interpolated in log tokens.

    tokens [n] rising, loss [n]. inf if the loss never reaches it (or only after it was not finite), nan if the first
    value is already below. The window is in tokens, not steps, so that all batch sizes are smoothed alike.
    """
    tokens, loss = smoothed(tokens, loss, window)
    (below,) = np.nonzero(loss <= target)
    if not len(below):
        return np.inf
    i = below[0]
    if i == 0:
        return np.nan
    share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
    return float(tokens[i - 1] * (tokens[i] / tokens[i - 1]) ** share)


def crossings(curves: Iterable[tuple], target: float, window: float = 0.0) -> dict[str, np.ndarray]:
    """Columns B, E and S = E / B of curves (batch, tokens [n], loss [n]) at `target`, and `last`, where each ends.

    A curve that never reaches the target is included with E = inf: it shows that its batch is below B_min. Raises
    InputError for tokens that do not rise or start at 0, for curves shorter than the window, and for batches, windows
    or targets outside their range.
    """
    if not (np.isfinite(target) and 0 <= window < np.inf):
        raise InputError(f"target={target:g}, window={window:g}: must be finite, the window not negative")
    rows = []
    for batch, tokens, loss in curves:
        if not 0 < batch < np.inf:
            raise InputError(f"curve {len(rows)}: batch {batch} must be above 0 and finite")
        if np.shape(tokens) != np.shape(loss):
            raise InputError(f"curve of batch {batch:g}: {np.size(tokens)} tokens and {np.size(loss)} losses")
        if not (len(tokens) and tokens[0] > 0 and np.all(np.diff(tokens) > 0)):
            raise InputError(f"curve of batch {batch:g}: its tokens must rise, from above 0")
        if tokens[-1] - tokens[0] < window:
            raise InputError(f"window={window:g}: the curve of batch {batch:g} has {tokens[-1] - tokens[0]:g} tokens")
        E = first_crossing(tokens, loss, target, window)
        rows.append((batch, E, E / batch, tokens[-1]))
    if not rows:
        raise InputError("no curves: must be one or more of (batch, tokens, loss)")
    return dict(zip(("B", "E", "S", "last"), np.array(rows, float).T, strict=True))


def floor_constants(p: dict) -> dict:
    """B_min, B_opt = B_min (1 + 1/s) and E_min = E(B_opt) of the noise floor's parameters."""
    best = p["B_min"] * (1 + 1 / p["s"])
    return {"B_min": p["B_min"], "B_opt": best, "E_min": best * p["S_min"] * np.exp(np.log1p(p["s"]) / p["s"])}


CONSTANTS = {THREE_PIECE.name: constants, NOISE_FLOOR.name: floor_constants}


@dataclass(frozen=True, eq=False)
class Optimum:
    """B_min, B_opt and E_min at one target loss.

    values {name: float}; intervals {name: (low, high)}, 95 %, by a bootstrap over batches; lost: bootstrap draws that
    determine no constants and are left out; fit: the fitted law; unreached: batches whose curves miss the target.
    """

    values: dict
    intervals: dict
    lost: int
    fit: Fit
    unreached: tuple[float, ...]


def optimum(points: dict, law: Law = THREE_PIECE, draws: int = 1000, seed: int = 0) -> Optimum:
    """Fits THREE_PIECE or NOISE_FLOOR to the finite ones of the `crossings`. Raises InputError if there are too few."""
    if law.name not in CONSTANTS:
        raise InputError(f"{law.name} has no best batch: must be {' or '.join(CONSTANTS)}")
    reached = np.isfinite(points["E"])
    if not reached.any():
        raise InputError(f"none of {len(reached)} curves crosses the target")
    fitted = fit(law, {"B": points["B"][reached]}, points["E"][reached])
    refits = bootstrap(fitted, draws, seed=seed)
    constants_of, names = CONSTANTS[law.name], ("B_min", "B_opt", "E_min")
    return Optimum(
        {name: float(constants_of(fitted.params)[name]) for name in names},
        {name: refits.interval(lambda p, name=name: constants_of(p)[name]) for name in names},
        int(np.isnan(refits.derived(lambda p: [constants_of(p)[name] for name in names])).any(1).sum()),
        fitted,
        tuple(points["B"][np.isinf(points["E"])]),
    )


def best_batch(B_opt, D, N=None) -> PowerLaw:
    """Fits f(N, D) = a N^b D^c to fitted B_opt [n], with D the tokens E_min that each needs; f(D) = a D^c without N."""
    return power_law({"D": D} if N is None else {"N": N, "D": D}, B_opt)


def at_size(law: PowerLaw, N: float) -> Callable[[float], float]:
    """f(D) for one model size N, in the form that `optim.batch_growth.from_curve` takes."""
    return lambda tokens: float(law.predict({"N": N, "D": tokens}))


def kaplan(loss):
    """B_crit = 2e8 L^(-1 / 0.21) tokens (Kaplan et al. 2001.08361, equation 1.4); a loss 13 % lower doubles it."""
    return 2e8 * loss ** (-1 / 0.21)


def minicpm(loss):
    """B = 1.21e9 / L^6.24 tokens, L the loss on C4 (Hu et al. 2404.06395)."""
    return 1.21e9 * loss**-6.24


def deepseek(compute):
    """B = 0.292 C^0.327 tokens, C the FLOPs without embeddings (DeepSeek-AI 2401.02954)."""
    return 0.292 * compute**0.327


def step_law(tokens):
    """B = 0.58 D^0.571 tokens (Li et al. 2503.04715)."""
    return 0.58 * tokens**0.571


def zhang(tokens):
    """Critical batch 18.2 D^0.468 tokens (Zhang et al. 2410.21676): the batch that takes 20 % more steps than if steps
    fell in proportion to the batch from 256 sequences on.

    Published as 93.1968 N^0.468278 sequences of 512 tokens, N in millions, at D = 20 N.
    """
    return 512 * 93.1968 * (tokens / 20e6) ** 0.468278


def five_percent(tokens):
    """B = 0.667 D^0.566 tokens (2607.01487). Batches within a range of about a factor of four waste at most 5 %."""
    return 0.667 * tokens**0.566


def olmo(parameters):
    """B = 2048 x 160 (N / 108e6)^(2/3) tokens (OLMo ladder)."""
    return 2048 * 160 * (parameters / 108e6) ** (2 / 3)


def weight_decay_timescale(tokens_per_parameter):
    """Best tau = B / (lr weight_decay D), the time scale of weight decay as a fraction of the run: 1.084 (D / N)^-0.527
    (Bergsma et al. 2505.13738)."""
    return 1.084 * tokens_per_parameter**-0.527


def averaging_tokens(batch, lr, weight_decay):
    """tau = B / (lr weight_decay): the number of tokens over which AdamW averages its updates, if weights shrink by
    lr weight_decay in a step (Bergsma et al. 2505.13738)."""
    return batch / (lr * weight_decay)
