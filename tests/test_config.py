"""The config's checks: every rule is about an existing key, every message names key, value and what is allowed."""

import pytest
from ml_collections import ConfigDict

from jaxlab.config import (
    CHOICES,
    MOST,
    NEEDS,
    NOT_NEGATIVE,
    POSITIVE,
    RESUMABLE,
    InputError,
    check,
    default,
    differences,
    flatten,
    from_text,
    get,
)
from jaxlab.model.families import ARCHITECTURES
from jaxlab.optim.codec import CODECS
from jaxlab.optim.fragments import SPLITS

# Values that the messages below are about, whatever the defaults.
BASE = {
    "seed": 0, "tokens": 2_000_000, "replicas": 1, "batch.tokens": 8_192, "batch.context": 256, "batch.micro_tokens": 0,
    "model.context": 256, "model.d_model": 128, "model.num_heads": 4, "model.num_kv_heads": 4, "model.head_dim": 32,
    "model.d_ff": 512, "model.positions": "rotary", "compute.loss_chunk": 256, "mesh.replica": 1,
    "schedule.name": "cosine", "schedule.warmup_tokens": 100_000, "schedule.decay_tokens": 0, "data.source": "news",
}  # fmt: skip

FRACTIONS = (
    "optim.momentum", "optim.b1", "optim.b2", "diloco.outer_momentum", "schedule.final_fraction",
    "data.validation_fraction",
)  # fmt: skip
ROUNDS = {"diloco.sync_every": 8, "model.num_layers": 4}


def changed(changes: dict) -> ConfigDict:
    c = default()
    c.update_from_flattened_dict(BASE | changes)
    return c


def message(changes: dict) -> str:
    with pytest.raises(InputError) as error:
        check(changed(changes))
    return str(error.value)


def test_the_defaults_pass():
    check(default())


def test_every_rule_is_about_an_existing_key():
    keys = flatten(default())
    assert keys.keys() >= CHOICES.keys() | {*POSITIVE, *NOT_NEGATIVE, *MOST, *NEEDS} | {k for k, _ in NEEDS.values()}
    for key in RESUMABLE:
        assert key in keys or isinstance(get(default(), key), ConfigDict)


