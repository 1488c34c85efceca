"""A run of the batch-size paper (arXiv 2601.05034) on C4: at constant batch size, or with a growing batch.

python -m launch.prepare --config=configs/batch_size.py:122m
python -m launch.train --config=configs/batch_size.py:122m,B=256Ki --workdir=runs/122m-256Ki
python -m launch.train --config=configs/batch_size.py:moe --workdir=runs/moe
python -m launch.train --config=configs/batch_size.py:moe,arm=constant,B=4Mi --workdir=runs/moe-4Mi
python -m launch.train --config=configs/batch_size.py:dense,schedule=cosine,D=500B --workdir=runs/dense-cosine

122m, 210m, 350m, 600m and 1b are the InternLM2 models to which the paper fits its law: constant batch and learning
rate, 100B tokens. dense (Qwen3, 2B) and moe (Qwen3, 4B of which 0.5B are active) train with a growing batch: 2Mi, 4Mi,
5Mi and 6Mi tokens from 0, 125B, 250B and 375B tokens on, with WSD that decays from 500B to 600B. Options:
    B         batch in tokens; of a growing batch, its first size
    arm       constant, ramp, mean, late, back, more or longer: the batch as a function of tokens (studies.batch_size)
    rule      learning rate when the batch grows: kept (unchanged), sqrt, linear, merrill, or timescale (unchanged, and
              weight decay grows with the batch)
    schedule  constant, wsd or cosine
    wd        weight decay
    lr        peak learning rate, 6e-4 by default
    D         training tokens
"""

from jaxlab.config import InputError
from jaxlab.optim.batch_growth import count
from jaxlab.studies.batch_size.grid import ARMS, FITTED, SCALES, TRAINED, Setting, config

MODES = ("122m,B=256Ki", "1b,lr=0.0003,D=20B", "dense", "moe", "moe,rule=sqrt", "moe,arm=constant,B=4Mi,wd=0.01",
         "moe,arm=longer,B=4Mi,schedule=constant", "dense,schedule=cosine,D=500B")  # fmt: skip
KINDS = {"B": count, "arm": str, "rule": str, "schedule": str, "wd": float, "lr": float, "D": count}
COLUMNS = {"B": "batch", "wd": "weight_decay", "D": "tokens"}


def get_config(arguments):
    model, *words = arguments.split(",")
    if model not in (*FITTED, *TRAINED):
        raise InputError(f"{model!r}: must be one of {', '.join((*FITTED, *TRAINED))}")
    given = {COLUMNS.get(name, name): value for name, value in map(read, words)}
    fitted = {"arm": "constant", "schedule": "constant", "tokens": 100 * 10**9}
    trained = {"arm": "ramp", "schedule": "wsd", "tokens": 600 * 10**9}
    setting = {"batch": 2**21, "lr": 6e-4} | (fitted if model in FITTED else trained) | given
    c = config(SCALES["paper"], Setting("", model, **setting))
    c.evaluate.every_tokens = c.checkpoint.every_tokens = c.tokens // 100
    c.log.tensorboard = True
    return c


def read(word):
    """(name, value) of NAME=VALUE."""
    name, _, text = word.partition("=")
    if name not in KINDS:
        raise InputError(f"{word!r}: must be one of {', '.join(KINDS)} with =VALUE")
    if name == "arm" and text not in ARMS:
        raise InputError(f"{word}: must be one of {', '.join(ARMS)}")
    try:
        value = KINDS[name](text)
    except InputError as error:
        raise InputError(f"{word}: {error}") from error
    except ValueError as error:
        raise InputError(f"{word}: must be a number") from error
    return name, value
