# make quickstart: the whole pipeline on embedded data; make test: the tests, less the slow ones; make slow:
# these, with every extra installed; make exact: the tests of what is promised bit for bit, with the processor
# held to other instruction sets; make bench: speed against references, make bench QUICK=1 the quick way.
# All make .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is written whatever the environment says: with the checks of shapes, each process of the tests would
# compile the package for ten seconds.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n 2 --dist loadfile -rs

.PHONY: quickstart test slow exact bench lint docs clean

quickstart: .venv/installed
	$(BIN)/smallvit quickstart

test: .venv/installed-dev
	$(TESTS)

slow: .venv/installed-all
	$(TESTS) -m "slow and not network"

exact: .venv/installed-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python tests/instruction_sets.py -n 2 --dist loadfile

bench: .venv/installed-dev
	$(BIN)/python benchmarks/run_all.py $(if $(QUICK),--quick)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .docs-site

clean:
	rm -rf .venv .docs-site .pytest_cache .ruff_cache .import_linter_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python >= 3.11 is needed; run make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

.venv/installed-all: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[cluster,dev]'
	touch $@
