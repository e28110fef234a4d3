# Two commands matter: `make demo` shows the whole loop, `make test` proves it.
# Both set up what they need. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON_FOR_VENV ?= python3.11
PYTHON := .venv/bin/python
UV := .venvs/setup/bin/uv

# deployable -> the folder that holds its requirements.lock
DEPLOYABLES := predict proxy promote mlflow-server ui
FOLDER_predict := functions/predict
FOLDER_proxy := functions/proxy
FOLDER_promote := functions/promote
FOLDER_mlflow-server := mlflow_server
FOLDER_ui := ui

TORCH := torch==2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# The user's own reviews; empty means the sample in trainer/.
export DATA ?=
ARGS ?=

# Tests that share a fixture stay on one processor (tests/conftest.py).
IN_PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: setup
setup: .venv/.compiled $(DEPLOYABLES:%=.venvs/%/.installed) ## Make every environment from its lock

.PHONY: demo
demo: setup ## The whole loop on this machine (DATA=path, ARGS=--exit)
	@$(PYTHON) -m local demo $(ARGS)

.PHONY: test
test: setup .venvs/checkov/.installed lint ## Lint, types, unit, integration and end-to-end tests
	$(PYTHON) -m pytest $(IN_PARALLEL) -m "not slow"

.PHONY: test-all
test-all: setup .venvs/checkov/.installed lint ## As test, with the long ones
	$(PYTHON) -m pytest $(IN_PARALLEL)

.PHONY: images
images: .venv/.installed ## Build the container images and start each, without a Docker engine (ARGS=predict: one)
	@$(PYTHON) -m local.images $(ARGS)

.PHONY: bench-promote
bench-promote: setup ## Promotions back and forth under load, and what fails
	@$(PYTHON) -m benchmarks.promote $(ARGS)

.PHONY: bench-trainer
bench-trainer: .venv/.installed ## The trainer beside torchtext and fastText (DATA=path)
	@$(PYTHON) -m benchmarks.trainer $(ARGS)

.PHONY: bench-predict
bench-predict: setup ## Predict beside three other ways to serve the same model (ARGS=--quick)
	@$(PYTHON) -m benchmarks.predict $(ARGS)

.PHONY: bench-proxy
bench-proxy: setup ## What statistics, lists and predictions cost at 2,000 and at 200,000 (ARGS=--help)
	@$(PYTHON) -m benchmarks.proxy $(ARGS)

.PHONY: lint
lint: .venv/.installed ## ruff and mypy --strict
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy functions trainer mlflow_server ui local cloudbuild tests benchmarks

.PHONY: format
format: .venv/.installed ## Let ruff rewrite the sources
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: clean
clean: ## Stop the local stack and forget its data
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m local down --forget; else rm -rf .local; fi

.PHONY: distclean
distclean: clean ## Also remove the environments
	rm -rf .venv .venvs

# --- Environments -----------------------------------------------------------

.venvs/setup/.installed: requirements-setup.lock
	@echo "set-up: installer"
	@$(PYTHON_FOR_VENV) -m venv .venvs/setup
	@.venvs/setup/bin/python -m pip install --quiet --no-deps --require-hashes -r $<
	@touch $@

# torch first, with pip: the CPU build where it can be reached, else what plain pip finds.
.venv/.installed: requirements-dev.lock pyproject.toml .venvs/setup/.installed
	@echo "set-up: torch, trainer, UI and tests (.venv)"
	@test -x $(PYTHON) || $(PYTHON_FOR_VENV) -m venv .venv
	@$(PYTHON) -c 'import importlib.metadata as m; assert m.version("torch").split("+")[0] == "$(TORCH:torch==%=%)"' 2>/dev/null \
	  || $(PYTHON) -m pip install --quiet --no-deps --retries 0 --index-url $(TORCH_CPU_INDEX) $(TORCH) 2>/dev/null \
	  || $(PYTHON) -m pip install --quiet --no-deps $(TORCH)
	@$(UV) pip install --quiet --python $(PYTHON) --no-deps --require-hashes -r $<
	@$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation -e .
	@touch $@

# What runs does without the compiled module, only slower.
.venv/.compiled: functions/predict/bag_linear.pyx functions/predict/compile.py .venv/.installed
	@echo "set-up: predict's compiled module"
	@$(PYTHON) -m functions.predict.compile \
	  || echo "set-up: not compiled, predict will be slower: apt-get install g++ python3-dev, then make setup"
	@touch $@

.venvs/checkov/.installed: terraform/checkov.lock .venvs/setup/.installed
	@echo "set-up: checkov (.venvs/checkov)"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON_FOR_VENV) .venvs/checkov
	@$(UV) pip sync --quiet --python .venvs/checkov/bin/python --require-hashes $<
	@touch $@

.SECONDEXPANSION:
.venvs/%/.installed: $$(FOLDER_$$*)/requirements.lock .venvs/setup/.installed
	@echo "set-up: $* (.venvs/$*)"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON_FOR_VENV) .venvs/$*
	@$(UV) pip sync --quiet --python .venvs/$*/bin/python --require-hashes $<
	@touch $@

# --- Locks ------------------------------------------------------------------

COMPILE = $(UV) pip compile pyproject.toml --quiet --python-version 3.11 --generate-hashes --no-header

.PHONY: lock
lock: .venvs/setup/.installed ## Resolve every lock anew (UPGRADE=1 for newer releases)
	@for name in $(DEPLOYABLES); do \
	  case $$name in mlflow-server) out=mlflow_server ;; ui) out=ui ;; *) out=functions/$$name ;; esac; \
	  echo "lock: $$out"; \
	  $(COMPILE) $(if $(UPGRADE),--upgrade) --extra $$name --output-file $$out/requirements.lock; \
	done
	@echo "lock: trainer"; $(COMPILE) $(if $(UPGRADE),--upgrade) --extra trainer --output-file trainer/requirements.lock
	@echo "lock: trainer on GPUs"; echo "$(TORCH)" | $(UV) pip compile - pyproject.toml --quiet --no-config \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header \
	  --extra trainer --constraints trainer/requirements.lock --output-file trainer/requirements-gpu.lock
	@echo "lock: development"; $(COMPILE) $(if $(UPGRADE),--upgrade) --extra dev --output-file requirements-dev.lock
	@echo "lock: compiler of predict"; $(COMPILE) $(if $(UPGRADE),--upgrade) --extra predict-build --output-file functions/predict/build.lock
	@echo "lock: checkov"; $(COMPILE) $(if $(UPGRADE),--upgrade) --extra checkov --output-file terraform/checkov.lock
	@echo "lock: installer"; $(COMPILE) $(if $(UPGRADE),--upgrade) --extra setup --output-file requirements-setup.lock
