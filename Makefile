# Targets for a fresh clone; all they need is make and a Python >= 3.10 (`make demo PYTHON=python3.12`).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test soak homes lint format bench peers clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## train, archive, serve, predict, scale and stop, on this machine
	@exec $(BIN)/python examples/demo.py

test: lint ## everything that CI runs (ARGS="-k scale" is passed to pytest)
	@# In pytest's order: tests/e2e, whose files take longest, first. xdist would begin with the files of most tests.
	@exec $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(STAMP) ## half an hour of random faults under load (ARGS="--minutes 5"), then 200 clients for 5 minutes
	@$(BIN)/python tests/soak/soak.py $(ARGS)
	@$(BIN)/python tests/soak/load.py

homes: $(STAMP) ## archives on each TorchServe and Python, as the images start it (ARGS="--home kserve-v1 --json FILE")
	@$(BIN)/python -m tests.homes $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## the figures of benchmarks/, measured here
	@set -e; for script in $(filter-out benchmarks/peers.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

peers: $(STAMP) ## handlergen beside other servers, which pip installs (ARGS="--workloads waits")
	@exec $(BIN)/python benchmarks/peers.py $(ARGS)

clean: ## what the targets made, but for the virtual environment
	rm -rf build dist logs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf examples/digits/digits.pt examples/digits/held-out model-store/digits.mar
	rm -f examples/cancer/*.joblib examples/cancer/encoder.pt2 examples/cancer/head.json examples/*/held-out.jsonl examples/iris/iris.pt
	find handlergen tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the virtual environment too
	rm -rf $(VENV)

venv: $(STAMP) ## .venv with handlergen (editable) and all that the other targets need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	@echo "Installing into $(VENV) (torch is large: this takes a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
