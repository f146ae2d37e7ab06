#!/usr/bin/env bash
# Fresh machine -> environment -> linters, types and all tests. Fails when any of them does; ends with
# pytest's closing line. Arguments go to pytest: bash launch/test.sh tests/data -k sampling
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
make_env test

# The parity tests compare with PyTorch, the ahead-of-time tests compile with the real TPU compiler.
# Neither belongs to the package: without them those tests skip and say so.
optional() { # MODULE REQUIREMENT
  python -c "import importlib.metadata as m; m.version('$1')" 2>/dev/null && return
  echo "launch: installing $2 for the tests" >&2
  python -m pip install -qq --disable-pip-version-check "$2" </dev/null >&2 ||
    echo "launch: WARNING: $2 could not be installed; the tests which need it will skip" >&2
}
optional torch torch==2.13.0
optional libtpu libtpu==0.0.51

failed=()
step() {
  echo "== $*" >&2
  "$@" </dev/null || failed+=("$1${2:+ $2}")
}
step ruff check .
step ruff format --check .
step mypy
# Two processes; tests that share one resource (a marker turned into a group) stay in one of them.
step python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadgroup "$@"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'launch/test.sh failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
