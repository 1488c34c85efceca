"""A study of runs that nobody trains here: tests write what they would have left."""

import re

import matplotlib.figure

from jaxlab.config import default
from jaxlab.studies.claim import Claim, compare, judged
from jaxlab.studies.study import Analysis
from tests import tiny

SCALES = {"smoke": 12, "gpu": 2}


def runs(scale):
    for number in range(SCALES[scale]):
        c = default()
        c.update_from_flattened_dict(tiny.SMALL | {"tokens": 1_024 * (number + 1)})
        c.schedule.warmup_tokens = 0
        yield c, {"part": "[bold]<b>|a", "number": number}


def measured(folder):
    (row,) = [row for row in tiny.rows(folder) if row["kind"] == "note"]
    return {"note": re.sub("x", "y", row["text"])}


def judge(results):
    losses = [row["loss"] for row in results]
    return compare(sum(losses) / len(losses), min(losses), max(losses), (0.0, 100.0), "loss")


def analyse(results):
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.add_subplot().plot([row["loss"] or 0 for row in results])
    claim = Claim("T1", "A loss <script>.", "[x](y)", ("[bold]<b>|a",), judge)
    return Analysis({}, {"loss": (figure, "Losses.")}, [judged(claim, results)])
