# Everything a fresh machine needs is Python 3.12, make and a C compiler: no uv, no GPU, no display.
#   make demo    install, check the machine, run the whole thing once (record, train, evaluate, report)
#   make test    install, run the tests          make lint    ruff and mypy
# Say PYTHON=/path/to/python3.12 to choose the interpreter, and PYTEST_FLAGS='-k lattice' to choose tests.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Run it to see whether it is there: a pyenv shim may stand in for a uv that is not.
UV := $(or $(shell uv --version >/dev/null 2>&1 && command -v uv),$(BIN)/uv)

PYTHON ?=
PYTEST_WORKERS ?= 2
PYTEST_FLAGS ?=
DEMO_FLAGS ?=
LEROBOT_FLAGS ?=
NEWEST := .venv-newest
# The demo's clock starts before the installation.
BEGAN := $(shell date +%s)

# A slow mirror should be slow, not fatal. uv says when it cannot hard-link from its cache; copying is fine.
export UV_HTTP_TIMEOUT ?= 180
# An activated environment of someone else's must not leak in.
unexport VIRTUAL_ENV
unexport PYTHONHOME
# Mesa renders MuJoCo without a display; macOS has its own.
ifeq ($(shell uname -s),Linux)
export MUJOCO_GL ?= egl
endif

.PHONY: help
help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s%s\n", $$1, $$2 }'

# --- the environment --------------------------------------------------------------------------------------------

# The first interpreter of version 3.12 or 3.13 (the lock has wheels for both), by running it: a pyenv shim answers to
# the name of a Python that it does not have.
define FIND_PYTHON
probe='import sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))'; \
python=; \
for candidate in "$(PYTHON)" python3.12 python3 python python3.13 \
    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python /usr/local/bin/python3.12 /opt/homebrew/bin/python3.12; do \
  [ -n "$$candidate" ] || continue; \
  if "$$candidate" -c "$$probe" >/dev/null 2>&1; then python=$$("$$candidate" -c 'import sys; print(sys.executable)'); break; fi; \
done; \
if [ -z "$$python" ] && [ -x "$$(command -v uv)" ]; then python=$$(uv python find 3.12 2>/dev/null || true); fi; \
if [ -z "$$python" ]; then \
  echo "error: this needs Python 3.12 (or 3.13), and none was found." >&2; \
  echo "  Debian 13, Ubuntu 24.04: apt-get install -y python3.12 python3.12-venv" >&2; \
  echo "  with pyenv: pyenv install 3.12     with uv: uv python install 3.12     macOS: brew install python@3.12" >&2; \
  echo "  or, if you have it elsewhere: make PYTHON=/path/to/python3.12 ..." >&2; \
  exit 1; \
fi
endef

# --compile-bytecode: where PYTHONDONTWRITEBYTECODE is set, Python would compile 120 packages anew at each start (20 s).
$(INSTALLED): requirements.lock pyproject.toml
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then \
	  $(FIND_PYTHON); \
	  echo "[1/3] environment $(VENV) with $$("$$python" --version)"; \
	  rm -rf $(VENV); \
	  "$$python" -m venv $(VENV) $(if $(filter $(BIN)/uv,$(UV)),,--without-pip) \
	    || { echo "error: '$$python -m venv' failed; on Debian and Ubuntu: apt-get install -y python3.12-venv" >&2; exit 1; }; \
	else \
	  echo "[1/3] environment $(VENV) is there"; \
	fi
	@if [ "$(UV)" = "$(BIN)/uv" ] && [ ! -x $(BIN)/uv ]; then $(BIN)/python -m pip install -qq --disable-pip-version-check 'uv>=0.9,<1'; fi
	@echo "[2/3] $$(grep -c '^[a-z0-9]' requirements.lock) packages of requirements.lock (about 6 GB; a minute, longer on a slow line)"
	@if [ -t 2 ]; then quiet=; else quiet=--quiet; fi; \
	$(UV) pip install --python $(BIN)/python --compile-bytecode $$quiet -r requirements.lock
	@echo "[3/3] this checkout, editable"
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@; echo "installed in $$(( $$(date +%s) - $(BEGAN) )) s"

# --- what people do ---------------------------------------------------------------------------------------------

.PHONY: demo test test-lerobot test-lerobot-newest test-openpi lint format lock wheel-test audit clean distclean
demo: $(INSTALLED)  ## check the machine, then record, train, evaluate and report in runs/demo
	@$(BIN)/vla doctor
	@VLA_DEMO_BEGAN=$(BEGAN) $(BIN)/vla demo --out runs/demo $(if $(wildcard runs/demo),--resume) $(DEMO_FLAGS)

test: $(INSTALLED)  ## run the tests on CPU (under five minutes, install included)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(PYTEST_WORKERS) $(PYTEST_FLAGS)

# Opt-in: LeRobot's own commands, unpatched, and then the same with the newest LeRobot that the index has.
test-lerobot: $(INSTALLED)  ## run LeRobot's real commands with policy type lattice (ten minutes)
	@$(BIN)/python benchmarks/lerobot_commands.py $(LEROBOT_FLAGS)

test-lerobot-newest: $(INSTALLED)  ## the same with the newest LeRobot, in an environment of its own; says what changed
	@rm -rf $(NEWEST) && "$$($(BIN)/python -c 'import sys; print(sys._base_executable)')" -m venv --without-pip $(NEWEST)
	@$(UV) pip install --python $(NEWEST)/bin/python --quiet --compile-bytecode -r requirements.lock
	@$(UV) pip install --python $(NEWEST)/bin/python --quiet --no-deps --no-build-isolation -e .
	@$(UV) pip install --python $(NEWEST)/bin/python --compile-bytecode --upgrade-package lerobot 'lerobot[dataset]'
	@$(NEWEST)/bin/python benchmarks/lerobot_commands.py --against benchmarks/results/lerobot.json \
	  --results runs/lerobot-newest.json $(LEROBOT_FLAGS)

test-openpi: $(INSTALLED)  ## openpi's unmodified client against vla serve, in environments of its own
	@$(BIN)/python benchmarks/openpi/run.py

lint: $(INSTALLED)  ## ruff check, ruff format --check, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)  ## let ruff mend what it can, and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Hashes, and no index addresses: the pins say what, your own index says where. --universal keeps platform markers,
# without which the lock of a Linux machine asks a Mac for CUDA.
lock:  ## compile requirements.lock anew from pyproject.toml and constraints.txt
	@[ -x "$(UV)" ] || { echo "error: no uv; run 'make $(INSTALLED)' first, or install uv" >&2; exit 1; }
	@$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.12 --constraints constraints.txt \
	  --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --no-header --quiet $(LOCK_FLAGS) \
	  --output-file requirements.lock
	@! grep -nE '://|^-' requirements.lock || { echo "error: requirements.lock names an address" >&2; exit 1; }
	@echo "requirements.lock: $$(grep -c '^[a-z0-9]' requirements.lock) packages"

wheel-test: $(INSTALLED)  ## build the wheel, install it in an environment outside the checkout, use it
	@UV="$(abspath $(UV))" .ci/wheel-smoke $(abspath $(BIN)/python)

audit: $(INSTALLED)  ## known vulnerabilities of the pinned packages; says so where nobody can be asked
	@UV="$(abspath $(UV))" .ci/audit $(BIN)/python

clean:  ## remove caches and builds (runs/ and .venv stay)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	@rm -rf $(VENV)
