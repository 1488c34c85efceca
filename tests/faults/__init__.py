"""Bad inputs over all launchers, and bytes changed at random in what runs have saved: python -m tests.faults"""
