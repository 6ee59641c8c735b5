# The two commands: make demo, make test. Everything else serves them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check lint types imports unit examples bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the main job on this machine alone, from nothing"
	@echo "make test    every test; installs what the tests need"
	@echo "make check   lint, types, import rules, tests without the lab (under two minutes)"
	@echo "make bench   the benchmarks, side by side with other tools"

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

demo: $(BIN)/.ready
	$(BIN)/python examples/demo.py

test: $(BIN)/.ready
	$(BIN)/python -m tests.lab.install
	$(BIN)/python -m pytest

lint: $(BIN)/.ready
	$(BIN)/ruff check envsync runner plugins tests examples benchmarks
	$(BIN)/ruff format --check envsync runner plugins tests examples benchmarks

types: $(BIN)/.ready
	$(BIN)/mypy

imports: $(BIN)/.ready
	$(BIN)/lint-imports

unit: $(BIN)/.ready
	$(BIN)/python -m pytest -m "not lab and not slow"

check: lint types imports unit

examples: $(BIN)/.ready
	for example in examples/[!_]*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done

bench: $(BIN)/.ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
