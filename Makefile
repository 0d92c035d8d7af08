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
# What make accelerators compiles, and with which compilers: tpu (0.7 GB), cuda (4 GB), aot is both.
COMPILERS ?= aot
ROWS ?= *
TARGETS ?= *
JOBS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format accelerators

help:
	@echo 'make demo    set up, then run configs/quickstart.py into runs/quickstart'
	@echo 'make test    set up, then run all checks: make lint and the tests'
	@echo 'make lint    set up, then check format, style, types and the order of imports'
	@echo 'make format  set up, then format and fix what can be fixed'
	@echo 'make accelerators  set up, then compile for GPUs and TPUs that are not there'

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

accelerators: .venv-aot/installed-$(COMPILERS)
	.venv-aot/bin/python -m tools.accelerators --rows='$(ROWS)' --targets='$(TARGETS)' --jobs=$(JOBS)

# The stamp is touched last, so that an installation that failed is tried again.
.venv/installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(call make_venv,.venv)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# Of its own: JAX would look for the devices of what is installed here.
.venv-aot/installed-%: setup.cfg constraints.txt constraints-aot.txt
	$(call make_venv,.venv-aot)
	.venv-aot/bin/python -m pip install --constraint constraints.txt \
		--constraint constraints-aot.txt --editable '.[$*]'
	@touch $@

define make_venv
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo 'No Python 3.11 or newer runs here; name one: make PYTHON=...' >&2; exit 1; }; \
		"$(PYTHON)" -m venv --clear $(1); }
endef
