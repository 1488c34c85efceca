"""A short run of a family that transformers has."""

import pytest
from rich.console import Console

from jaxlab.model.families import ARCHITECTURES
from jaxlab.train import loop
from jaxlab.train.build import build
from tests import tiny

LLAMA = {f"model__{key}": value for key, value in ARCHITECTURES["llama"].items()} | {"model__family": "llama"}
SHORT = {
    "tokens": 2_048, "schedule__warmup_tokens": 512, "evaluate__every_tokens": 0, "checkpoint__every_tokens": 0,
    "log__tensorboard": False, "model__context": 256, "model__num_kv_heads": 1,
}  # fmt: skip


def train(config, workdir):
    with Console(quiet=True) as console:
        return loop.train(build(config), workdir, console)


@pytest.fixture(scope="session")
def llama(data):
    """The config of the run."""
    return tiny.config(data, **LLAMA | SHORT)


@pytest.fixture(scope="session")
def workdir(llama, tmp_path_factory):
    """The folder of the run, finished."""
    folder = tmp_path_factory.mktemp("run")
    train(llama, folder)
    return folder
