"""A model size of the spectral scaling laws (arXiv 2510.00537) on C4, with spectra measured during training.

python -m launch.prepare --config=configs/spectral.py:130m
python -m launch.train --config=configs/spectral.py:130m --workdir=runs/130m
python -m launch.train --config=configs/spectral.py:250m,norm=post,ffn=weight,width=4 --workdir=runs/250m-post-weight
python -m launch.train --config=configs/spectral.py:ngpt,width=8 --workdir=runs/ngpt-8

70m, 130m and 250m are LLaMA models with the training recipe of Mix-LN (2412.13795); gpt2 and ngpt have 12 layers of
d_model 768. Options:
    width  feed-forward width as a multiple of d_model, the recipe's by default
    norm   norm placement: pre, post or mix
    ffn    normalisation of the feed-forward weights: none, weight or hyperspherical
    lr     peak learning rate, 1e-3 by default
"""

from jaxlab.config import InputError
from jaxlab.model.families import SIZES
from jaxlab.studies.spectral.grid import PAPER_TOKENS, SCALES, STEP, Setting, config

MODES = ("70m", "130m,norm=mix,width=8", "250m,norm=post,ffn=weight,width=4", "250m,norm=post,ffn=hyperspherical",
         "gpt2,width=2.67", "ngpt,width=2.67,lr=0.003")  # fmt: skip
NAMES = {"70m": "llama-70m", "130m": "llama-130m", "250m": "llama-250m", "gpt2": "gpt2-124m", "ngpt": "ngpt-124m"}
WIDTHS = {"70m": SIZES["llama"]["71m"]["d_ff"] / 512, "130m": SIZES["llama"]["130m"]["d_ff"] / 768,
          "250m": SIZES["llama"]["250m"]["d_ff"] / 768, "gpt2": 4.0, "ngpt": 4.0}  # fmt: skip
KINDS = {"norm": str, "ffn": str, "width": float, "lr": float}


def get_config(arguments):
    size, *words = arguments.split(",")
    if size not in NAMES:
        raise InputError(f"{size!r}: must be one of {', '.join(NAMES)}")
    given = {"norm": "pre", "ffn": "none", "width": WIDTHS[size], "lr": 1e-3} | dict(map(read, words))
    tokens = PAPER_TOKENS[NAMES[size]]
    setting = Setting("", NAMES[size], given["norm"], given["ffn"], given["width"], "", tokens, STEP, 0, 0)
    c = config(SCALES["paper"], setting)
    c.schedule.peak_lr = given["lr"]
    c.spectra.at = "log:50"
    c.evaluate.every_tokens = c.checkpoint.every_tokens = tokens // 20
    c.log.tensorboard = True
    return c


def read(word):
    """(name, value) of NAME=VALUE."""
    name, _, text = word.partition("=")
    if name not in KINDS:
        raise InputError(f"{word!r}: must be one of {', '.join(KINDS)} with =VALUE")
    try:
        value = KINDS[name](text)
    except ValueError as error:
        raise InputError(f"{word}: must be a number") from error
    if KINDS[name] is float and not 0 < value < float("inf"):
        raise InputError(f"{word}: must be above 0")
    return name, value
