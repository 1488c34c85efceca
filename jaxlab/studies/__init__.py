"""Studies: a grid of runs, their results, fits, claims and a report; one file a paper, read top to bottom like it."""
