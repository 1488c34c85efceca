"""A published model size of the DiLoCo scaling laws (arXiv 2503.09799) on C4, with hyper-parameters from the laws.

python -m launch.prepare --config=configs/diloco.py:35m
python -m launch.train --config=configs/diloco.py:35m --workdir=runs/35m
python -m launch.train --config=configs/diloco.py:35m,dp --workdir=runs/35m-data-parallel
python -m launch.train --config=configs/diloco.py:2.4b,M=2,H=100,P=10,tau=1,mix=0.5,codec=e3m0 --workdir=runs/2.4b

The model size comes first. Options, with lr, B and eta taken from the laws by default, and a warm-up of 1,000 steps:
    dp     data-parallel training instead of DiLoCo
    M      replicas, 2 by default
    H      inner steps between outer steps, 30 by default
    eta    outer learning rate
    lr     peak learning rate
    B      global batch in tokens
    ot     multiple of 20 training tokens per parameter, 1 by default
    P      fragments of Streaming DiLoCo; order: which layers form a fragment (config.diloco.fragment_order)
    tau    inner steps between sending an outer gradient and applying it
    mix    alpha, the weight of a replica's local parameters when global parameters are merged into it
    codec  number format in which outer gradients are sent: float32, bfloat16, int8 or e3m0
"""

from jaxlab.config import InputError
from jaxlab.laws.diloco import outer_lr
from jaxlab.studies.diloco import SCALES, Setting, config, of_the_paper

MODES = ("35m", "35m,dp", "335m,M=1,lr=0.001", "1.3b,M=4", "550m,dp,B=524288,ot=4",
         "2.4b,M=8,H=100,eta=1,P=10,order=sequential,tau=1,mix=0.5,codec=e3m0")  # fmt: skip
PAPER = SCALES["paper"]
POSITIVE = {"M": int, "B": int, "lr": float, "ot": int}
OUTER = {"H": ("sync_every", int), "eta": ("outer_lr", float), "P": ("fragments", int),
         "order": ("fragment_order", str), "tau": ("overlap", int), "mix": ("mix", float),
         "codec": ("codec", str)}  # fmt: skip


def get_config(arguments):
    size, *words = arguments.split(",")
    if size not in PAPER.models:
        raise InputError(f"{size!r}: must be one of {', '.join(PAPER.models)}")
    given = dict(read(word) for word in words if word != "dp")
    replicas = 0 if "dp" in words else given.get("M", 2)
    if not replicas and (unwanted := given.keys() & {"M", *OUTER}):
        raise InputError(f"{arguments}: data-parallel takes no {', '.join(sorted(unwanted))}")
    model = of_the_paper(size, (replicas,))
    outer = (outer_lr(replicas), PAPER.sync_every) if replicas else ()
    batch = given.get("B", model.batch[replicas])
    setting = Setting("", size, replicas, model.log2_lr[replicas], batch, *outer)
    c = config(PAPER, setting._replace(over_training=given.get("ot", 1)))
    c.schedule.peak_lr = given.get("lr", c.schedule.peak_lr)
    c.diloco.update({key: given[name] for name, (key, _) in OUTER.items() if name in given})
    c.evaluate.every_tokens = c.checkpoint.every_tokens = c.tokens // 20
    c.log.tensorboard = True
    return c


def read(word):
    """(name, value) of NAME=VALUE."""
    name, _, text = word.partition("=")
    kinds = POSITIVE | {name: kind for name, (_, kind) in OUTER.items()}
    if name not in kinds:
        raise InputError(f"{word!r}: must be dp, or one of {', '.join(kinds)} with =VALUE")
    what = "a whole number" if kinds[name] is int else "a number"
    try:
        value = kinds[name](text)
    except ValueError as error:
        raise InputError(f"{word}: must be {what}") from error
    if name in POSITIVE and not value > 0:
        raise InputError(f"{word}: must be {what} above 0")
    return name, value
