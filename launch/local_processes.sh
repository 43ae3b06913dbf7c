#!/usr/bin/env bash
# One run on several real processes of this machine, with virtual CPU devices: to try out here what
# a cluster will do.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/local_processes.sh [OPTIONS] -- --config=FILE.py[:VARIANT] --workdir=DIR [...]

  --processes=N   processes (2)
  --devices=N     CPU devices of each process (1)
  --port=N        port of process 0 (a free one)
  --dry-run       print the commands and run none
  --help          print this

What follows -- goes to python -m resa_jax.main. The processes' numbers and ids are printed first, so
that one can be sent a signal. SIGTERM or Ctrl-C here lets all save and leave, a second one kills
them. When one process fails, all are killed and the exit code is the failed one's.
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

processes=2 devices=1 port="" dry_run=false
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "$1 is no option of this script; see --help. Arguments of the run come after --." ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes=$processes must be a positive number."
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices must be a positive number."
[[ $* == *--config=* && $* == *--workdir=* ]] || fail "--config and --workdir are needed after --."

if [[ -z $port ]]; then
  port=12345
  $dry_run || port=$(python -c \
    'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
children=()
for ((id = 0; id < processes; id++)); do
  command=(python -m resa_jax.main "$@" "--coordinator_address=127.0.0.1:$port"
    "--num_processes=$processes" "--process_id=$id")
  if $dry_run; then
    echo "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices $(show "${command[@]}") &"
    continue
  fi
  "${command[@]}" &
  children+=($!)
  echo "process $id: $!"
done
$dry_run && exit 0

# The first TERM or INT lets the processes save and leave, the second kills them.
signalled=0
stop() {
  signalled=$((signalled + 1))
  local signal=TERM
  ((signalled == 1)) || signal=KILL
  kill "-$signal" "${children[@]}" 2>/dev/null || true
}
trap stop TERM INT
trap 'kill -KILL "${children[@]}" 2>/dev/null || true; wait' EXIT

left=$processes
while ((left)); do
  code=0 seen=$signalled
  wait -n "${children[@]}" || code=$?
  ((signalled == seen)) || continue # a signal to this script, not the end of a process
  if ((code)); then
    echo "error: a process ended with code $code; the others are killed." >&2
    exit "$code"
  fi
  left=$((left - 1))
done
