"""Compiling many tiny programs: a quarter of the time, at the price of slower code. The numbers are those of float32
either way."""

import jax

_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_CPU = {"xla_cpu_use_fusion_emitters": False}
OPTIONS = _OPTIONS | (_CPU if jax.default_backend() == "cpu" else {})
