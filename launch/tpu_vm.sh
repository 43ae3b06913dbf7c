#!/usr/bin/env bash
# A run on one or several Cloud TPU slices of any size, made as a queued resource.
# shellcheck disable=SC2329 # the last line calls the function that the command names
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
  launch    create, wait, setup, run and watch; again after each preemption; delete at the end

The slice
  --name=NAME                of the queued resource and its nodes
  --zone=ZONE                as us-west4-a
  --type=TYPE                accelerator type (v5litepod-16)
  --slices=N                 slices of that type, joined by the data center's network (1)
  --runtime=NAME             runtime version (by type)
  --spot, --reserved         cheaper and preempted at any time, or from a reservation
  --valid-until-duration=T   how long the request may wait, as 6h
  --network=NAME, --subnetwork=NAME, --service-account=EMAIL
  --internal-ips             no public addresses; ssh goes through Identity-Aware Proxy
  --project=NAME             unless it is gcloud's own

The run
  --env NAME=VALUE           environment variable of the run on all hosts; may be repeated
  --mount=BUCKET             setup mounts the bucket on every host as /mnt/BUCKET; also --bucket=
  --max-duration=T           time limit of one start, as 12h; then it saves and leaves

The launch
  --max-relaunches=N         how often a slice is asked for again after a preemption (100)
  --keep                     do not delete the slice at the end
  --dry-run                  print the commands and run none

All hosts must see the same workdir: gs://BUCKET/runs/vits needs no mount, /mnt/BUCKET/runs/vits
does, in a bucket with a hierarchical namespace (there, renaming a folder is atomic).
launch deletes the slice however it ends, also on Ctrl-C and SIGTERM. Its exit code is 0 when the
run has finished (or was stopped by `stop`), 2 for a mistake in its arguments or data, 124 at
--max-duration, and 1 when it gives up: an install or run that fails on a healthy slice is tried
five times more. docs/cloud.md goes through it step by step.
TEXT
}

