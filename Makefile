# One verb per job; CI and pre-commit call the same verbs. Every verb makes what it needs: .venv is built from
# requirements/dev.lock when it is missing or older than the lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready

BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

# More arguments for pytest, e.g. `make test PYTEST_ARGS="-k rewards -x"`.
PYTEST_ARGS ?=
# Two processes, each with whole files: a file's tests may share what takes long to make, or follow on one another.
# The order is the one of tests/conftest.py. `make test TEST_WORKERS=` runs them in one process.
TEST_WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
# The interpreter that makes .venv; empty: the first of python3.11, python3.12 and python3 that works.
PYTHON ?=

# A plain local ray.init() would turn token authentication on and write a token into the home directory. Clusters
# that need a token set RAY_AUTH_MODE=token themselves.
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
# Workers run in this .venv, even when make is itself started through `uv run`.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV ?= 0

define find_python
python=""; \
for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3); do \
  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
    python="$$candidate"; break; \
  fi; \
done; \
if [ -z "$$python" ]; then \
  echo "make: no Python 3.11 or 3.12 among: $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3)." \
    "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
  exit 1; \
fi
endef

.PHONY: help
help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## build .venv from the lock (every other verb does it as needed)

# A Python file in a source root breaks Python itself: say so here, where Python is not needed to say it.
.PHONY: layout
layout:
	@stray=$$(find platform algorithms -maxdepth 1 -name '*.py'); \
	if [ -n "$$stray" ]; then \
	  echo "make: remove $$stray: a source root holds no Python file, see CONTRIBUTING.md" >&2; exit 1; \
	fi

# pip compiles all files here: where PYTHONDONTWRITEBYTECODE is set, as in many images, nothing else ever would.
$(LOCKED): requirements/dev.lock | layout
	@$(find_python); \
	echo "make: building $(VENV) with $$("$$python" --version) from requirements/dev.lock (some minutes)" >&2; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -qq -r requirements/dev.lock
	@touch $@

# --no-build-isolation: the build backend is in the lock too.
$(READY): $(LOCKED) pyproject.toml | layout
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check
	@touch $@

.PHONY: demo
demo: $(READY) ## customise a trained HalfCheetah over a small sweep of weights
	$(BIN)/rpg sweep tune_configs/quickstart.yaml --name "quickstart-$$(date +%Y%m%d-%H%M%S)"

.PHONY: test
test: $(READY) ## run the tests
	$(BIN)/python -m pytest -m "not slow" $(TEST_WORKERS) $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(READY) ## run the tests that take more than a minute each
	$(BIN)/python -m pytest -m "slow and not cluster" --timeout 3600 $(PYTEST_ARGS)

.PHONY: test-cluster
test-cluster: $(READY) ## run a sweep on a cluster whose parts fail, and write docs/reliability.md (half an hour; as root)
	$(BIN)/python -m pytest -m cluster -s --exitfirst $(PYTEST_ARGS)
	$(BIN)/python docs/reliability.py

.PHONY: lint
lint: $(READY) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(READY) ## rewrite style and formatting
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: types
types: $(READY) ## check types, strictly
	$(BIN)/mypy

.PHONY: docs-check
docs-check: $(READY) ## check the documents' links, names, verbs and line lengths
	$(BIN)/python docs/check.py

.PHONY: bench
bench: $(BENCH_READY) ## measure speed against the peers, in one run (an hour; leave the machine alone)
	for part in speed sweeps learning scale tracking; do $(BENCH_VENV)/bin/python -m benchmarks.$$part; done

# What of it to run, e.g. `make reproduce REPRODUCE_ARGS="--experiments 2 --environments ant"`.
REPRODUCE_ARGS ?=

.PHONY: reproduce
reproduce: $(READY) ## repeat the paper's experiments and write docs/reproduction.md (days; stop it, start it again)
	$(BIN)/python -m benchmarks.reproduce $(REPRODUCE_ARGS)

.PHONY: reproduce-quick
reproduce-quick: $(READY) ## take the same path in minutes, with tiny budgets
	$(BIN)/python -m benchmarks.reproduce --quick $(REPRODUCE_ARGS)

# The peers live in an environment of their own.
$(BENCH_READY): requirements/bench.lock pyproject.toml | layout
	@$(find_python); "$$python" -m venv --clear $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --disable-pip-version-check -qq -r requirements/bench.lock
	@$(BENCH_VENV)/bin/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: lock
lock: ## choose the newest versions that pyproject.toml allows
	@$(find_python); "$$python" requirements/lock.py

.PHONY: clean
clean: ## remove builds and caches (not .venv)
	rm -rf build dist test-artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
