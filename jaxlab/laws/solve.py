"""The optimiser behind `fit`: damped, reweighted least squares, many starts or data sets at once, in float64.

A step is that of Levenberg-Marquardt with row weights min(1, delta / |residual|), so the quadratic that it minimises
bounds the Huber loss from above and touches it. A step that does not lower the objective, or overflows, is rejected and
the damping raised. All descents of a law, from starts to bootstrap draws, run in one compiled program, CHUNK at a time.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 64


class Problem(NamedTuple):
    """The data and settings of a fit, all float64.

    inputs {name: [n]}; y [n]; weights [n]: how often each row counts; delta: of the Huber loss, inf for least squares;
    free [p]: 1 for parameters that are fitted, 0 for those that stay at their start; low, high [p]: the range of theta;
    scale [n]: residuals are multiplied by it wherever they are used.
    """

    inputs: dict
    y: np.ndarray
    weights: np.ndarray
    delta: float
    free: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray


class End(NamedTuple):
    """Where descents ended: theta [K, p], value [K] of the objective (inf if it was never finite), residuals [K, n],
    jacobian [K, n, p]."""

    theta: np.ndarray
    value: np.ndarray
    residuals: np.ndarray
    jacobian: np.ndarray


def descend(law, space: str, problem: Problem, thetas, steps: int) -> End:
    """Takes `steps` damped steps from each of thetas [K, p]; the first step only evaluates.

    problem.y and problem.weights may be [K, n]: a data set for every start. law: a `Law`; space: `log` or `linear`.
    Starts and rows are padded to multiples of CHUNK, so that most data sets of a law run in one compiled program. Rows
    of weight 0 have no effect, and their residuals are 0.
    """
    thetas, count, n = np.asarray(thetas), len(thetas), problem.y.shape[-1]
    start, row = (np.arange(-(-k // CHUNK) * CHUNK) for k in (count, n))
    start, row, real = np.minimum(start, count - 1).reshape(-1, CHUNK), np.minimum(row, n - 1), row < n
    y = np.broadcast_to(problem.y[..., row], (count, len(row)))
    weights = np.broadcast_to(problem.weights[..., row] * real, (count, len(row)))
    inputs = {name: column[row] for name, column in problem.inputs.items()}
    problem = problem._replace(inputs=inputs, scale=problem.scale[row])
    with jax.enable_x64(True):
        ends = [_descend(law, space, problem._replace(y=y[s], weights=weights[s]), thetas[s], steps) for s in start]
        theta, value, residuals, jacobian = (np.concatenate(part)[:count] for part in zip(*ends, strict=True))
    return End(theta, value, residuals[:, :n], jacobian[:, :n])


@partial(jax.jit, static_argnames=("law", "space"))
def _descend(law, space: str, problem: Problem, thetas, steps):
    return jax.vmap(lambda theta, y, w: _one(law, space, problem._replace(y=y, weights=w), theta, steps))(
        thetas, problem.y, problem.weights
    )


def _one(law, space: str, problem: Problem, theta, steps) -> End:
    free, delta = problem.free, problem.delta

    def residuals(theta):
        predicted = jnp.broadcast_to(law.predict(law.natural(theta, jnp), problem.inputs), problem.y.shape)
        r = jnp.log(predicted) - jnp.log(problem.y) if space == "log" else predicted - problem.y
        r = jnp.where(problem.weights > 0, problem.scale * r, 0)
        return r, r

    def step(_, state):
        now, damping = state
        weights = problem.weights / jnp.maximum(1, jnp.abs(now.residuals) / delta)
        slope = now.jacobian.T @ (weights * now.residuals)
        # a parameter at the end of its range whose gradient points outwards stays there in this step
        pinned = ((now.theta <= problem.low) & (slope > 0)) | ((now.theta >= problem.high) & (slope < 0))
        loose = free * ~pinned
        jacobian = now.jacobian * loose
        curvature = jacobian.T @ (weights[:, None] * jacobian)
        scale = jnp.diag(curvature)
        ridge = damping * scale + 1e-14 * jnp.max(scale) + 1e-300 + (1 - loose)
        moved = now.theta - jnp.linalg.solve(curvature + jnp.diag(ridge), loose * slope)
        moved = jnp.clip(moved, problem.low, problem.high)
        jacobian, r = jax.jacfwd(residuals, has_aux=True)(moved)
        inner = jnp.clip(r, -delta, delta)
        proposed = End(moved, jnp.sum(problem.weights * inner * (r - inner / 2)), r, jacobian)
        better = proposed.value < now.value
        damping = jnp.clip(jnp.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), proposed, now), damping

    nowhere = End(theta, jnp.inf, jnp.zeros_like(problem.y), jnp.zeros((*problem.y.shape, *theta.shape)))
    return jax.lax.fori_loop(0, steps, step, (nowhere, 1e-2))[0]
