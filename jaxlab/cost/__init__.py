"""The cost of a run: its FLOPs, and seconds of training across data centres."""
