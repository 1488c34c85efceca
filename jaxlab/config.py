"""The tree of defaults that every run starts from, and the checks that name a bad key before anything compiles.

A config file starts from `default()`, changes what its experiment is about, and returns the tree; the command line
changes single keys. Sizes counted in tokens say so in their name. Nothing below `launch/` reads a flag.
"""

import difflib
import os
import re
from functools import cache

from ml_collections import ConfigDict

CHOICES = {
    "model.norm": ("layer", "rms"),
    "model.positions": ("learned", "rotary"),
    "model.ffn": ("gelu", "relu", "relu2", "swiglu"),
    "model.norm_placement": ("pre", "post", "mix"),
    "model.ffn_weight_norm": ("none", "weight", "hyperspherical"),
    "model.parametrisation": ("standard", "ngpt"),
    "schedule.name": ("constant", "cosine", "wsd"),
    "schedule.decay_shape": ("linear", "1-sqrt", "cosine"),
    "batch.lr_rule": ("kept", "sqrt", "linear", "merrill"),
    "optim.decay": ("independent", "coupled", "timescale"),
    "optim.decay_mask": ("matrices", "all"),
    "diloco.average": ("mean", "radial_directional"),
    "spectra.taps": ("post", "pre+post"),
    "diloco.codec": ("float32", "bfloat16", "int8", "e3m0"),
    "diloco.fragment_order": ("strided", "sequential", "balanced"),
    "quant.fp8": ("auto", "native", "simulated"),
    "compute.dtype": ("auto", "float32", "bfloat16"),
    "compute.layers": ("auto", "scan", "unroll"),
    "compute.attention": ("auto", "plain", "chunked", "xla", "cudnn", "splash"),
    "compute.remat": ("none", "dots", "full"),
}
POSITIVE = (
    "tokens", "replicas", "batch.tokens", "batch.context", "model.num_layers", "model.d_model", "model.num_heads",
    "model.num_kv_heads", "model.head_dim", "model.d_ff", "model.context", "model.norm_eps", "model.rope_theta",
    "schedule.peak_lr", "optim.eps", "diloco.fragments", "mesh.replica", "mesh.tensor", "compute.steps_per_call",
    "compute.loss_chunk", "checkpoint.keep",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "model.vocab_size", "model.num_experts", "model.experts_per_token", "model.balance_loss", "model.z_loss",
    "model.init_std", "batch.micro_tokens", "schedule.warmup_tokens",
    "schedule.decay_tokens", "diloco.sync_every", "diloco.outer_lr", "diloco.overlap", "optim.weight_decay",
    "optim.clip", "evaluate.every_tokens", "evaluate.tokens",
    "evaluate.tasks_every_tokens", "evaluate.task_items", "spectra.tokens",
    "checkpoint.every_tokens",
)  # fmt: skip
# Upper bounds: sizes of arrays and indices into them are int32 on the device; layers are built one by one.
MOST = dict.fromkeys(
    ("replicas", "batch.tokens", "batch.context", "batch.micro_tokens", "model.vocab_size", "model.context",
     "model.d_model", "model.num_heads", "model.num_kv_heads", "model.head_dim", "model.d_ff", "model.num_experts",
     "compute.steps_per_call", "spectra.tokens"),
    2**31 - 1,
) | {"seed": 2**32 - 1, "model.num_layers": 10_000}  # fmt: skip
# {key: (other key, values)}: the key has no effect unless the other key has one of the values, or, where no values are
# given, a value other than its default.
NEEDS = {
    "model.mix_fraction": ("model.norm_placement", ("mix",)),
    "model.rope_theta": ("model.positions", ("rotary",)),
    "model.balance_loss": ("model.num_experts", ()),
    "batch.lr_rule": ("batch.growth", ()),
    "schedule.decay_tokens": ("schedule.name", ("wsd",)),
    "schedule.decay_shape": ("schedule.name", ("wsd", "constant")),
    **{f"diloco.{k}": ("diloco.sync_every", ()) for k in ("average", "codec", "fragments", "overlap", "mix", "eager")},
}
# Keys that may differ when a run is resumed: where and how it computes and what it measures, not the training itself.
RESUMABLE = (
    "mesh", "compute", "quant.fp8", "checkpoint", "log", "data.archives", "data.store", "data.tfds_dir",
    "evaluate.tasks", "evaluate.tasks_every_tokens", "evaluate.task_items", "evaluate.items_from", "spectra",
)  # fmt: skip


