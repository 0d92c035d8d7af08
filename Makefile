# A fresh machine needs Python 3.11 or newer, make, git and a C compiler; the rest is installed
# into .venv by the first target that needs it.

# The first that runs and can make an environment; a name may be there and yet not run (pyenv).
# Another one: make test PYTHON=/path/to/python
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo "$$python" && break; done)
BIN := .venv/bin
# torch is large where pip takes its CUDA build; without it (EXTRAS=test) some tests skip.
EXTRAS ?= test,peers

.DEFAULT_GOAL := help
.PHONY: help demo test lint format

help:
	@echo 'make demo    set up, then run configs/quickstart.py into runs/quickstart'
	@echo 'make test    set up, then run all checks: make lint and the tests'
	@echo 'make lint    set up, then check format, style, types and the order of imports'
	@echo 'make format  set up, then format and fix what can be fixed'

demo: .venv/installed
	$(BIN)/python -m remem_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

test: lint
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The stamp is touched last, so that an installation that failed is tried again.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo 'No Python 3.11 or newer runs here; name one: make PYTHON=...' >&2; exit 1; }; \
		"$(PYTHON)" -m venv --clear .venv; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
