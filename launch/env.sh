# shellcheck shell=bash
# Source this file; `make_env EXTRA…` creates the project's environment and puts it on PATH.
#
# It creates .venv at the project root and installs the package, editable, with the extras named. It
# does nothing if they are installed: a stamp in .venv holds the hash of what they were made from.
#   PYTHON=/path/to/python   the interpreter to use; otherwise the first one >= 3.11 found on PATH

TPO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

find_python() {
  local name names=(python3.11 python3.12 python3.13 python3 python)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")
  for name in "${names[@]}"; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "launch: no Python >= 3.11 found (tried: ${names[*]}). Install one, or set it:" \
    "PYTHON=/path/to/python bash $0" >&2
  return 2
}

make_env() {
  local extras hash stamp python venv="$TPO_ROOT/.venv"
  extras="$(IFS=,; echo "$*")"
  # The directory is part of the hash: an environment cannot be moved.
  hash="$( (echo "$TPO_ROOT"; cat "$TPO_ROOT/setup.py") | cksum)"
  stamp="$venv/.made-for-${extras:-nothing}"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]; then
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
      python="$(find_python)" || return
      echo "launch: creating $venv with $("$python" --version)" >&2
      if ! "$python" -m venv --clear "$venv" >&2; then
        echo "launch: $python cannot create an environment; on Debian and Ubuntu install its venv" \
          "package (python3-venv)" >&2
        return 2
      fi
    fi
    echo "launch: installing tpo_jax${extras:+[$extras]}, some minutes on a fresh machine" >&2
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
      -e "$TPO_ROOT${extras:+[$extras]}" </dev/null >&2 || return
    echo "$hash" >"$stamp"
  fi
  export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
}
