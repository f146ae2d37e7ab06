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

# The scorers are compared with the published lmms-eval of three eras, whose task files are read from
# folders of their own: nothing of what the package depends on is needed.
published() { # VERSION -> its folder
  local folder="$VIRTUAL_ENV/lmms-eval-$1"
  [ -d "$folder/lmms_eval" ] ||
    python -m pip install -qq --disable-pip-version-check --no-deps --target="$folder" \
      "lmms-eval==$1" </dev/null >&2 || return
  echo "$folder"
}
if today="$(published 0.7.3)" && last="$(published 0.7.1)" && between="$(published 0.3.5)" &&
  first="$(published 0.3.0)"; then
  export LMMS_EVAL="${LMMS_EVAL:-$today}"
  export LMMS_EVAL_0_3_2="${LMMS_EVAL_0_3_2:-$between:$last:$today}"
  export LMMS_EVAL_PAPER_ERA="${LMMS_EVAL_PAPER_ERA:-$first:$last:$today}"
else
  echo "launch: WARNING: lmms-eval could not be installed; the tests that need it will skip" >&2
fi

lint=0 tests=0
bash launch/lint.sh </dev/null || lint=$?
# Two processes; tests/conftest.py says which tests stay together and in which order. One that dies
# is not replaced: pytest-xdist then waits forever where tests are given out by file.
python -m pytest -n 2 --no-loadscope-reorder --max-worker-restart=0 "$@" </dev/null || tests=$?
[ "$lint" = 0 ] || echo "launch/test.sh: the linters failed, see above pytest's output" >&2
exit $((lint || tests))
