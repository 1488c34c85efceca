"""The decoder: Flax Linen modules, pure functions of (params, tokens)."""
