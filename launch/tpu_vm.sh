#!/usr/bin/env bash
# A run on a Cloud TPU slice of any size, made as a queued resource.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- --config=... --workdir=...]

Commands
  create    ask for the slice
  wait      wait until it is there
  setup     copy this checkout (git HEAD) to all hosts, install it, mount the bucket
  run       start the run on all hosts; with the same workdir it goes on where it stopped
  follow    show process 0's output
  stop      let the run save and leave (SIGTERM to one process is enough)
  delete    give the slice back
  launch    create, wait, setup and run; watch; do it all again after a preemption; delete at the end

Options
  --name=NAME       of the queued resource and its node
  --zone=ZONE       as us-west4-a
  --type=TYPE       accelerator type (v5litepod-16)
  --runtime=NAME    runtime version (v2-alpha-tpuv5-lite)
  --bucket=NAME     bucket that setup mounts on every host as /mnt/NAME
  --spot            cheaper, and preempted at any time
  --project=NAME    unless it is gcloud's own
  --dry-run         print the commands and run none

All hosts must see the same workdir, for example --workdir=/mnt/NAME/runs/vits with --bucket=NAME,
a bucket with a hierarchical namespace (there, renaming a folder is atomic).
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

# Prints a command as one would type it.
show() {
  local word line=""
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  echo "${line# }"
}

# Runs a command, or prints it.
call() {
  if $dry_run; then
    show "$@"
  else
    "$@"
  fi
}

on_hosts() { # WORKER COMMAND
  call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  local spot_flag=()
  $spot && spot_flag=(--spot)
  call gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot_flag[@]+"${spot_flag[@]}"}
}

state() {
  call gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

wait_until_active() {
  local now
  while true; do
    now=$(state)
    if $dry_run; then
      echo "$now"
      return
    fi
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING) fail "the queued resource $name is $now." ;;
    esac
    echo "$name: $now"
    sleep 30
  done
}

setup() {
  local archive=/tmp/resa_jax-$name.tar.gz mount=""
  if [[ -n $bucket ]]; then
    mount=" && sudo mkdir -p /mnt/$bucket && sudo chmod 777 /mnt/$bucket && (mountpoint -q"
    mount+=" /mnt/$bucket || gcsfuse --implicit-dirs $bucket /mnt/$bucket)"
  fi
  call git archive --format=tar.gz --output="$archive" HEAD
  call gcloud compute tpus tpu-vm scp "$archive" "$name:resa_jax.tar.gz" "${where[@]}" --worker=all
  # The hosts' own Python may be older than 3.11; uv brings one.
  on_hosts all "mkdir -p resa_jax && tar -xzf resa_jax.tar.gz -C resa_jax && cd resa_jax && \
curl -LsSf https://astral.sh/uv/install.sh | sh && \$HOME/.local/bin/uv venv --allow-existing \
--python=3.12 .venv && \$HOME/.local/bin/uv pip install --python=.venv -e '.[tpu]'$mount"
}

run() {
  ((${#arguments[@]})) || fail "--config and --workdir are needed after --."
  local command
  # A run that comes back after a preemption finds its programs compiled.
  command=$(show env "JAX_COMPILATION_CACHE_DIR=$workdir/compile_cache" \
    python -m resa_jax.main "${arguments[@]}")
  on_hosts all "cd resa_jax && source .venv/bin/activate && \
(nohup $command > run.log 2>&1 < /dev/null & echo \$! > run.pid)"
}

follow() {
  on_hosts 0 "tail -n 50 -F resa_jax/run.log"
}

stop() {
  on_hosts 0 "kill -TERM \$(cat resa_jax/run.pid)"
}

delete() {
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# running, finished, or ended before the last step
progress() {
  on_hosts 0 "if pgrep -F resa_jax/run.pid > /dev/null; then echo running; \
elif test -e $(show "$workdir/encoder/encoder.json"); then echo finished; else echo ended; fi"
}

launch() {
  local ended now
  while true; do
    create
    wait_until_active
    setup
    run
    ended=0
    while true; do
      if $dry_run; then
        state
        progress
        delete
        return
      fi
      sleep 60
      now=$(state || echo unknown)
      [[ $now != FAILED && $now != SUSPEND* ]] || break # preempted
      [[ $now == ACTIVE ]] || continue
      now=$(progress || echo unknown)
      echo "$name: $now"
      case $now in
        finished) delete; return ;;
        ended) ended=$((ended + 1)) ;;
      esac
      # A preempted process has ended well some time before its host is gone.
      ((ended < 5)) || fail "the run has ended before its last step; see: launch/tpu_vm.sh follow."
    done
    echo "$name was preempted; it is launched again and goes on from its last checkpoint."
    delete
  done
}

[[ ${1:-} != --help ]] || { usage; exit 0; }
command=${1:-}
shift || true
name="" zone="" type=v5litepod-16 runtime=v2-alpha-tpuv5-lite bucket="" project="" workdir=""
spot=false dry_run=false arguments=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) spot=true ;;
    --dry-run) dry_run=true ;;
    --help) usage; exit 0 ;;
    --) shift; arguments=("$@"); break ;;
    *) fail "$1 is no option of this script; see --help. Arguments of the run come after --." ;;
  esac
  shift
done
case $command in
  create | setup | run | follow | stop | delete | launch) ;;
  wait) command=wait_until_active ;;
  *) fail "give a command: create, wait, setup, run, follow, stop, delete or launch; see --help." ;;
esac
[[ -n $name && -n $zone ]] || fail "--name and --zone are needed."
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
if [[ $command == run || $command == launch ]]; then
  [[ ${arguments[*]-} == *--config=* && ${arguments[*]-} == *--workdir=* ]] ||
    fail "--config and --workdir are needed after --."
  for argument in "${arguments[@]}"; do
    [[ $argument != --workdir=* ]] || workdir=${argument#*=}
  done
fi
"$command"
