"""Scaling laws: a fitter for any law, and the laws of the studies. Needs only jax, numpy and scipy."""
