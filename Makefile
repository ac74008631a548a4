PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With the newest releases of all libraries: make test VENV=.venv-newest CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt

.PHONY: quickstart test test-fast check docs linkcheck clean

quickstart: $(VENV)/installed
	$(BIN)/unlora quickstart

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx -j auto -b html -W -n --keep-going -q docs build/docs
	@echo build/docs/index.html

linkcheck: $(VENV)/installed-dev
	@$(BIN)/python tests/helpers/pages.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "unlora needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install $(CONSTRAINTS) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist docs/_generated src/*.egg-info