fail() { # MESSAGE [CODE]
  echo "error: $1" >&2
  exit "${2:-2}"
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

# Runs a command, or prints it. While launching it runs in the background, where bash answers a
# signal at once and not only when the command has ended.
call() {
  local code=0
  if $dry_run; then
    show "$@"
  elif $launching; then
    "$@" &
    child=$!
    wait "$child" || code=$?
    child=""
    return "$code"
  else
    "$@"
  fi
}

on_hosts() { # all|0 COMMAND: on every host of every slice, or on the first
  call gcloud compute tpus queued-resources ssh "$name" "${where[@]}" "${ssh_options[@]}" \
    --node="$1" --worker="$1" --command="$2"
}

# https://cloud.google.com/tpu/docs/runtimes
runtime_of() { # TYPE
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "--type=$1 is not known; known are v2-N, v3-N, v4-N, v5litepod-N, v5p-N and v6e-N. For \
another give --runtime=NAME too." ;;
  esac
}

# Flags that hide the collectives behind computation, known to libtpu 0.0.42 (jax 0.10).
# All-gathers: the JAX documentation, docs.jax.dev/en/latest/xla_flags.html. All-reduces, and that
# most are libtpu's defaults by now: MaxText, benchmarks/xla_flags_library.py.
libtpu_flags() {
  local flags=(
    --xla_enable_async_all_gather=true # the columns of the loss
    --xla_enable_async_all_reduce=true # the gradients, the statistics of BatchNorm
    --xla_tpu_enable_async_collective_fusion=true # computation between a collective's start and end
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    --xla_tpu_overlap_compute_collective_tc=true # on chips of a single TensorCore too
  )
  ((slices == 1)) || flags+=( # all-reduces of data parallelism between slices
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    --xla_tpu_data_parallel_opt_different_sized_ops=true
  )
  echo "${flags[*]}"
}

create() {
  call gcloud compute tpus queued-resources create "$name" "${nodes[@]}" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" \
    ${create_options[@]+"${create_options[@]}"}
}

state() {
  call gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

# Whether the queued resource cannot become or be active any more.
is_lost() { # STATE
  [[ $1 == FAILED || $1 == SUSPEND* || $1 == DELETING ]]
}

wait_until_active() {
  local now before="" misses=0
  $dry_run && { state; return; }
  while true; do
    now=$(state) || now=unknown
    [[ $now == "$before" ]] || echo "$name: $now"
    before=$now
    [[ $now != ACTIVE ]] || return 0
    if is_lost "$now" || ((misses >= patience)); then return 1; fi
    if [[ $now == unknown ]]; then misses=$((misses + 1)); else misses=0; fi
    call sleep "$poll"
  done
}

setup() {
  local archive=/tmp/resa_jax-$name.tar.gz extras=tpu install
  [[ $workdir != gs://* ]] || extras=tpu,gcs
  # The hosts' own Python may be older than 3.11; uv brings one.
  install="set -e
mkdir -p resa_jax && tar -xzf resa_jax.tar.gz -C resa_jax && cd resa_jax
curl -LsSf --retry 5 https://astral.sh/uv/install.sh | sh
\$HOME/.local/bin/uv venv --allow-existing --python=3.12 .venv
\$HOME/.local/bin/uv pip install --python=.venv -e '.[$extras]'"
  # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
  [[ -z $bucket ]] || install+="
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl -LsSf --retry 5 \$packages/doc/apt-key.gpg | sudo tee \$key > /dev/null
  echo \"deb [signed-by=\$key] \$packages gcsfuse-\$(lsb_release -cs) main\" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -o DPkg::Lock::Timeout=600 update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
sudo mkdir -p /mnt/$bucket && sudo chmod 777 /mnt/$bucket
mountpoint -q /mnt/$bucket || gcsfuse --implicit-dirs $bucket /mnt/$bucket"
  call git archive --format=tar.gz --output="$archive" HEAD &&
    call gcloud compute tpus queued-resources scp "$archive" "$name:resa_jax.tar.gz" \
      "${where[@]}" "${ssh_options[@]}" --node=all --worker=all &&
    on_hosts all "$install"
}

run() {
  local command
  # A run that comes back after a preemption finds its programs compiled. env takes the last of
  # two values, so --env has its way.
  command=$(show timeout --foreground --signal=TERM --kill-after=600 "$max_duration" \
    env "LIBTPU_INIT_ARGS=$(libtpu_flags)" "JAX_COMPILATION_CACHE_DIR=$workdir/compile_cache" \
    ${variables[@]+"${variables[@]}"} python -m resa_jax.main "${arguments[@]}")
  command=$(show "$command & echo \$! > run.pid; wait \$!; echo \$? > run.code")
  # What an earlier start may have left holds the chips.
  on_hosts all "set -e
cd resa_jax && source .venv/bin/activate
test ! -e run.group || kill -KILL -- -\$(cat run.group) 2> /dev/null || true
rm -f run.code run.stopped
nohup setsid bash -c $command >> run.log 2>&1 < /dev/null &
echo \$! > run.group"
}

follow() {
  on_hosts 0 "tail -n 50 -F resa_jax/run.log"
}

stop() {
  on_hosts 0 "touch resa_jax/run.stopped && kill -TERM \$(cat resa_jax/run.pid)"
}

delete() {
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# running, or how process 0 has ended: stopped (by `stop`, with whatever code, as it may still have
# been starting), finished, ended (with 0, but before the last step, as a preempted run does),
# vanished (no exit code), or its exit code.
progress() {
  local exists="test -e"
  [[ $workdir != gs://* ]] || exists="python -c 'import sys; from etils import epath; \
sys.exit(not epath.Path(sys.argv[1]).exists())'"
  on_hosts 0 "cd resa_jax && source .venv/bin/activate
alive=false; if kill -0 \$(cat run.group) 2> /dev/null; then alive=true; fi
if test ! -e run.code; then if \$alive; then echo running; else echo vanished; fi
elif test -e run.stopped; then echo stopped
elif test \$(cat run.code) != 0; then cat run.code
elif $exists $(show "$workdir/encoder/encoder.json"); then echo finished
else echo ended; fi"
}

# Waits for the end of the run and leaves in $end what progress calls it, or "lost" for the slice.
watch() {
  local now misses=0 codes
  $dry_run && { state && progress; end=finished; return; }
  while true; do
    call sleep "$poll"
    now=$(state) || now=unknown
    if is_lost "$now"; then end=lost && return; fi
    end=$(progress | tail -n 1) || end=""
    if [[ $end == running ]]; then misses=0 && continue; fi
    [[ -z $end ]] || break
    if ((++misses >= patience)); then end=lost && return; fi
  done
  echo "$name: the run: $end"
  [[ $end != finished && $end != stopped ]] || return 0
  call sleep "$poll" # until all have ended
  # A mistake, or the end of the time, on one host ends the others with a code of another kind.
  codes=$(on_hosts all "cat resa_jax/run.code || true") || codes=""
  if grep -qx 2 <<< "$codes"; then end=2; elif grep -qx 124 <<< "$codes"; then end=124; fi
  on_hosts all "grep -qx 0 resa_jax/run.code || tail -n 20 resa_jax/run.log" || true
}

# The end of a launch, whatever its reason: nothing is left that costs money.
clean_up() {
  local code=$?
  trap '' INT TERM HUP
  [[ -z $child ]] || kill "$child" 2> /dev/null || true
  launching=false
  $created || exit "$code"
  if $keep; then
    echo "$name is kept; end it by: launch/tpu_vm.sh delete $(show --name="$name" "${where[@]}")"
    exit "$code"
  fi
  delete || { sleep "$poll" && delete; } ||
    fail "$name could not be deleted and may cost money: launch/tpu_vm.sh delete $(show \
      --name="$name" "${where[@]}")" 1
  exit "$code"
}

provision() { # RELAUNCHES
  created=true
  if ! create; then
    # Nothing was made; or a slice of this name is there already and is not to be deleted here.
    ((relaunches)) || { created=false && fail "$name could not be created." 1; }
    return 1
  fi
  wait_until_active
}

launch() {
  local phase=create relaunches=0 failures=0 tries=0
  launching=true
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  trap clean_up EXIT
  while true; do
    end=""
    case $phase in
      create) if provision; then phase=setup; else end=lost; fi ;;
      setup) if setup; then phase=run tries=0; else end="failed install"; fi ;;
      run) if run; then watch; else end="failed start"; fi ;;
    esac
    case $end in
      "") continue ;;
      finished | stopped) return ;;
      2) fail "the run ended with code 2, a mistake that another start would repeat." ;;
      124) fail "the run saved and left after --max-duration=$max_duration; the same command goes \
on from there." 124 ;;
    esac
    # A failure may be the first sign of a preemption.
    if [[ $end != lost ]]; then
      call sleep "$poll"
      if is_lost "$(state || true)"; then end=lost; fi
    fi
    if [[ $end == lost ]]; then
      ((++relaunches <= max_relaunches)) || fail "$name was lost $relaunches times; it gives up." 1
      echo "$name was preempted or failed; it is asked for again ($relaunches of $max_relaunches)."
      delete || true
      phase=create
    else
      ((++failures <= 5)) || fail "$end, $failures times on a healthy slice; it gives up." 1
      echo "$name: $end; it is tried again ($failures of 5)."
    fi
    # Twice as long each time without a run in between, 64 minutes at most.
    tries=$((tries < 7 ? tries + 1 : 7))
    call sleep $((poll << tries))
  done
}

