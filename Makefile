# What can be made here. Every target says what it does; `make run` and `make test` are all that most people need.
SHELL   := /bin/bash
PYTHON  ?= python3
TORCH   ?= torch==2.13.0
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
PORT    ?= 8477
WORKERS ?= 2
export NUMBA_CACHE_DIR ?= $(CURDIR)/.numba_cache

.PHONY: run test lint claims compare bench assets site dev chromium clean
.DEFAULT_GOAL := run

run: site  ## Install what the site needs, fill the shelf, open the site.
	@$(BIN)/python hatch_build.py
	@$(BIN)/carrel serve --port $(PORT) --open || [ $$? -eq 130 ]  # closed with Ctrl+C

test: dev chromium  ## Install what the tests need and run them.
	@$(BIN)/python hatch_build.py
	@echo "== running the tests with $(WORKERS) workers"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: dev  ## Style, types, import floors.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

claims: dev  ## Run every experiment over three seeds and write its result; QUICK=1 runs the short form and writes nothing.
	@$(BIN)/python -m carrel.atlas.claims $(if $(QUICK),--quick --jobs $(WORKERS)) $(SLUGS)

compare: dev  ## Run the comparisons of docs/compare.md anew and write them down; keep the machine quiet meanwhile.
	@$(BIN)/python -m carrel.atlas.compare.record $(TASKS)

bench: dev  ## Time our kernels side by side with their peers; write benchmarks/results/.
	@$(BIN)/python -m benchmarks $(CASES)

clean:  ## Remove what was installed and built here; your papers are kept.
	rm -rf $(VENV) .numba_cache .pytest_cache .mypy_cache .ruff_cache build dist src/carrel/web/static frontend/node_modules

site: $(VENV)/.site
dev:  $(VENV)/.dev

$(BIN)/python:
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Carrel needs Python 3.11 or newer; name one with make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	@echo "== installing PyTorch (another build: make TORCH=\"...\", as PyTorch's own page spells it)"
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.site: pyproject.toml constraints.txt hatch_build.py | $(VENV)/.torch
	@echo "== installing Carrel and what its site needs; the first time also builds the pages' assets"
	@$(PIP) install -c constraints.txt -e '.[site]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt hatch_build.py | $(VENV)/.torch
	@echo "== installing Carrel and what its tests need; the first time also builds the pages' assets"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.site

# The browser tests drive Debian's Chromium; where it cannot be installed they skip and say so.
chromium:
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "== installing Chromium for the browser tests"; \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) >/dev/null 2>&1 \
	  || echo "   Chromium could not be installed; the browser tests will be skipped"; fi
