#!/usr/bin/env bash
# Linter, formatter and type checker, all three even when the first one complains.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
make_env test

status=0
ruff check . || status=1
ruff format --check . || status=1
mypy || status=1
exit $status
