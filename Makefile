# Everything a contributor types. Each target first installs what is missing into .venv; all it needs is Python 3.11.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run peers dataset runs ui test test-all test-deploy lint audit bench bench-gpu docs constraints clean-venv

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEPLOY := $(VENV)/.installed-deploy
DOCS := $(VENV)/.installed-docs
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# `cpu` or `gpu`; once installed it stays until the other is asked for. The stamp file remembers.
EXTRA := $(or $(shell cat $(STAMP) 2>/dev/null),cpu)
OTHER := $(if $(filter gpu,$(EXTRA)),cpu,gpu)

# Set them as environment variables or as make arguments.
DATASET ?= demo
TRACK ?= everything
CONFIG ?= {}
PART ?= matmul
NPROC ?= $(RAREC_NPROC)
RAREC_NPROC := $(NPROC)
export CONFIG
export RAREC_DATA
export RAREC_NPROC

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "TRACK:    everything, raserec, rella; ingest, recommend, drift, refresh, finetune, pretrain, promote, rollback; drift_rella, tune, promote_rella; sweep, sweep_rella; peers, peers_rella; clean"
	@echo "Settings: make run DATASET=ml-100k TRACK=raserec RAREC_DATA=folder NPROC=2 CONFIG='{\"raserec_finetuned\": {\"memories\": 50}}'"
	@echo "          EXTRA=gpu with any target installs the GPU build of Faiss instead of the CPU one."

run: $(STAMP)  ## run a job of a data set, ending with its figures (DATASET, TRACK, CONFIG, NPROC, RAREC_DATA)
	@$(BIN)/python -m pipelines.run --dataset '$(DATASET)' --track '$(TRACK)' --config "$$CONFIG"

# RecTools needs an older pandas, so it and its like have an environment of their own.
PEERS := benchmarks/peers/.venv
$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip install --quiet -r benchmarks/peers/requirements.txt
	@touch $@

peers: $(STAMP) $(PEERS)/.installed  ## train models of other libraries on the split of DATASET, and set them beside ours (TRACK=rella: click models)
	@$(BIN)/python -m pipelines.run --dataset '$(DATASET)' --track $(if $(filter rella,$(TRACK)),peers_rella,peers) --config "$$CONFIG"

dataset: $(STAMP)  ## look into FILE (a file, a pattern or a folder of parts) and write its data set's declaration (ITEMS, USERS, NAME)
	@$(BIN)/python -m rarec.data.formats.declaring "$(FILE)" --items "$(ITEMS)" --users "$(USERS)" --name "$(NAME)"

runs: $(STAMP)  ## list the newest MLflow runs with their main figures
	@$(BIN)/python -m pipelines.runs

ui: $(STAMP)  ## Dagster and MLflow pages on this machine, until Ctrl-C (DAGSTER_PORT, MLFLOW_PORT)
	@$(BIN)/python -m pipelines.ui

test: $(STAMP)  ## the tests that need no real data, in minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: export RAREC_DATA := $(or $(RAREC_DATA),$(abspath $(wildcard ../shared/datasets)))
test-all: $(STAMP)  ## all tests, with the real data sets under RAREC_DATA (default: ../shared/datasets)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not deploy"

test-deploy: $(DEPLOY)  ## the deployment of docker/: its files linted, its services run as processes with Postgres and MLflow
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deploy tests/deploy

lint: $(STAMP)  ## ruff, mypy and audit
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory audit

# Without its service nothing is known, which is no fault of the code; pip-audit finds no fault in what it was told nothing of.
audit: $(STAMP)  ## known vulnerabilities of the pinned packages, where the network lets pip-audit ask
	@said=$$(timeout 300 $(BIN)/pip-audit --progress-spinner off --timeout 5 --no-deps --disable-pip -r requirements/constraints.txt 2>&1); \
	 code=$$?; all=$$(grep -c == requirements/constraints.txt); unknown=$$(grep -c "could not be audited" <<< "$$said"); \
	 if grep -q "known vulnerabilit" <<< "$$said" && [ $$unknown -lt $$all ]; then \
	   grep -v "could not be audited\|Skip Reason\|^WARNING\|^[- ]*$$" <<< "$$said"; \
	   [ $$unknown -eq 0 ] || echo "audit: the service told nothing of $$unknown of $$all packages"; exit $$code; \
	 else echo "audit: not done, the service told nothing: $$(tail -n 1 <<< "$$said" | cut -c -150)"; fi

bench: $(STAMP)  ## measure speed and scale; results go to benchmarks/results
	@$(BIN)/python -m benchmarks --record

bench-gpu: $(STAMP)  ## measure a part on this machine's GPU (PART, ARGS; docs/gpu.md); results go to benchmarks/results
	@$(BIN)/python -m benchmarks.gpu $(PART) $(ARGS)

docs: $(DOCS)  ## build the documentation into build/docs; fails on a dead link, or if a generated table is out of date
	@$(BIN)/python -m benchmarks.quality.headlines --check
	@$(BIN)/python -W ignore docs/reference.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/docs/index.html"

install: $(STAMP)  ## .venv with everything the other targets need (EXTRA=cpu or gpu)

ifneq ($(EXTRA),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml requirements/constraints.txt
	@echo "Installing RaRec with extra '$(EXTRA)' into $(VENV): minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@! $(BIN)/pip show --quiet faiss-$(OTHER) 2>/dev/null || $(BIN)/pip uninstall --quiet --yes faiss-cpu faiss-gpu
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[$(EXTRA),dev]"
	@echo $(EXTRA) > $@

$(DEPLOY): $(STAMP)
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || \
	 { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends postgresql; }
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[$(EXTRA),dev,deploy,kubernetes,deploy-test]"
	@touch $@

$(DOCS): $(STAMP)
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[$(EXTRA),dev,docs]"
	@touch $@

# Torch without its local tag and no CUDA packages: both follow from where pip finds torch, not from this list.
constraints: $(DEPLOY) $(DOCS)  ## write requirements/constraints.txt from what is installed now
	@{ echo "# A set of versions that works together; pip install -c requirements/constraints.txt -e \".[cpu,dev]\""; \
	   echo "# Written by \`make constraints\` from the .venv in use; change versions there, run the tests, then run it again."; \
	   $(BIN)/pip freeze --exclude-editable | grep -Eiv '^(#|-e|cuda-|nvidia-|triton|faiss-gpu)|@' | sed 's/+[a-z0-9.]*$$//'; \
	 } > requirements/constraints.txt.new
	@mv requirements/constraints.txt.new requirements/constraints.txt
	@touch $(STAMP) $(DEPLOY) $(DOCS)

clean-venv:  ## remove .venv, for a fresh install
	rm -rf $(VENV)
