# For a fresh machine with Python 3.11+ and gcc: `make train`, `make test`; `make test-fast` for work.
PYTHON ?= python3
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PATH := $(BIN):$(PATH)
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

TOOLS := .venv-tools

.PHONY: train test test-fast fuzz setup check lock audit clean

train: setup
	@echo 'deepspeed launch/train.py --ds_config ds_configs/zero3.json'
	@PYTHONSAFEPATH=1 deepspeed launch/train.py --ds_config ds_configs/zero3.json | python -P -m diablo_ds.ranks.noise
	@echo 'The commands are in $(VENV)/bin; for your shell to find them: source $(VENV)/bin/activate'

# Those of tests/cluster, on a machine of its own, mostly wait: a third worker uses that.
WORKERS := $(if $(CLUSTER_TESTS),3,2)

test: check
	python -m pytest -n $(WORKERS)

# After each change: two workers, no ranks, no launcher; CONTRIBUTING.md has the tiers.
test-fast: setup
	python -m pytest -q -n 2 -m 'not slow' tests/unit

# Every reader of files against truncated, bit-flipped and hostile ones, for a minute.
fuzz: setup
	python -m benchmarks.fuzz --minutes 1

check: setup
	ruff check .
	ruff format --check .
	mypy

setup: $(READY)

HAS_TORCH := -c 'import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)'
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# Of what pip says, what is downloaded, when it is installed, and what goes wrong.
SHORT := | sed -unE 's/^ *((Downloading|Using cached|Installing collected|ERROR).{0,90}).*/  \1/p'

# Only files with the digests in requirements/ are installed, each by itself, whatever it says that it
# needs; those that come as sources are built by packages of the same list.
LOCKED := install --no-deps --require-hashes --no-build-isolation
NEEDS := -c 'import sys, importlib.metadata as m; sys.exit(not any(n.startswith(("nvidia", "cuda")) for n in m.requires("torch") or ()))'

# A torch that is installed already (2.8 or later, say a CUDA build) is used as it is. This is decided
# once: from then on python3 is the environment's own.
$(READY): pyproject.toml Makefile $(wildcard requirements/*.txt)
	@command -v gcc > /dev/null || { echo 'Error: set-up needs gcc, for an op of DeepSpeed'; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) $(IS_NEW_ENOUGH) || { echo 'Error: set-up needs Python 3.11 or later; got '"$$($(PYTHON) -V)"'; give make PYTHON=python3.12 or another'; exit 2; }
	@echo 'Set-up 1/4: the environment $(VENV)'
	@if test -x $(BIN)/python; then echo '  it exists'; \
	elif $(PYTHON) $(HAS_TORCH) 2>/dev/null; \
	then echo '  with the PyTorch that is installed'; $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi
	@echo 'Set-up 2/4: PyTorch and the packages that are needed, by their digests'
	@$(PIP) $(LOCKED) -r requirements/build.txt $(SHORT)
	@if ! $(BIN)/python $(HAS_TORCH) 2>/dev/null; then \
	test ! -e /dev/nvidia0 && $(PIP) $(LOCKED) -r requirements/torch-cpu.txt 2>/dev/null $(SHORT) || \
	$(PIP) $(LOCKED) -r requirements/torch.txt $(SHORT) || exit; \
	if $(BIN)/python $(NEEDS); then $(PIP) $(LOCKED) -r requirements/cuda.txt $(SHORT) || exit; fi; fi
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) $(LOCKED) -r requirements/triton.txt $(SHORT)
	@$(PIP) $(LOCKED) -r requirements/packages.txt $(SHORT)
	@$(BIN)/python -W ignore -c 'import torch; print("  PyTorch", torch.__version__)'
	@echo 'Set-up 3/4: diablo_ds'
	@$(PIP) install --no-deps --no-build-isolation --editable . $(SHORT)
	@echo 'Set-up 4/4: the communication op that DeepSpeed compiles on its first start, a minute or more'
	@python -c 'from diablo_ds.zero.joining import init_process_group; init_process_group()'
	@touch $@
	@echo 'Set-up is done.'

# The newest versions within pyproject.toml's bounds, with their digests; KEEP=1 adds what is missing.
lock: $(TOOLS)/.ready
	$(TOOLS)/bin/python requirements/lock.py --uv $(TOOLS)/bin/uv $(if $(KEEP),,--upgrade)

# Known vulnerabilities of the locked packages, asked of the index; fails where it does not know them.
audit: $(TOOLS)/.ready
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes $(addprefix -r requirements/,$(addsuffix .txt,build packages torch triton)) || \
	{ echo 'Error: no package of the lock may have a known vulnerability; got what is said above. Where it says "could not be audited", the index does not know the package, as behind a mirror: there is no verdict then.'; exit 1; }

$(TOOLS)/.ready: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip --disable-pip-version-check install uv==0.13.9 pip-audit==2.10.1 $(SHORT)
	@touch $@

clean:
	rm -rf $(VENV) $(TOOLS) .mypy_cache .pytest_cache .ruff_cache *.egg-info
