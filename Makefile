# Promised names: setup run test check fix bench chaos. Each works on a fresh clone by itself.
.DEFAULT_GOAL := help
.PHONY: help setup run test check lint fix bench bench-peers chaos pins

# The first Python that is new enough; `make PYTHON=python3.12` names another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# python -m: what is installed counts, wherever the checkout was moved to.
PY := $(BIN)/python
INSTALL = @test -n "$(PYTHON)" || { echo "setup: Python 3.11 or newer is needed, and none was found. On Debian or Ubuntu: apt-get install python3 python3-venv" >&2; exit 1; }; \
    $(PYTHON) requirements/install.py

help:
	@echo "make run     start everything: web, worker, records, Flower, Redis"
	@echo "make test    run every test this machine can run; lists what it could not"
	@echo "make check   format, ruff, mypy, import-linter, migrations, then test"
	@echo "make fix     format, and repair what ruff can"
	@echo "make setup   make .venv with everything for run and test"
	@echo "make bench   measure against the peers that are importable (bench-peers builds llama.cpp first)"
	@echo "make chaos   break things on purpose and check the invariants (ARGS=--help says how)"
	@echo "make pins    resolve requirements/*.in again"

setup:
	$(INSTALL) dev

run:
	$(INSTALL) run
	@exec $(PY) manage.py up

test:
	$(INSTALL) dev
	$(PY) -m pytest

lint:
	$(INSTALL) dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(BIN)/lint-imports
	$(PY) manage.py makemigrations --check --dry-run

check: lint
	$(PY) -m pytest

fix:
	$(INSTALL) dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench:
	$(INSTALL) dev
	$(PY) -m tests.bench

bench-peers:
	$(INSTALL) dev
	$(PY) -m tests.bench --build-peers

chaos:
	$(INSTALL) dev
	$(PY) manage.py chaos $(ARGS)

pins:
	$(INSTALL) dev
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/pin.sh
