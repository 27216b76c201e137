#!/bin/sh
# Static analysis of the contract: every finding must be explained in contracts/SLITHER.md. Called by `make slither`.
# Slither needs an older web3 than this project, so it gets a virtual environment of its own.
set -eu
cd "$(dirname "$0")/.."
venv=${SLITHER_VENV:-.venv-slither}
if [ ! -d node_modules/solc ]; then
    echo "the Solidity compiler is not installed: run \`npm ci\`" >&2
    exit 1
fi
if [ ! -x "$venv/bin/slither" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check slither-analyzer==0.11.6
fi
exec "$venv/bin/python" tools/slither_findings.py
