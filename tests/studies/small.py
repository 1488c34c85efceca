"""A study of six short runs of one shape, one of which diverges and one of which cannot start."""

from jaxlab.config import default
from jaxlab.studies.claim import Claim, compare, judged
from jaxlab.studies.report import panels
from jaxlab.studies.study import Analysis
from tests import tiny

SCALES = {"smoke": {"a": 1e-3, "b": 1e-2, "c": 1e30}}


def runs(scale):
    for part, lr in SCALES[scale].items():
        for seed in (0, 1):
            c = default()
            c.update_from_flattened_dict(tiny.SMALL | {"tokens": 8_192, "evaluate.every_tokens": 0})
            c.update(seed=seed)
            c.schedule.peak_lr = lr
            c.checkpoint.every_tokens = 2_048
            c.log.tensorboard = False
            if part == "a" and seed == 1:
                c.mesh.data = 7
            yield c, {"part": part, "seed": seed}


def judge(results):
    losses = [row["loss"] for row in results]
    return compare(sum(losses) / len(losses), min(losses), max(losses), (0.0, 100.0), "loss")


def analyse(results):
    fig, ax = panels(1, 1, width=3, height=2)
    ax.plot([row["loss"] or 0 for row in results])
    claims = [Claim("T1", "There is a loss.", "none", ("a", "b"), judge)]
    return Analysis({"Losses": [{"loss": row["loss"]} for row in results]}, {"loss": (fig, "Losses.")},
                    [judged(claim, results) for claim in claims])  # fmt: skip
