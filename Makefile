# make demo      raw text to a model you can talk to, in minutes, offline once installed
# make test      what CI runs: lint, types, floors, and every test that takes seconds
# make test-all  the same with the tests that take minutes
# make bench     every benchmark, one after the other (they would disturb each other)
# make lint      ruff, pyright and import-linter alone
# make docs      render the capability table into both READMEs
# make install   the environment for development, without running anything
#
# The first call makes .venv and installs into it; later calls find it ready. Nothing outside this folder is touched.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
# torch goes in first and pinned: left to the resolver, another package's requirement may pull a different build of
# it (CUDA instead of CPU, or a newer minor version that moves numbers in tests). Anything that follows `pip install`
# will do here: a version, a wheel, options that name an index.
TORCH ?= torch==2.13.0
ARGS ?=
# Two at a time: on two cores that halves the wait.
PARALLEL ?= -n 2 --dist loadfile

# Real data for the tests and benchmarks that compare with it; they skip without it.
ifneq ($(wildcard ../shared/data/.),)
export DOUGONG_DATA ?= $(abspath ../shared/data)
endif

# A stamp's name carries what it was made from (the dependencies, torch, this folder), so it is due again when they
# change. It is due too when the interpreter in the environment is missing or does not start.
KEY := $(shell (sed '/^\[tool\./,$$d' pyproject.toml; echo '$(TORCH)'; pwd) | cksum | cut -d' ' -f1)
BASE := $(VENV)/.ready-$(KEY)
DEMO := $(VENV)/.ready-$(KEY)-monitor
DEV := $(VENV)/.ready-$(KEY)-dev
ifneq ($(shell $(PY) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null),True)
$(BASE): broken
endif

.PHONY: help demo test test-all bench lint docs install broken

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(DEMO)
	$(PY) -m dougong.cli demo $(ARGS)

install: $(DEV)

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	$(VENV)/bin/lint-imports

test: lint
	$(PY) -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: lint
	$(PY) -m pytest $(ARGS)

bench: $(DEV)
	@for script in bench/*.py; do echo "== $$script"; $(PY) "$$script" $(ARGS) || exit 1; done

docs:
	$(PY) docs/capabilities.py

# A Python is asked to run, not looked up: version managers leave commands behind that only print an error.
$(BASE):
	@python=""; \
	for name in $(PYTHON) python3.12 python3.11 python3.13 python3; do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python="$$name"; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python >= 3.11 with venv was found; install one (Debian, Ubuntu: apt install python3 python3-venv)" \
	         "or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$python"; rm -rf "$(VENV)"; "$$python" -m venv "$(VENV)"; \
	fi
	$(PY) -m pip install --quiet $(TORCH)
	@rm -f $(VENV)/.ready-*
	@touch $@

$(DEMO): $(BASE)
	$(PY) -m pip install --quiet -e ".[monitor]"
	@touch $@

$(DEV): $(BASE)
	$(PY) -m pip install --quiet -e ".[dev]"
	@touch $@
