# Everything one can do here. `make` alone lists it. Needs only make and Python 3.11 or later: each target creates
# .venv and installs what it uses by itself, once, and again only after pyproject.toml or constraints.txt change.
#   ARGS="…"     more arguments for the command, for example: make compare ARGS="--methods lora,svfit --budget 1%"
#   PYTHON=…     the interpreter that creates .venv

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# What each kind of work installs besides the core.
compare_EXTRAS := compare,demo
dev_EXTRAS     := all,dev
docs_EXTRAS    := docs

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help compare quick test lint types bench mutants docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

compare: $(VENV)/compare.installed ## compare all methods on the built-in model and data (under 10 minutes on two cores)
	$(BIN)/eckart compare $(ARGS)

quick: $(VENV)/compare.installed ## a first impression of the same in under 2 minutes
	$(BIN)/eckart compare --quick --output eckart-quick $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(VENV)/dev.installed ## run the tests
	$(BIN)/pytest -n 2 --dist worksteal -p no:benchmark $(ARGS)

lint: $(VENV)/dev.installed ## check formatting and lint rules (ruff)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev.installed ## check types (mypy --strict on linalg and the public face)
	$(BIN)/mypy

bench: $(VENV)/dev.installed ## run every benchmark; each prints its claim as a ratio
	@set -e; for script in $(filter-out benchmarks/mutants.py,$(wildcard benchmarks/[!_]*.py)); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

mutants: $(VENV)/dev.installed ## change single places of the source and see which no test notices (a sample; minutes a room)
	$(BIN)/python benchmarks/mutants.py $(ARGS)

docs: $(VENV)/docs.installed ## renew the generated tables and build the site into site/
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict $(ARGS)

clean: ## remove .venv, caches and built files; results of runs stay
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.installed:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "eckart needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/compare.installed $(VENV)/dev.installed $(VENV)/docs.installed: \
$(VENV)/%.installed: pyproject.toml constraints.txt | $(VENV)/python.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$($*_EXTRAS)]'
	@touch $@
