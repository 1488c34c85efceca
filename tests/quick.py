"""Compiling many tiny programs: in half the time, at the price of slower code. The numbers are those of float32 either
way."""

OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
