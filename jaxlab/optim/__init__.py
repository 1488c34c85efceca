"""Optimisers and token-clocked schedules, each usable alone with optax."""