NGPT = {  # the values that nGPT (2410.01131) requires
    "positions": "rotary", "ffn": "swiglu", "qk_norm": False, "tied": False, "use_bias": False, "norm_placement": "pre",
    "ffn_weight_norm": "none",
}  # fmt: skip


EXPERTS = {  # the values that experts require
    "ffn": "swiglu", "use_bias": False, "ffn_weight_norm": "none", "layer_d_ff": "", "parametrisation": "standard",
}  # fmt: skip


class InputError(ValueError):
    """Bad input from a person. Launchers print its one line, which names the key, the value and what is allowed."""


class RunFailed(RuntimeError):
    """A run that had begun cannot go on. Launchers print its one line; what was saved before is kept."""


def default() -> ConfigDict:
    """Every key that a run has, with its default: a 1.3M-parameter Chinchilla-type decoder on news text."""
    c = ConfigDict()
    c.seed = 0
    c.tokens = 2_000_000  # D, training tokens: the run ends with the last whole step that does not exceed them
    c.replicas = 1  # M: copies of the model, each trained on an equal part of every batch (see diloco)

    c.data = ConfigDict()
    c.data.source = "news"  # news | papers | cloud-docs | docs | files:GLOB | tfds:NAME/CONFIG
    c.data.tokenizer = "bpe:4096"  # bytes | bpe:VOCABULARY | spm:PATH | hf:PATH
    c.data.store = "data/news-bpe4096"  # the prepared tokens: a folder or gs:// path
    c.data.archives = "data/archives"  # the folder for downloaded archives
    c.data.tfds_dir = ""  # data_dir of prepared TFDS data sets; empty: TFDS's default
    c.data.validation_fraction = 0.02  # fraction of the documents that is held out for validation

    c.model = ConfigDict()
    c.model.family = "chinchilla"  # only a label, used for export; the keys below define the model
    c.model.vocab_size = 0  # 0: the tokenizer's
    c.model.context = 256  # the longest sequence that the model accepts, in tokens
    c.model.num_layers = 4
    c.model.d_model = 128
    c.model.num_heads = 4
    c.model.num_kv_heads = 4  # fewer than num_heads: grouped-query attention
    c.model.head_dim = 32
    c.model.d_ff = 512
    c.model.layer_d_ff = ""  # one d_ff for each layer, as in 256,512,512,1024; empty: d_ff in all
    c.model.num_experts = 0  # above 0: mixture of experts; every feed-forward layer has this many, each d_ff wide
    c.model.experts_per_token = 0  # k: how many experts process a token
    c.model.balance_loss = 0.0  # weight of the load-balancing loss, averaged over layers (model.moe)
    c.model.norm = "layer"
    c.model.norm_eps = 1e-6
    c.model.norm_placement = "pre"  # pre; post: after the residual sum; mix: post in the first layers, pre after
    c.model.mix_fraction = 0.25  # mix (Mix-LN, 2412.13795): fraction of the layers with post-norm
    c.model.positions = "rotary"
    c.model.rope_theta = 10_000.0
    c.model.ffn = "gelu"
    c.model.ffn_weight_norm = "none"  # of each output's weight vector: hyperspherical: norm 1; weight: learned norm
    c.model.qk_norm = True  # normalise queries and keys in each head, before rotary positions are applied
    c.model.tied = True  # the output head shares the embedding matrix
    c.model.use_bias = False  # biases in linear layers and LayerNorms, as in GPT-2
    c.model.init_std = 0.0  # normal(0, std); 0: truncated normal with variance 1 / fan-in
    c.model.parametrisation = "standard"  # ngpt: weights and hidden states of unit norm (2410.01131)
    c.model.z_loss = 1e-4  # weight of (log Z)^2 in the training loss, Z the softmax normaliser

    c.quant = ConfigDict()  # casts operands of the matrix products in the blocks' linear layers (quant.recipes)
    c.quant.recipe = "none"  # none | capybara | all | mxfp8 | mxfp4 | nvfp4 | deepseek_v3
    c.quant.cast = ""  # another format for all operands that the recipe casts, as in e2m1,block=32
    c.quant.P1 = ""  # another format for one operand; none: not cast. Forward product: P1 activations x, P2 weights w;
    c.quant.P2 = ""  # input gradient: P3 output gradient dy, P4 w; weight gradient: P5 dy, P6 x
    c.quant.P3 = ""
    c.quant.P4 = ""
    c.quant.P5 = ""
    c.quant.P6 = ""
    c.quant.stages = ""  # format as a function of tokens consumed, as in 0:e2m1/4e8:e4m3/8e8:none
    c.quant.fp8 = "auto"  # FP8 products: native or refused; simulated in the activations' type; auto: what is faster

    c.batch = ConfigDict()
    c.batch.tokens = 8_192  # B: tokens in a global batch, summed over replicas
    c.batch.context = 256  # L: tokens in a training sequence
    c.batch.growth = ""  # B as a function of tokens: 0:2Mi 125B:4Mi | curve:A,b,c every 125B | seesaw:1.1
    c.batch.lr_rule = "kept"  # when B grows, lr: unchanged | x sqrt(B / first B) | x B / first B | x sqrt(2) a doubling
    c.batch.context_growth = ""  # L as a function of tokens, as in 0:128 1M:256; validation stays at batch.context
    c.batch.micro_tokens = 0  # gradient accumulation: tokens in one replica's micro-batch; 0: none

    c.optim = ConfigDict()  # the inner optimiser (optim.inner)
    c.optim.name = "adamw"  # adamw | muon | lion | sgd | adafactor | optax:NAME; Adam is adamw with weight_decay = 0
    c.optim.momentum = 0.95  # of sgd, and of muon's hidden matrices
    c.optim.b1 = 0.9  # of adamw, of lion, of muon's other parameters, and of what optax:NAME calls b1; so b2, eps
    c.optim.b2 = 0.99
    c.optim.eps = 1e-8  # in muon also of the norm that its matrices are divided by
    c.optim.weight_decay = 0.0
    c.optim.decay = "independent"  # shrinks weights by weight_decay a step; coupled: x lr; timescale: x lr B / first B
    c.optim.decay_mask = "matrices"  # matrices: kernels and embeddings; all: norms and biases too
    c.optim.clip = 1.0  # clip the gradient to this global norm; 0: no clipping

    c.diloco = ConfigDict()  # replicas take H local steps, then an outer step synchronises them (optim.diloco)
    c.diloco.sync_every = 0  # H: inner steps between outer steps; 0: no outer steps
    c.diloco.outer_lr = 0.6  # eta; published best: 0.4 for one replica, 0.6 for 2 and 4, 0.8 for 8 (2503.09799)
    c.diloco.outer_momentum = 0.9  # Nesterov momentum of the outer optimiser
    c.diloco.average = "mean"  # of the replicas' outer gradients; radial_directional: norms and directions separately
    c.diloco.codec = "float32"  # number format in which each replica sends its outer gradient
    c.diloco.fragments = 1  # P: parts of the model, synchronised at different steps (Streaming DiLoCo, 2501.18512)
    c.diloco.fragment_order = "strided"  # which layers form a fragment: every P-th | runs of layers | equal bytes
    c.diloco.overlap = 0  # tau: inner steps between sending an outer gradient and applying it
    c.diloco.mix = 0.0  # alpha: weight of a replica's local parameters when global parameters are merged into it
    c.diloco.eager = False  # apply a replica's own delta now, the others' one round later (Eager Updates, 2502.12996)

    c.schedule = ConfigDict()  # the learning rate as a function of tokens consumed
    c.schedule.name = "cosine"
    c.schedule.peak_lr = 2.0**-8
    c.schedule.warmup_tokens = 100_000
    c.schedule.final_fraction = 0.05  # learning rate at the end, as a fraction of the peak
    c.schedule.decay_tokens = 0  # wsd: tokens of the decay at the end
    c.schedule.decay_shape = "linear"  # wsd: the shape of the decay

    c.mesh = ConfigDict()  # number of devices along each axis
    c.mesh.replica = 1
    c.mesh.data = -1  # -1: all remaining devices
    c.mesh.tensor = 1
    c.mesh.fsdp = True  # shard parameters and optimiser state over `data` too

    c.compute = ConfigDict()  # how the training step is computed; results agree up to rounding
    c.compute.dtype = "auto"  # type of activations; auto: bfloat16 on accelerators, float32 on CPU
    c.compute.layers = "auto"  # scan: compile time independent of depth; auto: scan on TPU and on GPU above 24 layers
    c.compute.attention = "auto"  # auto: chunked on CPU, cudnn on GPU, splash on TPU
    c.compute.remat = "none"  # recomputed in the backward pass: none | dots: all but linear layers and attention | full
    c.compute.loss_chunk = 256  # positions whose logits are in memory at one time
    c.compute.steps_per_call = 1  # optimiser steps in one compiled call

    c.evaluate = ConfigDict()
    c.evaluate.every_tokens = 500_000  # 0: only at the end
    c.evaluate.tokens = 0  # validation tokens to use; 0: all
    c.evaluate.tasks = ""  # as in hellaswag,piqa,arc_easy,arc_challenge,mmlu:5,cmmlu:5 (evaluate.tasks)
    c.evaluate.tasks_every_tokens = 0  # 0: only at the end
    c.evaluate.task_items = 0  # score only this many items of each task; 0: all
    c.evaluate.items_from = "archive"  # source of the items: archive | tfds | PATH

    c.spectra = ConfigDict()  # covariance spectra of feed-forward activations on training tokens (train.spectra)
    c.spectra.at = ""  # log:50 (50 times, log-spaced in tokens) | every:500000 | 1e5 2e5 5e5; empty: never
    c.spectra.tokens = 0  # training tokens in one measurement; 0: one batch
    c.spectra.taps = "post"  # post: inputs of the down projections; pre+post: also inputs of the activation functions

    c.checkpoint = ConfigDict()
    c.checkpoint.every_tokens = 500_000  # 0: only at the end
    c.checkpoint.keep = 2  # how many of the newest checkpoints are kept

    c.log = ConfigDict()
    c.log.tensorboard = True
    return c


