#!/bin/sh
# Says what is missing before pip fails with a page of compiler output. Installs it where it may (root, apt).
python="$1"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || {
  echo "setup: $python is not there; set PYTHON=/path/to/python3.11 (3.11 to 3.13)" >&2
  exit 1
}
case "$version" in
  3.11 | 3.12 | 3.13) ;;
  *) echo "setup: $python is Python $version; this project supports 3.11 to 3.13 (set PYTHON=...)" >&2; exit 1 ;;
esac
"$python" -c 'import venv, ensurepip' 2>/dev/null || {
  echo "setup: $python cannot make virtual environments; install python$version-venv" >&2
  exit 1
}
missing=""
command -v gcc >/dev/null 2>&1 || missing="$missing gcc"
# libp2p's fastecdsa is built from source against GMP
if command -v gcc >/dev/null 2>&1; then
  echo '#include <gmp.h>' | gcc -E - >/dev/null 2>&1 || missing="$missing libgmp-dev"
else
  missing="$missing libgmp-dev"
fi
echo '#include <Python.h>' | gcc -E -I"$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - \
  >/dev/null 2>&1 || missing="$missing python$version-dev"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "setup: installing$missing (needed to build fastecdsa)"
  # shellcheck disable=SC2086
  apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "setup: missing:$missing" >&2
echo "  on Debian or Ubuntu: sudo apt-get install$missing" >&2
exit 1
