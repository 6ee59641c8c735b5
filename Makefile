# The two commands: make demo, make test. Everything else serves them.
# Nothing is assumed but make and a Python 3.10+ with venv; an activated environment is left alone.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = envsync runner plugins tests examples benchmarks
READY = $(BIN)/.ready
# a file's tests stay together, as they share what is slow to make (and some files: tests/conftest.py); one
# process more than there are cores, as many tests wait
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
PARALLEL ?= -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# pip compiles all that it installs, by one core: half of it is what few tests import, and they compile that
SELDOM = /(google/cloud|azure/mgmt|openstack|moto|sympy|networkx|mypy)/

# without bytecode each Dask process that a test starts compiles all that it imports, for seconds
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

.PHONY: help ready demo test unit check lint format types imports examples bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the main job on this machine alone, from nothing"
	@echo "make test    every test; installs what the tests need"
	@echo "make check   lint, types, import rules, quick tests (under two minutes)"
	@echo "make bench   the benchmarks, side by side with other tools"

ready: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "envsync needs Python 3.10 or newer: make PYTHON=/path/to/python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --no-compile --editable . --group dev
	@$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/demo.py

# -rs lists every test that was skipped, and why
test: $(READY)
	$(BIN)/python -m tests.lab.install
	$(BIN)/python -m pytest -rs $(PARALLEL)

unit: $(READY)
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not lab and not slow"

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/vermin --no-tips --quiet --target=3.8- --violations --exclude-regex 'archive\.py$$' plugins envsync/agent

format: $(READY)
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-cache

check: lint types imports unit

examples: $(READY)
	@for example in examples/[!_]*.py; do \
	  echo "== $$example"; $(BIN)/python $$example || exit 1; \
	done

bench: $(READY)
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
