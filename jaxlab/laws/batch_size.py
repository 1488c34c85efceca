"""Tokens E and steps S to a target loss as the batch size B grows, E = B S (Zhou et al. 2601.05034), and rules for B.

McCandlish et al. 1812.06162 have E rise with B for every target; under a constant learning rate there is a best batch
B_opt and a smallest B_min, below which gradient noise keeps the loss above the target. Laws take B, which is chosen, as
their input: E and S, its measured partners, share their error. Tokens and tokens per step throughout.

From loss curves: `crossings` at a target loss, `optimum` of these, and over several targets and sizes `best_batch`.
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
    """E = E_min (1 + B / B_crit), that is (S / S_min - 1) (E / E_min - 1) = 1 with B_crit = E_min / S_min."""
    return p["E_min"] * (1 + x["B"] / p["B_crit"])


def noise_floor(p, x):
    """E = B S_min (1 - B_min / B)^(-1/s): a loss t^-s above a floor ~ 1 / B; B_opt = B_min (1 + 1/s)."""
    return x["B"] * p["S_min"] * jnp.exp(-jnp.log1p(-p["B_min"] / x["B"]) / p["s"])  # exact where B_min and s vanish


def constants(p: dict) -> dict:
    """Constants of the three pieces (Zhou et al.) from the six free parameters, continuous in value and slope.

    Inverse stage E = B_inverse / (S - S_min) + B_0 to S_1, transition E = C (S - S_opt)^2 + E_min to S_2, linear stage
    E = A_1 S + A_0 beyond; B_min = A_1, B_opt = E_min / S_opt. Order S_min < S_1 < S_opt < S_2 and A_0 > 0, without
    which B_min would be no threshold, hold by construction: wall = S_min / S_1, joint = S_1 / S_opt, curvature =
    C S_opt^2 / E_min, tail = 1 - A_0 / E_min.
    """
    S_opt, E_min = p["S_opt"], p["E_min"]
    curvature = p["curvature"] + 1e-300  # of a fit it may underflow to 0: S_2 is without bound, B_min 0
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
    """The six free parameters of given joints, minimum and curvature: the inverse of `constants`."""
    curvature = C * S_opt**2 / E_min
    return {
        "S_opt": S_opt, "E_min": E_min, "curvature": curvature, "joint": S_1 / S_opt, "wall": S_min / S_1,
        "tail": curvature * ((S_2 / S_opt) ** 2 - 1),
    }  # fmt: skip


def tokens_of_steps(p, x):
    """E(S), the three pieces."""
    c, steps = constants(p), x["S"]
    inverse = c["B_inverse"] / (jnp.minimum(steps, c["S_1"]) - c["S_min"]) + c["B_0"]
    middle = c["C"] * (steps - c["S_opt"]) ** 2 + c["E_min"]
    linear = c["A_1"] * steps + c["A_0"]
    return jnp.where(steps < c["S_1"], inverse, jnp.where(steps < c["S_2"], middle, linear))


def tokens_of_batch(p, x):
    """E where the ray E = B S meets the three pieces; infinite for B <= B_min."""
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
    """(tokens, mean loss) [m] over windows of `window` tokens, at the records whose window lies within the curve."""
    tokens, loss = np.asarray(tokens, float), np.asarray(loss, float)
    inside = (tokens - window / 2 >= tokens[0]) & (tokens + window / 2 <= tokens[-1])
    low = np.searchsorted(tokens, tokens[inside] - window / 2, "left")
    high = np.searchsorted(tokens, tokens[inside] + window / 2, "right")
    sums = np.append(0, np.cumsum(loss))
    with np.errstate(invalid="ignore"):  # nan from the first loss that is not finite on
        return tokens[inside], (sums[high] - sums[low]) / (high - low)


def first_crossing(tokens, loss, target: float, window: float = 0.0) -> float:
    """Tokens at which the smoothed loss first is `target`, by interpolation in log tokens.

    tokens [n] rising, loss [n]. inf where it never is (or only after the loss was not finite), nan where it was there
    from the first. Smoothed in tokens, not in steps, so that all batch sizes are treated alike.
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

    A curve that never gets there stays, with E = inf: that is what is seen of B_min. Raises InputError for tokens that
    do not rise from above 0, curves shorter than the window, batches, windows and targets that are no such numbers.
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
    """B_min, B_opt and E_min of one target loss: `values`, 95 % `intervals` {name: (low, high)} by bootstrap over
    batches, of which `lost` draws have no constants and do not count, the `fit`, and the batches that did not get
    there, `unreached`."""

    values: dict
    intervals: dict
    lost: int
    fit: Fit
    unreached: tuple[float, ...]


