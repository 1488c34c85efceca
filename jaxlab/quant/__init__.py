"""Simulated floating-point quantisation: formats, the block-scaled cast, products of cast operands."""