@cache
def _defaults() -> dict:
    return flatten(default())


WORDS = {"true": True, "1": True, "false": False, "0": False}
KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def from_text(key: str, text: str):
    """The value of a key that a person wrote as text. Raises InputError for an unknown key and for text that is not of
    the kind of its default."""
    _check_key(key)
    kind = type(_defaults()[key])
    try:
        return WORDS[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise InputError(f"{key}={text}: must be {KINDS[kind]}") from error


def check_keys(flat: dict) -> None:
    """Raises InputError unless these are the keys of `default`, each with a value of the kind of its default; numbers
    are those that 64 bits, and of floats 32, hold."""
    for key in flat:
        _check_key(key)
    for key, standard in _defaults().items():
        if key not in flat:
            raise InputError(f"config: missing key {key}; start from jaxlab.config.default()")
        value, kind = flat[key], type(standard)
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{key}={value!r}: must be {KINDS[kind]}")
        if kind is int and not -(2**63) <= value < 2**63:
            shown = value if abs(value) < 10**30 else f"{hex(value)[:20]}..."  # Python prints only 4,300 digits
            raise InputError(f"{key}={shown}: must be a whole number of 64 bits")
        if kind is float and not (value == 0 or 2**-126 <= abs(value) < 2**128):
            raise InputError(f"{key}={value}: must be a finite number, 0 or from 1e-38 to 3e38 in size")
        if kind is str and not _is_name(value):
            raise InputError(f"{key}={value!r}: must be text without null characters that can be a file's name")


def _is_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeError:
        return False


def _check_key(key: str) -> None:
    if key not in _defaults():
        near = max(_defaults(), key=lambda k: difflib.SequenceMatcher(None, key, k).ratio())
        raise InputError(f"config: unknown key {key}; the nearest is {near}")


def check(config: ConfigDict) -> None:
    """Raises InputError for the first key whose value cannot work; looks at the config alone, at no devices or data."""
    check_keys(flatten(config))
    for key, allowed in CHOICES.items():
        if get(config, key) not in allowed:
            raise InputError(f"{key}={get(config, key)!r}: must be one of {', '.join(allowed)}")
    for key in POSITIVE:
        if not get(config, key) > 0:
            raise InputError(f"{key}={get(config, key)}: must be above 0")
    for key in NOT_NEGATIVE:
        if not get(config, key) >= 0:
            raise InputError(f"{key}={get(config, key)}: must not be negative")
    for key, most in MOST.items():
        if get(config, key) > most:
            raise InputError(f"{key}={get(config, key)}: must be at most {most}")
    _check_model(config.model)
    _check_batch(config)
    _check_rounds(config.diloco, config.model)
    for key in (
        "optim.momentum", "optim.b1", "optim.b2", "diloco.outer_momentum", "schedule.final_fraction",
        "data.validation_fraction",
    ):  # fmt: skip
        if not 0 <= get(config, key) < 1 - 2**-25:  # what float32 does not round to 1
            raise InputError(f"{key}={get(config, key)}: must be in [0, 1)")
    if config.spectra.at and config.model.num_experts:
        raise InputError(f"spectra.at={config.spectra.at!r}: must be empty with model.num_experts above 0")
    for key in ("diloco.mix", "model.mix_fraction"):
        if not 0 <= get(config, key) <= 1:
            raise InputError(f"{key}={get(config, key)}: must be in [0, 1]")
    if config.schedule.warmup_tokens + config.schedule.decay_tokens > config.tokens:
        raise InputError(
            f"schedule.warmup_tokens={config.schedule.warmup_tokens} + decay_tokens={config.schedule.decay_tokens}: "
            f"more than the run's tokens={config.tokens}"
        )
    if config.schedule.name == "wsd" and not config.schedule.decay_tokens:
        raise InputError("schedule.decay_tokens=0: wsd needs the length of its decay")
    _check_needs(config)


def _check_needs(config: ConfigDict) -> None:
    for key, (other, allowed) in NEEDS.items():
        value, state = get(config, key), get(config, other)
        there = state in allowed if allowed else state != _defaults()[other]
        if value != _defaults()[key] and not there:
            wanted = " or ".join(allowed) or f"other than {state!r}"
            raise InputError(f"{key}={value}: does nothing unless {other} is {wanted}")


def _check_model(m: ConfigDict) -> None:
    if m.d_model % m.num_heads:
        raise InputError(f"model.d_model={m.d_model}: must be divisible by model.num_heads={m.num_heads}")
    if m.num_heads % m.num_kv_heads:
        raise InputError(f"model.num_heads={m.num_heads}: must be divisible by model.num_kv_heads={m.num_kv_heads}")
    if m.positions == "rotary" and m.head_dim % 2:
        raise InputError(f"model.head_dim={m.head_dim}: must be even with rotary positions")
    if m.layer_d_ff and not re.fullmatch(rf"[1-9]\d{{,8}}(,[1-9]\d{{,8}}){{{m.num_layers - 1}}}", m.layer_d_ff):
        raise InputError(f"model.layer_d_ff={m.layer_d_ff}: must be {m.num_layers} whole numbers above 0, one a layer")
    for key, needed in NGPT.items() if m.parametrisation == "ngpt" else ():
        if m[key] != needed:
            raise InputError(f"model.{key}={m[key]!r}: must be {needed!r} with model.parametrisation=ngpt")
    for key, needed in EXPERTS.items() if m.num_experts else ():
        if m[key] != needed:
            raise InputError(f"model.{key}={m[key]!r}: must be {needed!r} with model.num_experts={m.num_experts}")
    if not bool(m.num_experts) <= m.experts_per_token <= m.num_experts:
        least = int(m.num_experts > 0)
        raise InputError(
            f"model.experts_per_token={m.experts_per_token}: must be from {least} to model.num_experts={m.num_experts}"
        )


def _check_batch(config: ConfigDict) -> None:
    b = config.batch
    check_context(config, b.context)
    if config.replicas % config.mesh.replica and config.replicas != 1:
        raise InputError(f"mesh.replica={config.mesh.replica}: must divide replicas={config.replicas}")
    if b.growth:
        return  # sizes are rounded to what the devices take (train.build)
    for key in ("tokens", "micro_tokens"):
        if b[key] % b.context:
            raise InputError(f"batch.{key}={b[key]}: must be a multiple of batch.context={b.context}")
    step = config.replicas * (b.micro_tokens or b.context)
    if b.tokens % step:
        name = "batch.micro_tokens" if b.micro_tokens else "batch.context"
        raise InputError(f"batch.tokens={b.tokens}: must be a multiple of replicas x {name} = {step}")
    if config.tokens < b.tokens:
        raise InputError(f"tokens={config.tokens}: less than one batch, batch.tokens={b.tokens}")


def check_context(config: ConfigDict, context: int, key: str = "batch.context") -> None:
    """Raises InputError for a length of training sequences that the model or the loss does not take."""
    if context > config.model.context:
        raise InputError(f"{key}={context}: longer than the model's positions, model.context={config.model.context}")
    if context > config.compute.loss_chunk and context % config.compute.loss_chunk:
        raise InputError(f"compute.loss_chunk={config.compute.loss_chunk}: must divide {key}={context}")


def _check_rounds(d: ConfigDict, m: ConfigDict) -> None:
    if not d.sync_every:
        return
    if d.overlap >= d.sync_every:
        raise InputError(f"diloco.overlap={d.overlap}: must be below diloco.sync_every={d.sync_every}")
    if d.fragments > min(d.sync_every, m.num_layers):
        raise InputError(
            f"diloco.fragments={d.fragments}: must not be above diloco.sync_every={d.sync_every} "
            f"or model.num_layers={m.num_layers}"
        )
    if d.eager and (d.overlap or d.mix or d.average != "mean"):
        raise InputError("diloco.eager=True: takes overlap=0, mix=0 and average=mean")


def get(config: ConfigDict, key: str):
    """Value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def flatten(config: ConfigDict) -> dict:
    """{dotted key: value} of the whole tree, in alphabetical order."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """Lines `key: old -> new` for keys that may not differ when a run is resumed; both arguments flat.

    A key that came later than the old config had its default: the default of a new key is what was done before it.
    """
    old = {k: v for k, v in flatten(default()).items() if k in new} | old
    meet = all(c.get("diloco.sync_every") and not c.get("diloco.eager") for c in (old, new))
    free = RESUMABLE + (("replicas",) if meet else ())  # they have something in common to go on from
    held = [k for k in {**old, **new} if not any(k == r or k.startswith(r + ".") for r in free)]
    missing = object()
    return [
        f"{k}: {old.get(k, 'absent')} -> {new.get(k, 'absent')}"
        for k in held
        if old.get(k, missing) != new.get(k, missing)
    ]