def optimum(points: dict, law: Law = THREE_PIECE, draws: int = 1000, seed: int = 0) -> Optimum:
    """Fits THREE_PIECE or NOISE_FLOOR to the `crossings` that are finite. Raises InputError where they are too few."""
    if law.name not in CONSTANTS:
        raise InputError(f"{law.name} has no best batch: must be {' or '.join(CONSTANTS)}")
    reached = np.isfinite(points["E"])
    if not reached.any():
        raise InputError(f"none of {len(reached)} curves crosses the target")
    found = fit(law, {"B": points["B"][reached]}, points["E"][reached])
    again = bootstrap(found, draws, seed=seed)
    of, names = CONSTANTS[law.name], ("B_min", "B_opt", "E_min")
    return Optimum(
        {name: float(of(found.params)[name]) for name in names},
        {name: again.interval(lambda p, name=name: of(p)[name]) for name in names},
        int(np.isnan(again.derived(lambda p: [of(p)[name] for name in names])).any(1).sum()),
        found,
        tuple(points["B"][np.isinf(points["E"])]),
    )


def best_batch(B_opt, D, N=None) -> PowerLaw:
    """f(N, D) = a N^b D^c through fitted B_opt [n], D the tokens E_min at which each is best; f(D) without N."""
    return power_law({"D": D} if N is None else {"N": N, "D": D}, B_opt)


def at_size(law: PowerLaw, N: float) -> Callable[[float], float]:
    """f(D) of one model size, as `optim.batch_growth.from_curve` takes it."""
    return lambda tokens: float(law.predict({"N": N, "D": tokens}))


def kaplan(loss):
    """B_crit = 2e8 L^(-1 / 0.21) tokens (Kaplan et al. 2001.08361, equation 1.4); doubles per 13 % off the loss."""
    return 2e8 * loss ** (-1 / 0.21)


def minicpm(loss):
    """B = 1.21e9 / L^6.24 tokens (Hu et al. 2404.06395, C4 loss)."""
    return 1.21e9 * loss**-6.24


def deepseek(compute):
    """B = 0.292 C^0.327 tokens of non-embedding FLOP (DeepSeek-AI 2401.02954)."""
    return 0.292 * compute**0.327


def step_law(tokens):
    """B = 0.58 D^0.571 tokens (Li et al. 2503.04715)."""
    return 0.58 * tokens**0.571


def zhang(tokens):
    """Critical batch, 20 % more steps than in proportion to a batch of 256 (Zhang et al. 2410.21676): 18.2 D^0.468.

    93.1968 N^0.468278 sequences of 512 tokens, N in millions, at D = 20 N.
    """
    return 512 * 93.1968 * (tokens / 20e6) ** 0.468278


def five_percent(tokens):
    """B = 0.667 D^0.566 tokens; a waste of 5 % allows a band about four times wide (2607.01487)."""
    return 0.667 * tokens**0.566


def olmo(parameters):
    """B = 2048 x 160 (N / 108e6)^(2/3) tokens (OLMo ladder)."""
    return 2048 * 160 * (parameters / 108e6) ** (2 / 3)


def weight_decay_timescale(tokens_per_parameter):
    """Best tau = B / (lr decay D) as a share of the run: 1.084 (D / N)^-0.527 (Bergsma et al. 2505.13738)."""
    return 1.084 * tokens_per_parameter**-0.527


def averaging_tokens(batch, lr, weight_decay):
    """tau = B / (lr weight_decay): the tokens over which AdamW, weights shrinking by that product in a step, averages
    its updates (Bergsma et al. 2505.13738)."""
    return batch / (lr * weight_decay)
