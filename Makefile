# Every target installs what it needs first, once: the files .venv/.trains and .venv/.installed are younger than those that
# say what to install. Training needs less than development.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two GPUs if there are two, else one, else two CPU workers that split the network between them.
DEVICES ?= $(shell count=$$(nvidia-smi --list-gpus 2>/dev/null | wc -l); if [ $$count -ge 2 ]; then echo 0,1; elif [ $$count = 1 ]; then echo 0; else echo cpu,cpu; fi)

.DEFAULT_GOAL := help
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat torch==2.13.0

.PHONY: help install train test reproduce lint format bench gpu versions clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## create .venv and install the pinned versions of everything, for development too

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; choose another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[cuda13,dev]'
	@touch $(VENV)/.trains $@

$(VENV)/.trains: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[cuda13,report,tensorboard]'
	@touch $@

train: $(VENV)/.trains  ## train the 2012 network on the bundled digits, split over two devices, and evaluate it
	$(BIN)/python -m fastalex.train --devices $(DEVICES)

test: install lint  ## lint, type check, and run the whole test suite
	$(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 5 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

reproduce: install  ## reproduce the whole paper on a small stand-in for ImageNet, in minutes
	$(BIN)/python -m tests.fastalex.reproduction.whole

bench: install  ## time operators, loader, training and the step; records go to bench/results
	$(BIN)/python bench/all.py

gpu: install  ## correctness and speed on this machine's GPU, at most 9 minutes
	$(BIN)/python bench/gpu.py

versions: install  ## run the tests with the oldest and the newest versions that pyproject.toml allows
	$(BIN)/python tests/versions.py oldest
	$(BIN)/python tests/versions.py newest

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs figures

docs: $(VENV)/.docs  ## build the documentation site into docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[docs]'
	@touch $@

figures: install  ## draw charts and write tables of the documentation again, after a record has changed
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/sketches.py

clean:  ## remove caches; runs/ and prepared/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info docs/_build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
