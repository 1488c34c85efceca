"""Programs that are started as `python -m launch.NAME` from the root of the repository. Only these read flags."""
