"""Scaling laws: a fitter for any law, and the laws of the studies. Needs jax, numpy and scipy alone."""
