# `make` or `make help` lists the targets. Everything runs in .venv, which the first target that needs it creates.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := $(VENV)-lowest
TESTS_LOWEST := tests/core tests/integrations tests/app/test_train.py tests/app/test_checkpoint.py tests/app/test_recipe.py

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-slow test-lowest test-postgres lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=...          interpreter of a new environment (now: $(PYTHON))"

demo: $(STAMP) ## the demonstration on data that comes along; needs no GPU
	$(BIN)/masksub demo

# Two workers on two cores: torch takes one thread in each, or they fight for the cores.
test: lint ## format, lint, types and all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP) ## tests that take longer than a minute
	$(BIN)/python -m pytest -m slow

# In an environment of its own: the packages of the other stay as they are.
test-lowest: $(STAMP) ## core and integrations on the oldest versions that pyproject.toml allows
	@echo "Installing the oldest versions into $(LOWEST) ..."
	@$(PYTHON) -m venv --clear $(LOWEST)
	@$(BIN)/python -m tests.lowest > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check "pip>=23.1"
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt \
		--editable ".[all]" pytest pytest-xdist
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -m "not slow" $(TESTS_LOWEST)

test-postgres: $(STAMP) ## sweeps on a real PostgreSQL server; installs Debian's where it may
	@ls -d /usr/lib/postgresql/*/bin >/dev/null 2>&1 || command -v pg_ctl >/dev/null || \
	{ command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y -q postgresql; } || \
	{ echo "PostgreSQL is not installed; as root: apt-get install postgresql" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/app/test_sweep_workers.py

docs: $(STAMP) ## the documentation site, in build/site; opens without a server or a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open build/site/index.html in a browser."

lint: $(STAMP) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## put the sources into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, caches and built files; runs/ and demo/ stay
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the folder that the environment was made in. In a copied or moved folder, or without its interpreter,
# the environment is useless (it would run the sources of the old place) and is made anew.
ifneq ($(shell $(BIN)/python -c "" 2>/dev/null && cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
REMAKE := yes
endif

# The stamp goes before the packages change and comes back when all are there: what was left half-made is remade.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; name an interpreter: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@$(if $(REMAKE),rm -rf $(VENV) && $(PYTHON) -m venv $(VENV),rm -f $@)
	@echo "Installing masksub and what it needs into $(VENV); the first time this takes some minutes ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=23.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	@printf '%s' "$(CURDIR)" > $@

# Must also run under interpreters that are too old.
define CHECK_PYTHON
import sys
version = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 10):
    sys.exit("masksub needs Python 3.10 or later; $(PYTHON) is %s. Name another one: make PYTHON=python3.11" % version)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) (%s) can't create environments: venv or ensurepip is missing. "
             "On Debian and Ubuntu: apt install python%s-venv" % (version, version))
endef
export CHECK_PYTHON
