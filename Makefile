# Plain `make` lists the targets. PYTHON=python3.9 chooses the interpreter.

PYTHON ?= python3
PYTEST = pytest>=8,<9
RUFF = ruff==0.17.5

PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# One environment an interpreter version, so that runs on several do not clash.
VENV = .venv/$(PYTHON_VERSION)
VENV_PYTHON = $(VENV)/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --no-cache-dir

.PHONY: help run test canary test-clients torture bench bench-peers single release lint image env clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

run: ## start the proxy from the package
	$(PYTHON) -m claude_proxy

test: $(VENV)/pytest ## run the whole suite, in an environment of its own; ARGS="-k name" for less
ifeq ($(ARGS),)
	@$(VENV_PYTHON) tests/parts.py
else
	$(VENV_PYTHON) -m pytest $(ARGS)
endif

canary: $(VENV)/pytest ## run the whole suite at DEBUG and search all output for its keys and prompts
	$(VENV_PYTHON) tests/canary_suite.py

test-clients: $(VENV)/pytest ## drive the real Claude Code, SDKs, LiteLLM and llama.cpp through the proxy
	$(VENV_PYTHON) tests/clients/run.py

bench: ## measure beside nginx, two minutes; ARGS="--full" for all of it, 15 minutes
	$(PYTHON) tests/bench/run.py --quick $(ARGS)

bench-peers: ## measure beside other proxies too, which are installed outside; ARGS as for bench
	$(PYTHON) tests/bench/peers.py $(ARGS)

torture: ## show that the proxy stays up under abuse: gigabytes, thousands, signals (Linux, 6 minutes)
	$(PYTHON) tests/torture/run.py $(ARGS)

single: ## write claude_api_proxy.py from claude_proxy/
	$(PYTHON) -m claude_proxy.amalgamate

# Of the commit, so that the same commit is the same release.
RELEASE_TIME := $(shell git log -1 --format=%ct 2>/dev/null)

release: ## write the file, its licence, SHA256SUMS and bill of materials into dist/
	$(PYTHON) -m claude_proxy.release $(if $(RELEASE_TIME),--time $(RELEASE_TIME))

lint: $(VENV)/ruff ## check style and common mistakes
	$(VENV_PYTHON) -m ruff check --output-format concise .

image: ## build the container image
	docker build --tag claude-proxy .

env: ## write .env.example from the table of settings
	$(PYTHON) -m claude_proxy --print-env-example > .env.example.new
	mv .env.example.new .env.example

clean: ## remove environments and caches
	rm -rf .venv .pytest_cache .ruff_cache build dist *.egg-info .env.example.new
	find claude_proxy tests -name __pycache__ -prune -exec rm -rf {} +

# The files are stamps: made once, and again when the versions above change.
$(VENV)/made: Makefile
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/pytest: $(VENV)/made
	$(PIP_INSTALL) "$(PYTEST)"
	@touch $@

$(VENV)/ruff: $(VENV)/made
	$(PIP_INSTALL) "$(RUFF)"
	@touch $@
