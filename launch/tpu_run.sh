#!/usr/bin/env bash
# Run a command of this project on a Cloud TPU VM or slice, on all its workers, and restart it after
# preemption. docs/tpu.md is the tutorial.
set -euo pipefail

usage() {
  cat <<'USAGE'
bash launch/tpu_run.sh --name=NAME --zone=ZONE --accelerator=TYPE [FLAG…] -- COMMAND [ARG…]
bash launch/tpu_run.sh --name=NAME --zone=ZONE --stop | --delete

Creates the slice NAME (or uses the existing one), installs a commit of this checkout, runs
`python -m tpo_jax.COMMAND ARG…` on all workers, shows the log of worker 0 and, if the slice is
preempted, creates it again and runs the same command. An ARG gs://BUCKET/PATH, or --flag=gs://…,
becomes a path below a mount of that bucket.

  --accelerator=TYPE      v5litepod-16, v5p-8, v6e-8, v4-8, …
  --slices=N              so many of them, NAME-0, NAME-1, …, that train together; if one is lost,
                          all start again from the last checkpoint
  --spot                  preemptible capacity, at a lower price
  --project=PROJECT       otherwise gcloud's own setting
  --revision=COMMIT       commit, branch or tag of this checkout to install (HEAD)
  --runtime=VERSION       software of the TPU VM, otherwise the usual one for TYPE
  --env=NAME=VALUE        environment variable of the command; may be repeated
  --create_flag=FLAG      passed on to `queued-resources create`, or to `xpk workload create`; may be
                          repeated
  --delete_when_done      delete the slice when the command has ended, successfully or not
  --stop                  end what runs on NAME; a training run writes a checkpoint first
  --delete                delete NAME
  --dry_run               print every command, run none
  --poll_seconds=30       how often to look
  --backend=xpk --cluster=CLUSTER   the same as a workload of a GKE cluster
USAGE
}

fail() { # CODE MESSAGE…
  local code="$1"
  shift
  echo "launch/tpu_run.sh: $*" >&2
  exit "$code"
}
note() { echo "tpu_run: $*" >&2; }

# --- flags ---------------------------------------------------------------------------------------

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
name="" zone="" project="" accelerator="" runtime="" revision=HEAD backend=tpu-vm cluster=""
action=run slices="" spot="" delete_when_done="" dry_run="" poll_seconds=30
create_flags=() job=() # arguments of the worker: [NAME=VALUE…] -- COMMAND [ARG…]

while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --revision=*) revision="${1#*=}" ;;
    --backend=*) backend="${1#*=}" ;;
    --cluster=*) cluster="${1#*=}" ;;
    --poll_seconds=*) poll_seconds="${1#*=}" ;;
    --create_flag=*) create_flags+=("${1#*=}") ;;
    --env=*)
      [[ "${1#*=}" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail 2 "$1: write --env=NAME=VALUE"
      job+=("${1#*=}")
      ;;
    --spot) spot=yes ;;
    --delete_when_done) delete_when_done=yes ;;
    --dry_run) dry_run=yes ;;
    --stop | --delete)
      [ "$action" = run ] || fail 2 "give one of --stop and --delete"
      action="${1#--}"
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail 2 "unknown flag $1; see --help (the command and its arguments come after --)" ;;
  esac
  shift
done

[[ "$name" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  fail 2 "--name='$name': needed, lower case letters, digits and hyphens, at most 63"
[ -n "$zone" ] || fail 2 "--zone is needed, for instance --zone=us-west4-a"
[[ "${slices:-1}" =~ ^[1-9][0-9]{0,2}$ ]] || fail 2 "--slices=$slices is not a number of slices"
[[ "$poll_seconds" =~ ^[0-9]+$ ]] || fail 2 "--poll_seconds=$poll_seconds is not a whole number"
case "$backend" in
  tpu-vm)
    [ -z "$cluster" ] || fail 2 "--cluster belongs to --backend=xpk"
    tool=gcloud own='node-.*|accelerator-type|runtime-version|spot|zone|project'
    ;;
  xpk)
    [ -n "$cluster" ] || fail 2 "--backend=xpk needs --cluster"
    if [ -n "$spot$runtime$delete_when_done" ] || [ "$action" = stop ]; then
      fail 2 "--backend=xpk takes no --spot, --runtime, --stop or --delete_when_done"
    fi
    tool=xpk own='workload|cluster|tpu-type|num-slices|command|zone|project'
    ;;
  *) fail 2 "--backend=$backend is neither tpu-vm nor xpk" ;;
esac
for flag in ${create_flags[@]+"${create_flags[@]}"}; do
  ! [[ "$flag" =~ ^--($own)(=|$) ]] ||
    fail 2 "--create_flag=$flag: tpu_run.sh sets this itself; see --help for its own flags"
