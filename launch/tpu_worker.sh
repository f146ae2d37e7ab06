#!/usr/bin/env bash
# The part of launch/tpu_run.sh that runs on a TPU worker, in the home directory it is copied to.
#
#   install COMMIT SLICES [BUCKET…]               mounts, source, environment
#   start COMMIT [NAME=VALUE…] -- COMMAND [ARG…]  in the background; survives the connection
#   follow LINES                                  the log on standard error, until the command ends
#   report                                        "running", "gone", or exit status and then its output
#   state                                         the first line of `report`
#   stop                                          SIGTERM, then wait for the end
#   end                                           SIGKILL, for what waits for machines that are gone
#   users [FILE…]                                 the processes that have the TPU, or those files, open
#   container [NAME=VALUE…] -- COMMAND [ARG…]     the command in the foreground (GKE)
set -euo pipefail

SOURCE="$HOME/tpo_jax" RUN="$HOME/tpo_jax_run" MOUNTS=/mnt/gcs

# After a restart of the machine the number may be another program's.
running() { [ -s "$RUN/pid" ] && grep -qas tpu_worker.sh "/proc/$(cat "$RUN/pid")/cmdline"; }

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc host=https://packages.cloud.google.com/apt codename
  # shellcheck source=/dev/null
  codename="$(. /etc/os-release && echo "$VERSION_CODENAME")"
  curl -fsSL "$host/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $host gcsfuse-$codename main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A fresh machine updates itself for some minutes and holds the lock meanwhile.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse
}

mount_bucket() { # BUCKET
  local point="$MOUNTS/$1"
  mountpoint -q "$point" && return
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo mkdir -p "$point"
  sudo chown "$(id -u):$(id -g)" "$point"
  # On TPU machines GCSFuse caches metadata without a limit by default; the hosts of a slice must see
  # at once what one of them writes.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$1" "$point" >&2
}

# Without these values each slice would train by itself, all of them in one working directory.
check_slices() { # SLICES: Google tells the machines of a request how many slices it has
  local url=http://metadata.google.internal/computeMetadata/v1/instance/attributes/tpu-env told
  [ "$1" -gt 1 ] || return 0
  told="$(curl -fsS -H 'Metadata-Flavor: Google' "$url")"
  if ! grep -Eq "^MEGASCALE_NUM_SLICES: *'?$1'?\$" <<<"$told" ||
    ! grep -q '^MEGASCALE_COORDINATOR_ADDRESS:' <<<"$told"; then
    echo "tpu_run: $(hostname) is not told that it is one of $1 slices; delete them with --delete" >&2
    return 2
  fi
}

install() { # COMMIT SLICES [BUCKET…]
  local bucket commit="$1"
  check_slices "$2"
  shift 2
  for bucket; do mount_bucket "$bucket"; done
  running && return # `start` says whether that is the same command
  mkdir -p "$SOURCE"
  if [ "$(cat "$SOURCE/.commit" 2>/dev/null)" != "$commit" ]; then
    find "$SOURCE" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    tar -xzf "$HOME/tpo_jax.tar.gz" -C "$SOURCE"
    echo "$commit" >"$SOURCE/.commit"
  fi
  cd "$SOURCE"
  # shellcheck source=launch/env.sh
  source launch/env.sh
  if ! find_python >/dev/null 2>&1; then
    # The images of TPU VMs come with Python 3.10.
    python3 -m pip install --quiet --user uv >&2
    "$HOME/.local/bin/uv" python install 3.11 >&2
    PYTHON="$("$HOME/.local/bin/uv" python find 3.11)"
    export PYTHON
  fi
  make_env tpu
}

# One line for every process that has one of the files open; patterns as find takes them.
users() { # [FILE…]
  local find=(find) names=() file link target pid
  [ "$#" -gt 0 ] || set -- /tmp/libtpu_lockfile '/dev/accel[0-9]*' '/dev/vfio/[0-9]*'
  for file; do names+=(-o -lname "$file"); done
  ! sudo -n true 2>/dev/null || find=(sudo -n find) # those of other users, too
  "${find[@]}" /proc/[0-9]*/fd -maxdepth 1 \( "${names[@]:1}" \) -printf '%p %l\n' 2>/dev/null |
    while read -r link target; do
      pid="${link#/proc/}" pid="${pid%%/*}"
      echo "process $pid ($(tr '\0' ' ' <"/proc/$pid/cmdline")) has $target open"
    done | awk '!seen[$2]++' || true # a process may end meanwhile
}

start() { # COMMIT [NAME=VALUE…] -- COMMAND [ARG…]
  local job found
  job="$(printf '%q ' "$@")"
  mkdir -p "$RUN"
  if running; then
    [ "$(cat "$RUN/job")" != "$job" ] || return 0
    echo "tpu_run: $(hostname) is busy with: $(cat "$RUN/job"). Wait, or end it with --stop" >&2
    return 2
  fi
  for _ in {1..30}; do # a process that was killed keeps the chips for some seconds
    found="$(users)"
    [ -n "$found" ] || break
    sleep 1
  done
  if [ -n "$found" ]; then
    echo "tpu_run: $(hostname): the TPU is in use: $found. Wait, or end it there with sudo kill" >&2
    return 2
  fi
  rm -f "$RUN/status"
  echo "$job" >"$RUN/job"
  setsid nohup bash "$0" run "$@" </dev/null >"$RUN/out" 2>"$RUN/log" &
  echo $! >"$RUN/pid"
}

# Run a command and return its exit status; 143 if it was asked to stop, even if it ended with 0.
run_command() { # [NAME=VALUE…] -- COMMAND [ARG…]
  local child="" module status=0 stopped=""
  trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM
  while [ "$1" != -- ]; do
    export "${1?}"
    shift
  done
  module="tpo_jax.$2"
  shift 2
  # shellcheck source=launch/env.sh
  source launch/env.sh
  make_env tpu || return
  python -m "$module" "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" # the signal came before there was a child
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # the signal ended `wait`, not the command
    status=0
    wait "$child" || status=$?
  done
  [ -z "$stopped" ] || status=143
  return "$status"
}

run() { # COMMIT [NAME=VALUE…] -- COMMAND [ARG…]
  local status=0
  shift
  cd "$SOURCE"
  run_command "$@" || status=$?
  echo "$status" >"$RUN/status.partial"
  mv "$RUN/status.partial" "$RUN/status"
}

follow() { tail -n "$1" -f --pid="$(cat "$RUN/pid")" "$RUN/log" >&2; }

state() {
  if [ -f "$RUN/status" ]; then
    cat "$RUN/status"
  elif running; then
    echo running
  else
    echo gone
  fi
}

report() {
  state
  [ ! -f "$RUN/status" ] || cat "$RUN/out"
}

end() {
  running || return 0
  kill -KILL -- "-$(cat "$RUN/pid")" # `start` made it the leader of its group
  while running; do sleep 1; done
}

stop() {
  running || return 0
  kill -TERM "$(cat "$RUN/pid")"
  while running; do sleep 1; done
}

main() { # ACTION [ARG…]
  local action="$1"
  shift
  case "$action" in
    install) install "$@" ;;
    start) start "$@" ;;
    run) run "$@" ;;
    follow) follow "$@" ;;
    report) report ;;
    state) state ;;
    stop) stop ;;
    end) end ;;
    users) users "$@" ;;
    container) run_command "$@" ;;
  esac
}

# On one line, and parsed completely before it runs: a newer copy may replace this file meanwhile.
{ main "$@"; exit; }
