#!/usr/bin/env bash
# Fresh machine -> environment -> linters, types and all tests. Fails when any of them does.
# Arguments go to pytest: bash launch/test.sh tests/data -k sampling
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
make_env test

# The parity tests compare with PyTorch, the ahead-of-time tests compile with the real TPU compiler.
# Neither belongs to the package: without them those tests skip and say so.
optional() { # DISTRIBUTION VERSION
  python -c "import importlib.metadata as m; m.version('$1')" 2>/dev/null && return
  echo "launch: installing $1 $2 for the tests" >&2
  python -m pip install -qq --disable-pip-version-check "$1==$2" </dev/null >&2 ||
    echo "launch: WARNING: $1 $2 could not be installed; the tests that need it will skip" >&2
}
optional torch 2.13.0
optional libtpu 0.0.51

lint=0 tests=0
bash launch/lint.sh </dev/null || lint=$?
# Two processes; tests that share one resource (the marker tpu_compiler) stay in one of them.
python -m pytest -n 2 --dist loadgroup "$@" </dev/null || tests=$?
[ "$lint" = 0 ] || echo "launch/test.sh: the linters failed, see above pytest's output" >&2
exit $((lint || tests))
