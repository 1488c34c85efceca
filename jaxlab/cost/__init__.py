"""What a run costs: floating-point operations, counted from structure."""
