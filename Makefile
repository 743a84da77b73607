# Everything a person or CI does with the project. Needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
XDIST ?= -n 2

.PHONY: setup dev run demo test test-node check format bench lock clean

setup: $(VENV)/.runtime

dev: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "K1.Node needs Python 3.11 or newer; name one: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt | $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@

$(VENV)/.contract: requirements-contract.txt | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-contract.txt
	touch $@

run: setup
	@exec $(BIN)/python manage.py up

demo: setup
	$(BIN)/python manage.py demo

# SQLite first, then PostgreSQL; `node` tests start real processes and kill them.
test: dev
	$(BIN)/python -m tests.both $(XDIST) -m "not node"

test-node: dev
	$(BIN)/python -m tests.both -m node -p no:randomly

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py -p no:randomly
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python -m tests.deploy_check

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
