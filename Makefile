# Everything one can do here. `make` alone lists it. Needs only make and Python 3.11 or later: each target creates
# .venv and installs what it uses by itself, once, and again only after pyproject.toml or constraints.txt change.
#   ARGS="…"     more arguments for the command, for example: make compare ARGS="--methods lora,svfit --budget 1%"
#   PYTHON=…     the interpreter that creates .venv

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Tests that call every annotated function once are enough for the shapes: without the suites of all methods times all
# properties, those that train, and hypothesis.
SHAPES := tests/linalg tests/metrics tests/layers tests/adapters $(addprefix --ignore=tests/adapters/test_, \
	properties.py peft_contract.py bad_input.py engine.py from_peft.py distributed.py budget.py)

# What each kind of work installs besides the core.
compare_EXTRAS := compare,demo
dev_EXTRAS     := all,clients,dev
docs_EXTRAS    := docs
lowest_EXTRAS  := all,dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help compare quick test shapes lowest lint types bench evidence mutants docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

compare: $(VENV)/compare.installed ## race all methods on the built-in model and data (ten minutes)
	$(BIN)/eckart compare $(ARGS)

quick: $(VENV)/compare.installed ## a first impression of the same in under two minutes
	$(BIN)/eckart compare --quick --output eckart-quick $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(VENV)/dev.installed ## run the tests
	$(BIN)/pytest -n 2 --dist worksteal -p no:benchmark $(ARGS)

shapes: export OMP_NUM_THREADS = 1
shapes: $(VENV)/dev.installed ## run the tests of linalg, metrics, layers and adapters with every annotation enforced (beartype)
	$(BIN)/pytest -n 2 --dist worksteal -p no:benchmark -p shape_checks --jaxtyping-packages=eckart,shape_checks.check \
		-m "not compiled" $(SHAPES) $(ARGS)

lowest: export OMP_NUM_THREADS = 1
lowest: .venv-lowest/lowest.installed ## run the quick tests on the lowest versions that pyproject.toml promises
	.venv-lowest/bin/pytest -n 2 --dist worksteal -p no:benchmark --ignore tests/jobs/compare --ignore tests/test_docs.py \
		--ignore tests/test_packaging.py --ignore tests/clients $(ARGS)

lint: $(VENV)/dev.installed ## check formatting and lint rules (ruff)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev.installed ## check types (mypy --strict)
	$(BIN)/mypy

bench: $(VENV)/dev.installed ## run every benchmark; each prints its claim as a ratio
	@set -e; for script in $(filter-out benchmarks/mutants.py benchmarks/gpu.py,$(wildcard benchmarks/[!_]*.py)); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

mutants: $(VENV)/dev.installed ## change single places of the source and see which no test notices (a sample; minutes a room)
	$(BIN)/python benchmarks/mutants.py $(ARGS)

evidence: $(VENV)/dev.installed ## measure a published claim again: make evidence ARGS=subgm; without ARGS lists them
	$(BIN)/python -m evidence $(ARGS)

docs: $(VENV)/docs.installed ## renew the generated tables and build the site into site/
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean --strict $(ARGS)

clean: ## remove .venv, caches and built files; results of runs stay
	rm -rf $(VENV) .venv-lowest build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.installed .venv-lowest/python.installed:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "eckart needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 2; }
	"$(PYTHON)" -m venv $(@D)
	@touch $@

$(VENV)/compare.installed $(VENV)/dev.installed $(VENV)/docs.installed: \
$(VENV)/%.installed: pyproject.toml constraints.txt | $(VENV)/python.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$($*_EXTRAS)]'
	@touch $@

.venv-lowest/lowest.installed: pyproject.toml constraints-lowest.txt | .venv-lowest/python.installed
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[$(lowest_EXTRAS)]'
	@touch $@
