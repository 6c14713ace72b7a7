# Works with GNU make 3.81 (macOS) and later. `make` alone lists the targets.

PYTHON ?= python3
CHROMIUM ?= /usr/bin/chromium
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A prompt may hold quotes, spaces and $. It goes to the shell through the environment, and
# $(value) keeps make from expanding it on the way.
override IMAGE := $(value IMAGE)
override PROMPT := $(value PROMPT)
export IMAGE PROMPT CHROMIUM

.PHONY: help setup setup-dev demo up test test-integration test-drills drill drill-matrix drill-soak test-browser lint format \
	types check wheel bench docs clean services test-api test-models test-gpu \
	bench-models test-convex types-convex test-long
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

# --- set up -------------------------------------------------------------------------------------

setup: $(VENV)/.setup ## Make .venv with what stillreel needs to run

setup-dev: $(VENV)/.setup-dev ## Make .venv with what tests and checks need too

$(VENV)/.setup: pyproject.toml constraints.txt $(BIN)/pip
	@echo "Installing stillreel into $(VENV) ..."
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.setup-dev: pyproject.toml constraints.txt $(BIN)/pip
	@echo "Installing stillreel and its development tools into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[dev,models,c2pa]'
	@touch $(VENV)/.setup $@

# pip is the last thing that `venv` makes, so a half-made .venv is made again.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. Debian, Ubuntu:" >&2; \
	  echo "  sudo apt-get install -y git make python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stillreel needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Install a later one and name it, for example: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. Debian, Ubuntu:" >&2; \
	  echo "  sudo apt-get install -y git make python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# --- use ----------------------------------------------------------------------------------------

demo: $(VENV)/.setup ## Make a video into demo/ (IMAGE=photo.jpg PROMPT="slow zoom in")
	@mkdir -p demo && \
	set -- --output demo; \
	if [ -n "$$PROMPT" ]; then set -- "$$@" --prompt="$$PROMPT"; fi; \
	if [ -n "$$IMAGE" ]; then set -- "$$@" -- "$$IMAGE"; else set -- "$$@" --scene; fi; \
	exec $(BIN)/stillreel generate "$$@"

up: $(VENV)/.setup ## Run everything on this machine: Prefect, deployments, one host
	@exec $(BIN)/stillreel up

# --- check --------------------------------------------------------------------------------------

test: $(VENV)/.setup-dev ## Run the unit, fleet, workflow and model tests (ARGS="-k encoder")
	@$(BIN)/python -m pytest $(ARGS)

test-api: $(VENV)/.setup-dev ## Run the tests of the HTTP API, on a real Prefect server
	@$(BIN)/python -m pytest tests/api $(ARGS)

test-models: $(VENV)/.setup-dev ## Of these only the AI models, on tiny ones made on the spot
	@$(BIN)/python -m pytest tests/models $(ARGS)

test-gpu: $(VENV)/.setup-dev ## Run the AI models in their real size on this machine's GPU
	@$(BIN)/python -m pytest tests/gpu $(ARGS)

services: ## Install what integration tests start: servers (Debian; uses sudo), SDKs
	@tests/services/install.sh
	@$(PYTHON) -m venv .venv-vastai && .venv-vastai/bin/pip install --quiet vastai==1.9.1
	@.venv-vastai/bin/pip install --quiet --no-deps --upgrade --target .server-packages \
	  -r infra/docker/server-requirements.txt

test-integration: $(VENV)/.setup-dev ## Run the tests with real servers, workers and hosts
	@$(BIN)/python -m pytest tests/integration $(ARGS)

test-drills: $(VENV)/.setup-dev ## Run the drills: kill, starve and corrupt, then look
	@$(BIN)/python -m pytest tests/drills $(ARGS)

drill: $(VENV)/.setup-dev ## Run all drills, those of several minutes too
	@$(BIN)/python -m pytest tests/drills -m 'long or not long' $(ARGS)

test-long: $(VENV)/.setup-dev ## Run the tests that CI leaves out (before a release; hours)
	@$(BIN)/python -m pytest tests -m long $(ARGS)

drill-matrix: $(VENV)/.setup-dev ## Kill each part in each stage of a job; goes on where it was (hours)
	@$(BIN)/python -m tests.drills.matrix $(ARGS)

drill-soak: $(VENV)/.setup-dev ## Many jobs on three hosts, and something dies every few seconds
	@$(BIN)/python -m tests.drills.soak $(ARGS)

test-browser: $(VENV)/.setup-dev ## Run the tests in a real browser (needs chromium)
	@[ -x "$$CHROMIUM" ] || { \
	  echo "There is no $$CHROMIUM. Debian: sudo apt-get install -y chromium" >&2; \
	  echo "Elsewhere name yours: make test-browser CHROMIUM=/path/of/chromium" >&2; exit 1; }
	@$(BIN)/python -m pytest tests/browser $(ARGS)

test-convex: $(VENV)/.setup-dev ## Test the Convex package, across to the API and a browser
	@PYTHON=$(PYTHON) convex/scripts/with-node.sh npm --prefix convex run --silent check
	@[ -x "$$CHROMIUM" ] || { \
	  echo "There is no $$CHROMIUM. Debian: sudo apt-get install -y chromium" >&2; exit 1; }
	@PYTHON=$(PYTHON) convex/scripts/with-node.sh $(BIN)/python -m pytest tests/convex $(ARGS)

types-convex: $(VENV)/.setup-dev ## Write the types of the client in TypeScript anew from the API
	@PYTHON=$(PYTHON) convex/scripts/with-node.sh $(BIN)/python -m tests.convex.openapi

lint: $(VENV)/.setup-dev ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.setup-dev ## Put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.setup-dev ## Check types
	@$(BIN)/pyright

check: lint types test ## Lint, types and test: what a change has to pass

wheel: $(VENV)/.setup-dev ## Build the wheel and prove it outside this directory
	@rm -rf dist
	@$(BIN)/python -m build --wheel
	@tests/packaging/check_wheel.sh

bench: $(VENV)/.setup-dev ## Measure encoder, overlap and API; prints tables (20 minutes)
	@$(BIN)/python -m bench $(ARGS)

bench-models: $(VENV)/.setup-dev ## Measure the AI models on this machine's GPU, without weights
	@$(BIN)/stillreel models bench $(ARGS)

docs: $(VENV)/.setup ## Write docs/settings.md anew from the code
	@$(BIN)/python -m stillreel.settings_docs

clean: ## Remove what was built and measured (.venv stays)
	@rm -rf build dist convex/build convex/dist demo .pytest_cache .ruff_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