def test_every_number_has_a_rule_or_is_free_to_be_anything():
    numbers = {k for k, v in flatten(default()).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    unchecked = numbers - {*POSITIVE, *NOT_NEGATIVE, *FRACTIONS, "diloco.mix", "model.mix_fraction"}
    assert unchecked == {"mesh.data"}  # -1 or a number of devices (parallel.mesh)


@pytest.mark.parametrize("key", CHOICES)
def test_choices(key):
    assert get(default(), key) in CHOICES[key]
    said = message({key: "other"})
    assert said.startswith(f"{key}='other': must be one of ")
    assert all(choice in said for choice in CHOICES[key])


def test_choices_are_those_of_the_optimizer():
    assert CHOICES["diloco.codec"] == CODECS
    assert CHOICES["diloco.fragment_order"] == SPLITS


@pytest.mark.parametrize("key", POSITIVE)
def test_positive(key):
    kind = type(get(default(), key))
    assert message({key: kind(0)}) == f"{key}={kind(0)}: must be above 0"


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_not_negative(key):
    kind = type(get(default(), key))
    assert message({key: kind(-1)}) == f"{key}={kind(-1)}: must not be negative"


@pytest.mark.parametrize("key", FRACTIONS)
def test_fractions(key):
    for value in (-0.1, 1.0, 1 - 1e-9):  # the last is 1 in float32
        assert message({key: value}) == f"{key}={value}: must be in [0, 1)"
    check(changed({key: 0.0}))


@pytest.mark.parametrize("key", MOST)
def test_sizes_fit_an_index(key):
    assert message({key: MOST[key] + 1}) == f"{key}={MOST[key] + 1}: must be at most {MOST[key]}"


def test_the_largest_that_int32_and_uint32_hold():
    check(changed({"model.vocab_size": 2_147_483_647, "seed": 4_294_967_295}))
    assert message({"model.vocab_size": 2_147_483_648}) == "model.vocab_size=2147483648: must be at most 2147483647"
    assert message({"seed": 4_294_967_296}) == "seed=4294967296: must be at most 4294967295"


def of_another_kind(**values) -> ConfigDict:
    """The defaults with values as a config file may set them that goes around the types."""
    c = default()
    with c.ignore_type():
        c.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return c


@pytest.mark.parametrize("key", flatten(default()))
def test_every_key_has_one_kind(key):
    """Whatever is in a config file: nothing, other kinds, and of numbers those that no array holds."""
    standard = get(default(), key)
    wrong = {
        bool: (1, 0.0, "True", "banana"),
        int: (True, 1.0, "1", 2**63, -(2**63) - 1),
        float: ("0.1", float("nan"), float("inf"), -float("inf"), 1e39, 1e-39, 10**40),
        str: (1, True, b"news", "a\0b", "\ud800"),
    }[type(standard)]
    for value in (None, [standard], {"a": standard}, *wrong):
        c = of_another_kind(**{key: value})
        with pytest.raises(InputError, match=f"(?s)^(config: .* key )?{key}(=.*: must be |.a;|;)"):
            check(c)


def test_a_whole_number_is_a_number():
    check(of_another_kind(schedule__peak_lr=1, model__rope_theta=100))


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("mesh.fsdp", {"true": True, "True": True, "1": True, "false": False, "FALSE": False, "0": False}),
        ("seed", {"7": 7, "-1": -1, "1_000": 1_000}),
        ("schedule.peak_lr", {"1": 1.0, "1e-3": 1e-3}),
        ("data.source", {"files:[a-z]*.txt": "files:[a-z]*.txt", "": "", "None": "None"}),
    ],
)
def test_values_from_text(key, texts):
    for text, value in texts.items():
        assert from_text(key, text) == value
        assert type(from_text(key, text)) is type(get(default(), key))


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        *(("mesh.fsdp", text, "true or false") for text in ("banana", "maybe", "yes", "t", "2", "", "None")),
        *(("tokens", text, "a whole number") for text in ("many", "1e6", "1.0", "", "None", "True", "9" * 5_000)),
        *(("schedule.peak_lr", text, "a finite number") for text in ("high", "", "1,0")),
    ],
)
def test_text_that_is_no_value(key, text, wanted):
    with pytest.raises(InputError, match=f"^{key}={text}: must be {wanted}$"):
        from_text(key, text)


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown key optim\.weightdecay; the nearest is optim\.weight_decay"):
        from_text("optim.weightdecay", "3")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.d_model": 130}, "model.d_model=130: must be divisible by model.num_heads=4"),
        ({"model.num_kv_heads": 3}, "model.num_heads=4: must be divisible by model.num_kv_heads=3"),
        ({"model.head_dim": 33}, "model.head_dim=33: must be even with rotary positions"),
        ({"model.norm_placement": "mix", "model.mix_fraction": -0.1}, "model.mix_fraction=-0.1: must be in [0, 1]"),
        (
            {"model.layer_d_ff": "64,64,64,0", "model.num_layers": 4},
            "model.layer_d_ff=64,64,64,0: must be 4 whole numbers above 0, one a layer",
        ),
        (
            {"model.layer_d_ff": "64,128", "model.num_layers": 3},
            "model.layer_d_ff=64,128: must be 3 whole numbers above 0, one a layer",
        ),
        ({"batch.context": 512}, "batch.context=512: longer than the model's positions, model.context=256"),
        ({"compute.loss_chunk": 100}, "compute.loss_chunk=100: must divide batch.context=256"),
        ({"batch.tokens": 8_193}, "batch.tokens=8193: must be a multiple of batch.context=256"),
        ({"batch.micro_tokens": 100}, "batch.micro_tokens=100: must be a multiple of batch.context=256"),
        ({"replicas": 3}, "batch.tokens=8192: must be a multiple of replicas x batch.context = 768"),
        ({"batch.micro_tokens": 768}, "batch.tokens=8192: must be a multiple of replicas x batch.micro_tokens = 768"),
        ({"tokens": 8_191, "schedule.warmup_tokens": 0}, "tokens=8191: less than one batch, batch.tokens=8192"),
        ({"replicas": 4, "mesh.replica": 3}, "mesh.replica=3: must divide replicas=4"),
        ({"schedule.name": "wsd"}, "schedule.decay_tokens=0: wsd needs the length of its decay"),
        ({"diloco.mix": 1.1}, "diloco.mix=1.1: must be in [0, 1]"),
        ({"diloco.mix": -0.1}, "diloco.mix=-0.1: must be in [0, 1]"),
        ({"diloco.overlap": 1}, "diloco.overlap=1: does nothing unless diloco.sync_every is other than 0"),
        ({"diloco.fragments": 2}, "diloco.fragments=2: does nothing unless diloco.sync_every is other than 0"),
        ({"diloco.eager": True}, "diloco.eager=True: does nothing unless diloco.sync_every is other than 0"),
        ({"diloco.codec": "int8"}, "diloco.codec=int8: does nothing unless diloco.sync_every is other than 0"),
        ({"batch.lr_rule": "sqrt"}, "batch.lr_rule=sqrt: does nothing unless batch.growth is other than ''"),
        ({"model.balance_loss": 0.1}, "model.balance_loss=0.1: does nothing unless model.num_experts is other than 0"),
        ({"model.mix_fraction": 0.5}, "model.mix_fraction=0.5: does nothing unless model.norm_placement is mix"),
        (
            {"model.rope_theta": 1e6, "model.positions": "learned"},
            "model.rope_theta=1000000.0: does nothing unless model.positions is rotary",
        ),
        ({"schedule.decay_tokens": 9}, "schedule.decay_tokens=9: does nothing unless schedule.name is wsd"),
        (
            {"schedule.decay_shape": "1-sqrt"},
            "schedule.decay_shape=1-sqrt: does nothing unless schedule.name is wsd or constant",
        ),
        (
            {"model.layer_d_ff": "64,9999999999", "model.num_layers": 2},
            "model.layer_d_ff=64,9999999999: must be 2 whole numbers above 0, one a layer",
        ),
        (ROUNDS | {"diloco.overlap": 8}, "diloco.overlap=8: must be below diloco.sync_every=8"),
        (
            ROUNDS | {"diloco.fragments": 5},
            "diloco.fragments=5: must not be above diloco.sync_every=8 or model.num_layers=4",
        ),
        (
            ROUNDS | {"diloco.fragments": 4, "diloco.sync_every": 3},
            "diloco.fragments=4: must not be above diloco.sync_every=3 or model.num_layers=4",
        ),
        (
            ROUNDS | {"diloco.eager": True, "diloco.overlap": 1},
            "diloco.eager=True: takes overlap=0, mix=0 and average=mean",
        ),
        (
            {"schedule.name": "wsd", "schedule.warmup_tokens": 1_500_000, "schedule.decay_tokens": 600_000},
            "schedule.warmup_tokens=1500000 + decay_tokens=600000: more than the run's tokens=2000000",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_values_that_do_not_fit_together(changes, said):
    assert message(changes) == said


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("tied", True, False), ("use_bias", True, False), ("qk_norm", True, False), ("ffn", "gelu", "swiglu"),
        ("positions", "learned", "rotary"), ("norm_placement", "mix", "pre"), ("ffn_weight_norm", "weight", "none"),
    ],
)  # fmt: skip
def test_ngpt_has_no_choice(key, value, needed):
    ngpt = {f"model.{name}": default for name, default in ARCHITECTURES["ngpt"].items()}
    check(changed(ngpt))
    said = f"model.{key}={value!r}: must be {needed!r} with model.parametrisation=ngpt"
    assert message(ngpt | {f"model.{key}": value}) == said


