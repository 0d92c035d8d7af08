# A fresh machine needs Python 3.11 or newer, make, git and a C compiler. Each target first installs
# what it needs into .venv: `demo` what a run needs, the others also the tools of the tests.

# The first Python that runs and can make an environment (pyenv has names that do not run).
# To use another one: make test PYTHON=/path/to/python
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo "$$python" && break; done)
BIN := .venv/bin
# Of the tests. `peers` has torch, which is large where pip installs its CUDA build; without it
# (EXTRAS=test) the tests that compare with torch are skipped.
EXTRAS ?= test,peers
# What `make accelerators` compiles, and its compilers: tpu (0.7 GB), cuda (4 GB), or aot for both.
COMPILERS ?= aot
ROWS ?= *
TARGETS ?= *
JOBS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format accelerators

help:
	@echo 'make demo    install what a run needs, then run configs/quickstart.py in runs/quickstart'
	@echo 'make test    install the tools, too, then run all checks: make lint and the tests'
	@echo 'make lint    install the tools, too, then check format, style, types and import layers'
	@echo 'make format  install the tools, too, then format the code and fix what ruff can fix'
	@echo 'make accelerators  install compilers, then compile for GPUs and TPUs without having any'

demo: .venv/installed-run
	$(BIN)/python -m remem_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

test: lint
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/installed-test
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

accelerators: .venv-aot/installed-$(COMPILERS)
	.venv-aot/bin/python -m tools.accelerators --rows='$(ROWS)' --targets='$(TARGETS)' --jobs=$(JOBS)

# A stamp is touched last, so that an installation that failed is repeated.
.venv/installed-run: setup.cfg setup.py pyproject.toml constraints.txt
	$(call make_venv,.venv)
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: setup.cfg setup.py pyproject.toml constraints.txt
	$(call make_venv,.venv)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@ .venv/installed-run

# A separate environment: with these packages installed, JAX would look for their devices.
.venv-aot/installed-%: setup.cfg constraints.txt constraints-aot.txt
	$(call make_venv,.venv-aot)
	.venv-aot/bin/python -m pip install --constraint constraints.txt \
		--constraint constraints-aot.txt --editable '.[$*]'
	@touch $@

define make_venv
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo 'There is no Python 3.11 or newer here; name one: make PYTHON=...' >&2; exit 1; }; \
		"$(PYTHON)" -m venv --clear $(1); }
endef
