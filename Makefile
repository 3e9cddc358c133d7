# Two commands do everything: `make demo` and `make test`. Python 3.11-3.13 and make must be there, nothing else.

SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FITS := import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))

# The first Python that runs and has a fitting version; name another with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(FITS)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
DATA ?= textures

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Make .venv with the package and all that tests need

$(STAMP): pyproject.toml
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo "Python 3.11, 3.12 or 3.13 is needed, but got" \
		"'$(or $(PYTHON),none)'; install one, or run make PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

.PHONY: demo
demo: $(STAMP) ## Run the main job on built-in pictures, or on yours with DATA=path
	STILLHOUSE_HOME=$${STILLHOUSE_HOME:-var/home} $(BIN)/stillhouse demo --data "$(DATA)" --out var/demo

.PHONY: up
up: $(STAMP) ## Serve the API, the pages and the controller on 127.0.0.1:8000
	$(BIN)/stillhouse up

.PHONY: test
test: $(STAMP) ## Run all tests, two files at a time
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25

.PHONY: test-fast
test-fast: $(STAMP) ## Run the unit, property and golden tests only
	$(BIN)/python -m pytest -q tests/unit tests/property tests/golden

.PHONY: lint
lint: $(STAMP) ## Check format, style, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: check
check: lint test ## Run lint and test

.PHONY: catalogue
catalogue: $(STAMP) ## Count the catalogue's MACs and parameters anew
	$(BIN)/python -m stillhouse.distill.catalogue

.PHONY: clean
clean: ## Remove results and caches, keep .venv
	rm -rf var .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist

.PHONY: distclean
distclean: clean ## Remove .venv too
	rm -rf $(VENV)
