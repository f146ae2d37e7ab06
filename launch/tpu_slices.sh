# shellcheck shell=bash
# Source this file: the TPU slices of launch/tpu_run.sh, which sets the variables that begin it: how
# they are asked for, watched, reached and given back. Several slices are one queued resource; Google
# names its nodes NAME-0, NAME-1, … and tells every machine the number of slices and its own.

: "${name?}" "${where?}" "${accelerator?}" "${runtime?}" "${spot?}" "${slices?}" "${dry_run?}"
: "${poll_seconds?}" "${root?}" "${scratch?}"

exec 3>&1
run() { # every command with an effect goes through here
  if [ -n "$dry_run" ]; then
    { printf '%q' "$1" && printf ' %q' "${@:2}" && echo; } >&3
  else
    "$@" </dev/null
  fi
}
tpus() { run gcloud compute tpus "$@"; }

# --- reaching them -------------------------------------------------------------------------------

on() { # NODE WORKER ACTION [ARG…]: tpu_worker.sh there
  local command node="$1" worker="$2"
  shift 2
  command="$(printf '%q ' bash tpu_worker.sh "$@")"
  tpus tpu-vm ssh "$node" "${where[@]}" --quiet "--worker=$worker" "--command=${command% }"
}

copy() { # to one slice after the other: the first connection makes gcloud's SSH key
  local node
  for node in "${nodes[@]}"; do
    tpus tpu-vm scp "$scratch/tpo_jax.tar.gz" "$root/launch/tpu_worker.sh" "$node:" "${where[@]}" \
      --quiet --worker=all || return
  done
}

each() { # FUNCTION [ARG…]: FUNCTION NODE ARG… for all nodes at once; 2 if one returns that
  local node pid code=0 failure=0 pids=()
  if [ "${#nodes[@]}" = 1 ]; then
    "$1" "${nodes[0]}" "${@:2}"
    return
  fi
  for node in "${nodes[@]}"; do
    "$1" "$node" "${@:2}" &
    pids+=($!)
    [ -z "$dry_run" ] || wait "$!" # so that the lines come in order
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    [ "$failure" = 2 ] || [ "$code" = 0 ] || failure="$code"
  done
  return "$failure"
}

states() { # what the commands of all workers are: running, gone or an exit status; each word once
  local words
  words="$(each on all state)" && sort -u <<<"$words"
}

# --- asking for them and giving them back --------------------------------------------------------

describe() { # queued-resources|tpu-vm NAME FIELDS: their values, NOT_FOUND if there is none
  if [ -n "$dry_run" ]; then
    tpus "$1" describe "$2" "${where[@]}" "--format=value($3)"
  elif ! tpus "$1" describe "$2" "${where[@]}" "--format=value($3)" 2>"$scratch/error"; then
    grep -q NOT_FOUND "$scratch/error" || { cat "$scratch/error" >&2 && return 1; }
    echo NOT_FOUND
  fi
}

name_nodes() { # SLICES: set `nodes`
  local i
  nodes=("$name")
  [ "$1" = 1 ] || for ((i = 0; i < $1; i++)); do nodes[i]="$name-$i"; done
}

# Set `request` to the state Google reports, `node` to that of the slice that is furthest from ready,
# `nodes` to the names of the slices, and `state` to absent, waiting, ready or lost.
dry_state=absent
look() {
  local count="" slice found type
  request="$(describe queued-resources "$name" \
    'state.state,tpu.nodeSpec[0].multisliceParams.nodeCount')" || return
  read -r request count <<<"$request" || true
  if [ -n "$count" ] || [[ "$request" != @(|NOT_FOUND) ]]; then
    [ "${slices:-${count:-1}}" = "${count:-1}" ] ||
      fail 2 "$name is a request for ${count:-1} slices; another --slices needs another --name"
  fi
  name_nodes "${slices:-${count:-1}}"
  node=READY
  for slice in "${nodes[@]}"; do
    found="$(describe tpu-vm "$slice" 'state,acceleratorType')" || return
    read -r found type <<<"$found" || true
    [ "$found" != READY ] || [ "${type:-$accelerator}" = "${accelerator:-$type}" ] ||
      fail 2 "$name is already a $type; another --accelerator needs another --name"
    case "$node/$found" in
      READY/* | */PREEMPTED | */TERMINATED | */NOT_FOUND) node="$found" ;;
    esac
  done
  [ -z "$dry_run" ] || { state="$dry_state" && return; }
  case "$request/$node" in
    ACTIVE/READY) state=ready ;;
    NOT_FOUND/READY)
      [ "${#nodes[@]}" = 1 ] || fail 2 "${nodes[0]} is there, but of no request for several slices"
      state=ready
      ;;
    NOT_FOUND/NOT_FOUND) state=absent ;;
    FAILED/* | SUSPENDED/* | ACTIVE/NOT_FOUND | */PREEMPTED | */TERMINATED) state=lost ;;
    *) state=waiting ;;
  esac
}

delete_slices() {
  if [ "$request" = NOT_FOUND ]; then
    tpus tpu-vm delete "$name" "${where[@]}" --quiet
  else
    tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  fi
  dry_state=absent
}

create_slices() {
  local which=("--node-id=$name")
  [ "${#nodes[@]}" = 1 ] || which=("--node-count=${#nodes[@]}" "--node-prefix=$name")
  # shellcheck disable=SC2154
  tpus queued-resources create "$name" "${which[@]}" "${where[@]}" \
    "--accelerator-type=$accelerator" "--runtime-version=$runtime" ${spot:+--spot} \
    ${create_flags[@]+"${create_flags[@]}"} ||
    fail 1 "Google refused the request for $name, see above (quota, zone, rights: docs/tpu.md)"
  dry_state=ready
}

MISSES=10 misses=0 reached=""
missed() { # MESSAGE: something did not answer; give up after MISSES times in a row
  [ -n "$reached" ] && [ $((misses += 1)) -lt $MISSES ] || fail 1 "$1"
  sleep "$poll_seconds"
}

provision() { # return when all slices are ready
  local created="" said=""
  while :; do
    if ! look; then
      missed "gcloud cannot say what $name is, see above; logged in? right project and zone?"
      continue
    fi
    reached=yes
    case "$state" in
      ready)
        misses=0
        return
        ;;
      absent)
        note "requesting $name, ${#nodes[@]} x $accelerator${spot:+, spot}"
        create_slices
        created=yes
        ;;
      lost)
        [ -z "$created" ] || [ "$request" != FAILED ] ||
          fail 1 "the request failed: gcloud compute tpus queued-resources describe $name ${where[*]}" \
            "says why, --delete removes it"
        note "$name is lost ($request, $node): creating it again"
        delete_slices || missed "$name cannot be deleted, see above"
        ;;
      waiting)
        [ "$said" = "$request/$node" ] || note "waiting for $name: $request, $node"
        said="$request/$node"
        sleep "$poll_seconds"
        ;;
    esac
  done
}
