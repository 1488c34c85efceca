"""Programs started as `python -m launch.NAME` from the root of the repository; the only readers of flags."""
