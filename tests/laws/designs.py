"""What the laws are tried on: the papers' grids with true constants and a stated noise, and public data sets."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxlab.laws import batch_size, chinchilla, diloco
from jaxlab.laws import floating_point as fp

SCALING = Path(__file__).parents[2] / ".." / "shared" / "data" / "scaling"


def product(**columns) -> dict:
    """{name: column} of every combination."""
    grids = np.meshgrid(*columns.values(), indexing="ij")
    return {name: g.ravel().astype(float) for name, g in zip(columns, grids, strict=True)}


def capybara_grid() -> dict:
    """The 359 rows that the Capybara law was fitted to (Sun et al., appendix).

    4 sizes, 4 token counts, 17 formats scaled by channel, and E1M1 with blocks of 32 to 512 and one scale a tensor
    (2^35 elements stand for it).
    """
    formats = [(0, 7), *((1, m) for m in range(1, 7)), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 3), (4, 5)]
    formats += [(5, 1), (5, 2), (6, 1)]
    rows = []
    for size in (40894464, 84934656, 154140672, 679477248):
        for steps in (5000, 10000, 25000, 50000):
            hole = (5, 1) if (size, steps) == (679477248, 50000) else None
            rows += [(size, steps * 2**21, e, m, fp.CHANNEL) for e, m in formats if (e, m) != hole]
            blocks = [32, 64, 128, 256, 2.0**35] + [512] * (size in (40894464, 679477248))
            rows += [(size, steps * 2**21, 1, 1, b) for b in blocks]
    return dict(zip("NDEMB", np.array(rows, float).T, strict=True))


def rows(columns: dict, keep) -> dict:
    return {name: column[keep] for name, column in columns.items()}


def tokens_per_parameter() -> dict:
    """10 sizes of 70M to 10B by 5 to 160 tokens a parameter."""
    grid = product(N=np.geomspace(7e7, 1e10, 10), ratio=[5, 10, 20, 40, 80, 160])
    return {"N": grid["N"], "D": grid["N"] * grid["ratio"]}


def repeated() -> dict:
    """6 sizes, 4 amounts of unique tokens, 1 to 100 epochs."""
    grid = product(N=np.geomspace(2e7, 6e9, 6), U=[4e8, 1.5e9, 6e9, 2.5e10], epochs=[1, 2, 5, 14, 44, 100])
    return grid | {"D": grid["U"] * grid["epochs"]}


def noisy_cases() -> list:
    """(law, true parameters, inputs, standard deviation of log y): every law on a grid like its paper's."""
    grid = capybara_grid()
    by_channel, one_size = grid["B"] == fp.CHANNEL, (grid["N"] == grid["N"][0]) & (grid["D"] == 25000 * 2**21)
    one_mantissa, one_exponent = by_channel & (grid["M"] == 1), by_channel & (grid["E"] == 1)
    e1m1 = (grid["E"] == 1) & (grid["M"] == 1)
    truth = fp.CAPYBARA_CONSTANTS
    base = {name: truth[name] for name in fp.BASE.names}
    delta, nu = ({name: truth[name]} for name in ("delta", "nu"))
    replicas = product(N=[diloco.size(*s) for s in diloco.SHAPES], M=[1, 2, 4, 8])
    sizes = product(N=np.unique(grid["N"]), D=np.unique(grid["D"]))
    six = batch_size.free_parameters(S_min=1e3, S_1=6e3, S_opt=1.2e4, S_2=2.5e4, E_min=5e9, C=2.0)
    batches = {"B": np.geomspace(1.05, 60, 16) * 52_000}
    steps = {"S": batch_size.THREE_PIECE(six, batches) / batches["B"]}
    kaplan = {"n": 6e7, "alpha": 0.25, "d": 2e9, "beta": 0.3, "epsilon": 1.9}
    return [
        (chinchilla.PARAMETRIC, chinchilla.BESIROGLU, tokens_per_parameter(), 0.003),
        (chinchilla.REPEATED, chinchilla.MUENNIGHOFF, repeated(), 0.003),
        (diloco.FORMS[0], {"A": 19.239, "alpha": -0.0985, "beta": 0.0116}, replicas, 0.001),
        (diloco.FORMS[1], {"A": 37.7, "alpha": -0.158, "beta": 0.0189, "C": 1.079}, replicas, 0.001),
        (diloco.FORMS[2], {"A": 39.0, "alpha": -0.160, "beta": 3e-4, "C": 1.082}, replicas, 0.001),
        (diloco.FORMS[3], {"A": 33.4, "alpha": -0.148, "B": 0.0175, "beta": 0.756, "C": 0.916}, replicas, 0.001),
        (fp.BASE, base, sizes, 0.001),
        (fp.OPENAI, kaplan, tokens_per_parameter(), 0.001),
        (fp.KUMAR, base | {"gamma": 1.5}, rows(grid, by_channel), 0.002),
        (fp.EXPONENT, {"gamma": 1.0, "iota": 3.2} | delta, rows(grid, one_mantissa & one_size), 0.001),
        (fp.MANTISSA, {"gamma": 1.0, "iota": 3.2} | nu, rows(grid, one_exponent & one_size), 0.001),
        (fp.BLOCK, {"kappa": 0.04, "psi": 3.2}, rows(grid, e1m1 & one_size), 0.001),
        (fp.EXPONENT_JOINT, base | {"gamma": 400.0} | delta, rows(grid, one_mantissa), 0.002),
        (fp.MANTISSA_JOINT, base | {"gamma": 400.0} | nu, rows(grid, one_exponent), 0.002),
        (fp.BITS_JOINT, base | {"gamma": 861.5} | delta | nu, rows(grid, by_channel), 0.002),
        (fp.BLOCK_JOINT, base | {"kappa": 1e5}, rows(grid, e1m1), 0.002),
        (fp.CAPYBARA, truth, grid, 0.002),
        (batch_size.HYPERBOLA, {"E_min": 3e9, "B_crit": 5e5}, batches, 0.005),
        (batch_size.NOISE_FLOOR, {"S_min": 1e4, "B_min": 5e4, "s": 0.8}, batches, 0.005),
        (batch_size.THREE_PIECE, six, batches, 0.005),
        (batch_size.THREE_PIECE_STEPS, six, steps, 0.005),
    ]


def published(name: str) -> dict:
    """Columns of a public data set as arrays; the test is skipped where the file is missing."""
    path = SCALING / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout (shared/data/scaling)")
    with path.open() as file:
        lines = [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))
    return {key: np.array([line[key] for line in lines]) for key in lines[0]}


def chinchilla_points(dropped: int = 5) -> tuple[dict, np.ndarray]:
    """Hoffmann et al. figure 4 as reconstructed by Epoch AI: D = FLOP / (6 N), fewest tokens a parameter dropped."""
    table = published("chinchilla_fig4_epoch.csv")
    sizes, flops, loss = (table[key].astype(float) for key in ("Model Size", "Training FLOP", "loss"))
    keep = np.sort(np.argsort(flops / sizes**2)[dropped:])
    return {"N": sizes[keep], "D": flops[keep] / (6 * sizes[keep])}, loss[keep]
