# make quickstart: the whole pipeline on embedded data; make test: the tests; make bench: speed against
# references, make bench QUICK=1 the quick way; make exact: the tests of what is promised bit for bit, with
# the processor held to other instruction sets. All make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test exact bench lint docs clean

quickstart: .venv/installed
	$(BIN)/smallvit quickstart

test: .venv/installed-dev
	$(BIN)/pytest -q -n 2 --dist loadfile

exact: .venv/installed-dev
	$(BIN)/python tests/instruction_sets.py -n 2 --dist loadfile

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