done
[ -n "$dry_run" ] || command -v "$tool" >/dev/null ||
  fail 2 "$tool is not on the PATH; docs/tpu.md says how to install it"

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
if [ -n "$dry_run" ]; then
  scratch=/tmp/tpo_jax_upload
else
  scratch="$(mktemp -d)"
  trap 'rm -rf "$scratch"' EXIT
fi

check_accelerator() {
  [ -n "$accelerator" ] || fail 2 "--accelerator is needed, for instance --accelerator=v5litepod-16"
  [ "$backend" = tpu-vm ] || return 0
  case "$accelerator" in
    v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
    v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
    v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
    v[23]-*)
      [ "$slices" = 1 ] || fail 2 "--slices=$slices: $accelerator works alone; v4 and later do not"
      : "${runtime:=tpu-ubuntu2204-base}"
      ;;
    v4-*) : "${runtime:=tpu-ubuntu2204-base}" ;;
    tpu7x*) fail 2 "--accelerator=$accelerator exists on GKE only: --backend=xpk" ;;
    *) fail 2 "--accelerator=$accelerator is none of v5litepod-N, v5p-N, v6e-N, v4-N, v3-N, v2-N" ;;
  esac
}

# Read the command's arguments into `job`, the buckets they name into `buckets`.
MOUNTS=/mnt/gcs
read_job() { # COMMAND [ARG…]
  local arg flag value bucket distributed="" workdir="" size="${accelerator##*-}"
  [ $# -gt 0 ] || fail 2 "which command? Put it after --, for instance -- train --config=…"
  commit="$(git -C "$root" rev-parse --verify --quiet "$revision^{commit}")" ||
    fail 2 "--revision=$revision is no commit of $root"
  if ! [[ "$1" =~ ^[a-z_]+$ ]] ||
    ! git -C "$root" grep -q __main__ "$commit" -- "tpo_jax/$1.py"; then
    fail 2 "there is no command '$1' in $revision"
  fi
  [ "$revision" != HEAD ] || git -C "$root" diff --quiet HEAD -- ||
    note "uncommitted changes stay here; the workers get $commit"
  buckets=()
  job+=(-- "$1")
  for arg in "${@:2}"; do
    flag="" value="$arg"
    [[ "$arg" != --*=* ]] || flag="${arg%%=*}=" value="${arg#*=}"
    if [[ "$value" == gs://* ]]; then
      bucket="${value#gs://}"
      bucket="${bucket%%/*}"
      [[ "$bucket" =~ ^[a-z0-9][-a-z0-9._]+[a-z0-9]$ ]] || fail 2 "$arg: not gs://BUCKET/PATH; a bucket has 3 to 63 lower-case letters, digits, - _ or ."
      [[ " ${buckets[*]-} " == *" $bucket "* ]] || buckets+=("$bucket")
      value="$MOUNTS/${value#gs://}"
    fi
    case "$flag" in
      --distributed=) distributed="$value" ;;
      --workdir=) workdir="$value" ;;
    esac
    job+=("$flag$value")
  done
  [ "$slices" = 1 ] || [ "$1" = train ] || fail 2 "--slices=$slices: only train spans slices"
  [[ "$1" =~ ^(train|rounds)$ ]] || return 0
  [ "$slices" = 1 ] || [ "$distributed" = auto ] ||
    fail 2 "--slices=$slices: add --distributed=auto to the arguments of train"
  [ -n "$distributed" ] || ! [[ "$size" =~ ^[0-9]+$ ]] || [ "$size" -le 8 ] ||
    fail 2 "$accelerator has several hosts: add --distributed=auto to the arguments of $1"
  [ -z "$spot" ] || [[ "$workdir" == "$MOUNTS"/* ]] ||
    fail 2 "--spot: preemption erases the TPU's disk; give $1 a --workdir=gs://BUCKET/PATH"
}

# shellcheck source=launch/tpu_slices.sh
source "$root/launch/tpu_slices.sh"

# --- the life of a run ---------------------------------------------------------------------------

attempt() { # WHAT COMMAND…: retry while the slices exist; 1 when they do not
  local code what="$1"
  shift
  while :; do
    code=0
    "$@" || code=$?
    case $code in
      0)
        misses=0
        return 0
        ;;
      2) fail 2 "the workers refused, see above" ;;
    esac
    ! look || [ "$state" = ready ] || return 1
    note "failed (exit code $code), trying again: $what"
    missed "gave up on: $what"
  done
}

# Several slices run one program, which none of them can join later: where only some run it, because
# a slice was replaced, it ends on all.
end_remnants() {
  local found
  [ "${#nodes[@]}" -gt 1 ] || return 0
  found="$(states)" || return
  case "$found" in
    *$'\n'running | running$'\n'*) each on all end ;;
  esac
}

survived() { # after a command failed: the state of a lost slice changes with a delay
  local i found
  for i in 1 2 3 4; do
    if look && [ "$state" != ready ]; then return 1; fi
    [ "$i" = 4 ] || sleep "$poll_seconds"
  done
  [ "${#nodes[@]}" -gt 1 ] || return 0
  found="$(states)" && [[ "$found" != *gone* ]] # a slice that was replaced knows of no command
}

# Return whether the command has come to its end on all slices. On a slice that is told of its
# preemption it ends with 143, and with 0 on the others, which save the checkpoint with it.
completed() {
  local found
  [ "${#nodes[@]}" -gt 1 ] || return 0
  found="$(states)" || return
  while [[ "$found" == *running* ]]; do
    sleep "$poll_seconds"
    found="$(states)" || return
  done
  [ -n "$dry_run" ] || [ "$found" = 0 ]
}

watch() { # set `status` to the command's exit status; 1 when the command, or a slice, is gone
  local lines=+1
  while :; do
    on "${nodes[0]}" 0 follow "$lines" || true
    lines=20
    status=""
    if [ -n "$dry_run" ]; then
      on "${nodes[0]}" 0 report
      status=0
    elif on "${nodes[0]}" 0 report >"$scratch/report"; then
      read -r status <"$scratch/report" || true
    fi
    case "$status" in
      running) misses=0 ;;
      gone) return 1 ;;
      [0-9]*)
        if [ "$status" = 0 ]; then
          completed || { survived || true; return 1; }
        elif [ "$status" != 2 ]; then
          survived || return 1
        fi
        [ -n "$dry_run" ] || tail -n +2 "$scratch/report"
        return 0
        ;;
      *)
        ! look || [ "$state" = ready ] || return 1
        note "worker 0 does not answer, trying again"
        missed "worker 0 of ${nodes[0]} does not answer"
        ;;
    esac
  done
}

run_on_slices() {
  trap 'note "$name keeps running; the same call attaches to it again, --stop ends it"; exit 130' INT
  run mkdir -p "$scratch"
  run git -C "$root" archive --format=tar.gz "--output=$scratch/tpo_jax.tar.gz" "$commit"
  while :; do
    provision
    note "installing $commit on ${nodes[*]}"
    attempt "copy of $commit" copy || continue
    attempt install each on all install "$commit" "$slices" ${buckets[@]+"${buckets[@]}"} || continue
    attempt "end of an earlier run" end_remnants || continue
    attempt start each on all start "$commit" "${job[@]}" || continue
    watch || continue
    break
  done
  [ "$status" = 0 ] || note "the command ended with exit code $status"
  [ -z "$delete_when_done" ] || delete_slices
  return "$status"
}

# --- GKE -----------------------------------------------------------------------------------------

run_on_gke() {
  local bucket command storage=()
  run mkdir -p "$scratch/source"
  run git -C "$root" archive "--output=$scratch/source.tar" "$commit"
  run tar -xf "$scratch/source.tar" -C "$scratch/source"
  run cp "$root/launch/tpu_worker.sh" "$scratch/source/"
  command="$(printf '%q ' bash tpu_worker.sh container "${job[@]}")"
  for bucket in ${buckets[@]+"${buckets[@]}"}; do storage+=("--storage=$bucket"); done
  run xpk workload create "--workload=$name" "--cluster=$cluster" "${where[@]}" \
    "--tpu-type=$accelerator" "--num-slices=$slices" --base-docker-image=python:3.11 \
    "--script-dir=$scratch/source" --max-restarts=50 "--command=${command% }" \
    ${storage[@]+"${storage[@]}"} ${create_flags[@]+"${create_flags[@]}"} ||
    fail 1 "xpk refused $name, see above"
}

# --- main ----------------------------------------------------------------------------------------

if [ "$action" = run ]; then
  : "${slices:=1}"
  check_accelerator
  read_job "$@"
elif [ $# -gt 0 ]; then
  fail 2 "--$action takes no command"
fi
case "$backend/$action" in
  xpk/run) run_on_gke ;;
  xpk/delete)
    run xpk workload delete "--workload=$name" "--cluster=$cluster" "${where[@]}" --force
    ;;
  tpu-vm/run) run_on_slices ;;
  *)
    look || fail 1 "gcloud cannot say what $name is, see above; logged in? right project and zone?"
    if [ "$state" = absent ] && [ -z "$dry_run" ]; then
      note "there is no $name in $zone"
    elif [ "$action" = stop ]; then
      each on all stop
    else
      delete_slices
    fi
    ;;
esac
