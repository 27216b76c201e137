#!/bin/sh
# Runs the tests of protocol/, node/ and simulation/ on Python 3.12 and 3.13, each in an environment of its own
# without torch. A version that is not on this machine is named and passed over; with none, it is a failure.
set -eu
ran=0
for version in 3.12 3.13; do
  python=$(command -v "python$version" || true)
  # pyenv keeps a shim for versions that are not switched on: it is there and cannot be run
  "${python:-false}" -c '' 2>/dev/null || python=""
  if [ -z "$python" ]; then
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
      [ -x "$candidate" ] && python="$candidate"
    done
  fi
  if [ -z "$python" ]; then
    echo "Python $version is not installed: passed over"
    continue
  fi
  environment=".venv-$version"
  if [ ! -e "$environment/.installed" ] || [ constraints.txt -nt "$environment/.installed" ]; then
    sh tools/setup_check.sh "$python"
    "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e ".[parquet]" \
      hypothesis pytest pytest-asyncio pytest-timeout py-cid numba
    touch "$environment/.installed"
  fi
  echo "Python $version:"
  "$environment/bin/python" -m pytest -p no:cacheprovider tests/protocol tests/node tests/simulation tests/test_layers.py
  ran=$((ran + 1))
done
[ "$ran" -gt 0 ] || { echo "neither Python 3.12 nor 3.13 is installed" >&2; exit 1; }
