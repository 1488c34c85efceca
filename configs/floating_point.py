"""A published model size of the floating-point scaling laws (arXiv 2501.02423) on C4, with operands cast to a format.

python -m launch.prepare --config=configs/floating_point.py:85m
python -m launch.train --config=configs/floating_point.py:85m --workdir=runs/85m
python -m launch.train --config=configs/floating_point.py:85m,e4m3,block=128 --workdir=runs/85m-e4m3
python -m launch.train --config=configs/floating_point.py:41m,e1m1,targets=P5,D=20e9 --workdir=runs/41m-P5

The model size comes first, then a format of E exponent and M mantissa bits; without a format nothing is cast. Options:
    block    elements that share a scale: a number, channel (the default: the whole axis that a product contracts), or
             tensor
    targets  the operands that are cast, P2+P4+P6 by default (quant.recipes)
    D        training tokens, 10,485,760,000 by default, rounded down to whole batches of 2,097,152
    lr       peak learning rate, 3e-4 by default at every size
"""

from jaxlab.config import InputError
from jaxlab.quant.formats import parse
from jaxlab.quant.recipes import OPERANDS
from jaxlab.studies.floating_point.grid import PAPER, SCALES, STEP, STEPS, Setting, config

MODES = ("41m", "41m,e1m1,targets=P5,D=20e9", "85m,e4m3,block=128,targets=P2+P4+P6", "154m,e0m7",
         "679m,e1m1,block=tensor", "1.2b,e1m2,block=512,D=104857600000", "7b,e4m3,block=64",
         "70b,e4m3,block=64,lr=1e-4")  # fmt: skip
NAMES = ("block", "targets", "D", "lr")


def get_config(arguments):
    size, *words = arguments.split(",")
    if size not in PAPER:
        raise InputError(f"{size!r}: must be one of {', '.join(PAPER)}")
    format = words.pop(0) if words and "=" not in words[0] else ""
    given = dict(read(word) for word in words)
    if format:
        parse(format)
    elif unwanted := given.keys() & {"block", "targets"}:
        raise InputError(f"{arguments}: {', '.join(sorted(unwanted))} needs a format, as in {size},e4m3")
    lr, tokens = given.pop("lr", PAPER[size].peak_lr), given.pop("D", STEPS[0])
    c = config(SCALES["paper"], Setting("", size, tokens, format, **given))
    c.schedule.peak_lr = lr
    c.evaluate.every_tokens = c.checkpoint.every_tokens = c.tokens // 20
    c.log.tensorboard = True
    return c


def read(word):
    """(name, value) of NAME=VALUE."""
    name, _, text = word.partition("=")
    if name not in NAMES:
        raise InputError(f"{word!r}: must be one of {', '.join(NAMES)} with =VALUE")
    if name == "targets":
        if not set(text.split("+")) <= set(OPERANDS):
            raise InputError(f"{word}: must be operands of {', '.join(OPERANDS)}, joined by +")
        return name, text
    if name == "block":
        if text not in ("channel", "tensor") and not (text.isdecimal() and int(text)):
            raise InputError(f"{word}: must be a whole number above 0, channel or tensor")
        return name, int(text) if text.isdecimal() else text
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{word}: must be a number") from error
    least = STEP if name == "D" else 0
    if not least <= value < float("inf") or not value:
        raise InputError(f"{word}: must be {'a batch, 2,097,152, or more' if least else 'above 0'}")
    return name, int(value) // STEP * STEP if name == "D" else value