[[ ${1:-} != --help ]] || { usage; exit 0; }
command=${1:-}
shift || true
name="" zone="" type=v5litepod-16 runtime="" bucket="" project="" workdir="" slices=1 max_duration=0
max_relaunches=100 keep=false dry_run=false spot=false reserved=false
create_options=() variables=() arguments=() ssh_options=(--quiet)
launching=false created=false child="" end=""
poll=${RESA_JAX_POLL_SECONDS:-30} # between two looks at a slice
patience=60                       # looks without an answer until it counts as lost
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --bucket=* | --mount=*) bucket=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) spot=true && create_options+=("$1") ;;
    --reserved) reserved=true && create_options+=("$1") ;;
    --valid-until-duration=* | --network=* | --subnetwork=* | --service-account=*)
      create_options+=("$1") ;;
    --internal-ips) create_options+=("$1") && ssh_options+=(--tunnel-through-iap) ;;
    --env) set -- "--env=${2-}" "${@:3}" && continue ;;
    --env=*)
      [[ ${1#*=} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "$1 must be --env NAME=VALUE."
      variables+=("${1#*=}") ;;
    --max-duration=*) max_duration=${1#*=} ;;
    --max-relaunches=*) max_relaunches=${1#*=} ;;
    --keep) keep=true ;;
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
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices must be a positive number."
[[ $max_relaunches =~ ^[0-9]+$ ]] || fail "--max-relaunches=$max_relaunches must be a whole number."
[[ $max_duration =~ ^[0-9.]+[smhd]?$ ]] || fail "--max-duration=$max_duration must look like 12h."
! $spot || ! $reserved || fail "--spot and --reserved exclude each other."
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
nodes=(--node-id="$name")
# Nodes NAME-0, NAME-1 and so on. Their hosts learn of each other from Cloud TPU, and JAX reads it
# there (MEGASCALE_*: jax/_src/clusters/cloud_tpu_cluster.py).
((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
if [[ $command == create || $command == launch ]]; then
  [[ $type != v7* && $type != tpu7* ]] || fail "--type=$type: queued resources have no TPU7x; use \
Google Kubernetes Engine (GKE) for it, see launch/README.md."
  [[ -n $runtime ]] || runtime=$(runtime_of "$type")
fi
for argument in ${arguments[@]+"${arguments[@]}"}; do
  [[ $argument != --workdir=* ]] || workdir=${argument#*=}
done
if [[ $command == run || $command == launch ]]; then
  [[ ${arguments[*]-} == *--config=* && -n $workdir ]] ||
    fail "--config and --workdir are needed after --."
fi
"$command"; exit # on one line: bash reads no further, should this file change during a long launch
