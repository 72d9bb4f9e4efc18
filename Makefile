# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: of the many thousand that torch brings, few ever are.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
# One process of tests per core; each begins with a half (or quarter) of them, so that most modules' fixtures are made once.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo kernels bench test test-fast lint docs dist clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.installed-all ## create .venv and install everything, development tools included

demo: $(VENV)/.installed-demo ## train, export, verify and time a small network (minutes)
	$(BIN)/python -m qil_deploy demo

kernels: setup ## build the library of kernels and install it into .venv (needs CMake and a C++ compiler)
	$(PIP) --no-build-isolation --no-deps --force-reinstall ./kernels

bench: $(VENV)/.installed-all ## measure exports beside their peers and write docs/benchmarks.md (minutes)
	$(BIN)/python benchmarks/exporters.py resnet18 alexnet
	$(BIN)/python benchmarks/export_cost.py
	$(BIN)/python benchmarks/openvino_agreement.py
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/step_growth.py
	$(BIN)/python benchmarks/write_tables.py runs/benchmarks

test: setup ## run every test
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: setup ## run the tests that take less than a minute each
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not exhaustive"

lint: setup ## check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy qil_deploy tests benchmarks docs examples
	$(BIN)/lint-imports --no-logo --no-cache

docs: setup ## build the site into build/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Wrote build/site/index.html."

dist: setup ## build the wheel and the source archive into dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

clean: ## remove .venv and everything that was generated
	rm -rf $(VENV) build dist *.egg-info demo_output
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "No $(PYTHON) found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old; Python 3.11 or newer is needed." \
			"Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# One stamp per set of extras: installed once, and again when pyproject.toml changes.
$(VENV)/.installed-demo: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV); torch is large, this takes a few minutes."
	$(PIP) --editable '.[train,export]'
	@touch $@

$(VENV)/.installed-all: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV); torch is large, this takes a few minutes."
	$(PIP) --editable '.[all]'
	@touch $@ $(VENV)/.installed-demo
