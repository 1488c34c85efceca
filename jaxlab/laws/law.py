"""A scaling law: named parameters with starting values, named inputs, and a pure function."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.laws.columns import check_given

# {transform: (natural -> theta; theta -> natural, given the module, numpy or jax.numpy; d natural / d theta; standard
# error of theta above which the parameter counts as undetermined)}
TRANSFORMS = {
    "positive": (np.log, lambda t, xp: xp.exp(t), np.exp, 1.0),
    "real": (lambda x: x, lambda t, xp: t, np.ones_like, np.inf),
    "unit": (
        lambda x: np.log(x / (1 - x)),
        lambda t, xp: 1 / (1 + xp.exp(-t)),
        lambda t: 0.25 / np.cosh(t / 2) ** 2,
        2.0,
    ),
}
LIMITS = {"positive": (0.0, np.inf), "real": (-np.inf, np.inf), "unit": (0.0, 1.0)}  # natural values lie between these


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law.

    grid: natural values to start from, as a tuple or as a function (inputs, y) -> values of the data.
    transform: `positive` (fitted as its logarithm), `unit` (in (0, 1), fitted as its logit) or `real`.
    """

    name: str
    grid: tuple[float, ...] | Callable
    transform: str = "positive"

    def values(self, inputs: dict, y) -> np.ndarray:
        """The starting values for given data."""
        return np.asarray(self.grid(inputs, y) if callable(self.grid) else self.grid, np.float64)


@dataclass(frozen=True)
class Law:
    """predict(params {name: scalar}, inputs {name: [n]}) -> [n], written with jax.numpy as a module-level function."""

    name: str
    parameters: tuple[Parameter, ...]
    inputs: tuple[str, ...]
    predict: Callable

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of theta."""
        return tuple(p.name for p in self.parameters)

    def natural(self, theta, xp=np) -> dict:
        """{name: natural value} of unconstrained coordinates theta [p, ...]; xp: numpy, or jax.numpy under a trace."""
        with np.errstate(over="ignore"):  # beyond float64 it is 0 or infinite
            return {p.name: TRANSFORMS[p.transform][1](t, xp) for p, t in zip(self.parameters, theta, strict=True)}

    def theta(self, params: dict) -> np.ndarray:
        """Unconstrained coordinates [..., p] of natural values {name: [...]}."""
        return np.stack([TRANSFORMS[p.transform][0](np.asarray(params[p.name], float)) for p in self.parameters], -1)

    def __call__(self, params: dict, inputs: dict) -> np.ndarray:
        """Prediction in float64. Raises InputError if an input is missing."""
        check_given(self.inputs, inputs)
        with jax.enable_x64(True):
            params, inputs = ({k: jnp.asarray(v, jnp.float64) for k, v in d.items()} for d in (params, inputs))
            return np.asarray(self.predict(params, inputs))
