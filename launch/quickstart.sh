#!/usr/bin/env bash
# Fresh machine -> environment -> the whole method on the synthetic world -> report.
# Arguments go to the command: bash launch/quickstart.sh --workdir=DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
# shellcheck disable=SC2119 # the arguments are the command's
make_env
exec python -m tpo_jax.quickstart "$@" </dev/null
