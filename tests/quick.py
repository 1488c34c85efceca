"""Compiling in less than half the time, at the price of slower code. The numbers are those of float32 either way."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest
from jax._src import compiler  # nothing public sets these options for all programs of a part of a process

EMITTERS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}  # later ones have no others
BRIEF = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} | EMITTERS
LONG = {"xla_backend_optimization_level": 1} | EMITTERS  # for programs that would run longer than they compile
FLAGS = " ".join(f"--{name}={value}" for name, value in BRIEF.items())  # for XLA_FLAGS of another process


@contextmanager
def compiling(options: dict = BRIEF) -> Iterator[None]:
    """Within it all programs of this process are compiled so."""
    original = compiler.get_compile_options

    def quick(*args, env_options_overrides=None, **kwargs):
        return original(*args, env_options_overrides=options | (env_options_overrides or {}), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quick)
        yield