@pytest.mark.parametrize(
    "changes",
    [
        {"model.head_dim": 33, "model.positions": "learned"},
        {"compute.loss_chunk": 1_000},
        {"batch.micro_tokens": 2_048, "replicas": 4},
        {"tokens": 8_192, "schedule.warmup_tokens": 8_192},
        {"replicas": 1, "mesh.replica": 2},
        {"model.num_kv_heads": 1, "model.head_dim": 6},
        ROUNDS | {"diloco.fragments": 4, "diloco.overlap": 7, "diloco.mix": 1.0},
        {"schedule.name": "wsd", "schedule.decay_tokens": 1_900_000},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_values_at_the_edge_pass(changes):
    check(changed(changes))


def test_flatten_has_every_key_once_in_order():
    flat = flatten(default())
    assert list(flat) == sorted(flat)  # as ConfigDict iterates
    assert len(flat) == len([line for line in str(default()).splitlines() if not line.endswith(":")])
    assert not any(isinstance(value, ConfigDict) for value in flat.values())
    assert all(get(default(), key) == value for key, value in flat.items())


def test_differences_names_what_may_not_change_and_nothing_else():
    old = flatten(changed({}))
    assert differences(old, dict(old)) == []
    assert differences(old, old | {"seed": 1, "model.d_ff": 256}) == ["model.d_ff: 512 -> 256", "seed: 0 -> 1"]
    assert differences(old, old | {"model.new": 3}) == ["model.new: absent -> 3"]
    assert differences({**old, "model.gone": 3}, old) == ["model.gone: 3 -> absent"]
    moved = {"mesh.tensor": 4, "compute.remat": "full", "checkpoint.keep": 9, "log.tensorboard": "other"}
    moved |= {"data.store": "gs://elsewhere", "data.archives": "/", "data.tfds_dir": "/"}
    assert differences(old, old | moved) == []
    assert differences(old, old | {"data.source": "docs"}) == ["data.source: news -> docs"]
    before = {key: value for key, value in old.items() if key != "optim.b1"}  # as if optim.b1 had come later
    assert differences(before, old) == []
    assert differences(before, old | {"optim.b1": 0.5}) == ["optim.b1: 0.9 -> 0.5"]
    assert differences(old, old | {"replicas": 2}) == ["replicas: 1 -> 2"]
    met = old | {"diloco.sync_every": 30}
    assert differences(met, met | {"replicas": 2}) == []  # from the global parameters
    eager = met | {"diloco.eager": True}
    assert differences(eager, eager | {"replicas": 2}) == ["replicas: 1 -> 2"]
    assert differences(old, met | {"replicas": 2}) == ["diloco.sync_every: 0 -> 30", "replicas: 1 -> 2"]
    assert differences({"computer": 1, "logs": 2}, {}) == ["computer: 1 -> absent", "logs: 2 -> absent"]
