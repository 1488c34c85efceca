# `make demo`: from nothing to a trained model and its figure. `make test`: everything that CI runs.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(RUN) launch.prepare --config=configs/demo.py
	$(RUN) launch.train --config=configs/demo.py --workdir=runs/demo

test: $(VENV)/.installed lint
	$(RUN) pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
