# Everything here needs Python and make only, and installs the rest into .venv.
# The stand-in NVML driver of the tests also needs a C compiler, and the tests use every other Python
# from 3.10 to 3.13 that they find, Go for a real Collector, and Node: without these they say what
# they skip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOAK ?= 10
WORKERS ?= 2

.PHONY: help demo test soak check fmt lint types imports bench pythons collector node image image-test clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Record a small workload on this machine's GPUs, or on simulated ones
	@$(BIN)/hubmeter demo

test: pythons collector node ## Run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

soak: pythons collector node ## Run the crash, chaos, kill, fuzz and load tests SOAK=10 times as long
	@SOAK=$(SOAK) $(BIN)/python -m pytest --timeout=14400 $(PYTEST_ARGS) \
	  tests/test_crash.py tests/test_chaos.py tests/test_many_writers.py tests/test_fleet_kills.py \
	  tests/test_fuzz_decode.py tests/test_receiver_limits.py

check: fmt lint types imports test ## All that must pass before a commit

fmt: $(VENV)/.developing ## Format check
	@$(BIN)/ruff format --check src tests bench

lint: $(VENV)/.developing ## Lint
	@$(BIN)/ruff check src tests bench

types: $(VENV)/.developing ## Type check, strict
	@$(BIN)/mypy

imports: $(VENV)/.developing ## Check the direction of imports
	@$(BIN)/lint-imports

bench: $(VENV)/.developing ## Measure speed, memory and size beside the peers (minutes)
	@$(BIN)/python bench/run.py

pythons: $(VENV)/.developing ## Prepare the other Pythons and huggingface_hub that the tests use
	@$(BIN)/python tests/interpreters.py

collector: $(VENV)/.created ## Build the OpenTelemetry Collector that the tests use (minutes, once)
	@$(BIN)/python tests/collector/build.py >/dev/null

node: $(VENV)/.created ## Install what the tests' Node agent needs
	@$(BIN)/python tests/agents/node/install.py >/dev/null

image: ## Build the container image, with docker or podman
	@if command -v docker >/dev/null; then docker build -f docker/Dockerfile -t hubmeter .; \
	elif command -v podman >/dev/null; then podman build --format docker -f docker/Dockerfile -t hubmeter .; \
	else echo "neither docker nor podman is here; make image-test builds with buildah" >&2; exit 1; fi

image-test: $(VENV)/.developing ## Build the image with buildah and run it (minutes; Linux, root)
	@$(BIN)/python tests/image/run.py

clean: ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old: make PYTHON=python3.10 or newer" >&2; exit 1; }
	@echo "creating $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "installing hubmeter (about half a minute the first time)" >&2
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.developing: $(VENV)/.installed pyproject.toml
	@echo "installing what the tests need (about a minute the first time)" >&2
	@$(PIP) install --group dev
	@touch $@
