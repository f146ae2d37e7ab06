#!/usr/bin/env bash
# Run linter, formatter, type checker and the linter of these scripts; all of them even if one fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
make_env test

status=0
ruff check . || status=1
ruff format --check . || status=1
mypy || status=1
shellcheck -x launch/*.sh || status=1
exit $status
