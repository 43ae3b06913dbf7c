"""A stand-in for gcloud and for the hosts of a TPU slice: what `launch/tpu_vm.sh` is tried against.

The queued resource is a folder, its hosts are folders in it, and ssh runs its command with bash in
each of them, so that quoting, exit codes and processes are real. Every slice that is created
plays its own part: the states that it goes through, how its install ends and how its run ends.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
# What is begun with SIGINT ignored, as in the background, cannot catch it.
_INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])
"""

# Runs until the host is gone, as a run does that is never finished; SIGTERM ends it with 0.
LOOP = "while test -e $HOME/resa_jax; do sleep 0.05; done"
FOREVER = f"trap 'exit 0' TERM; {LOOP}"
FINISHED = 'mkdir -p "$workdir/encoder" && touch "$workdir/encoder/encoder.json"'

GCLOUD = r"""#!/usr/bin/env bash
printf '%s\037' "$@" >> $CLOUD/calls && printf '\036' >> $CLOUD/calls # separators of ASCII
slice=$(ls $CLOUD/slices | wc -l)
option() { local a; for a; do [[ $a != "$name="* ]] || printf %s "${a#*=}"; done; }
hosts() {
  local node worker
  for node in $CLOUD/hosts/*; do for worker in $node/*; do
    [[ $2 == all || $2 == "${node##*/}" ]] && [[ $3 == all || $3 == "${worker##*/}" ]] &&
      echo $worker
  done; done
}
case "$3 $4" in
  "queued-resources create")
    [[ ! -e $CLOUD/hosts ]] || { echo "ALREADY_EXISTS: $5" >&2; exit 1; }
    count=$(name=--node-count option "$@")
    slice=$((slice + 1)) && mkdir $CLOUD/slices/$slice
    for ((node = 0; node < ${count:-1}; node++)); do mkdir -p $CLOUD/hosts/$node/{0,1}; done
    ;;
  "queued-resources describe")
    [[ -e $CLOUD/hosts ]] || { echo "NOT_FOUND: $5" >&2; exit 1; }
    states=$CLOUD/states.$slice
    head -n 1 $states
    [[ $(wc -l < $states) == 1 ]] || sed -i 1d $states
    ;;
  "queued-resources delete")
    rm -rf $CLOUD/hosts.gone && mv $CLOUD/hosts $CLOUD/hosts.gone ;;
  "queued-resources scp")
    for host in $(hosts x all all); do cp "$5" $host/${6#*:} || exit; done ;;
  "queued-resources ssh")
    code=0
    node=$(name=--node option "$@") worker=$(name=--worker option "$@")
    for host in $(hosts x $node $worker); do
      (cd $host && HOME=$host PATH=$CLOUD/host_bin:$PATH \
        SLICE=$slice bash -c "$(name=--command option "$@")" < /dev/null) || code=$?
    done
    exit $code
    ;;
  *) echo "no such command: $*" >&2; exit 2 ;;
esac
"""

UV = r"""#!/usr/bin/env bash
echo "$@" >> $CLOUD/installs
if [[ $1 == venv ]]; then
  mkdir -p .venv/bin && echo "PATH=$PWD/.venv/bin:\$PATH" > .venv/bin/activate
  cp $CLOUD/host_bin/python .venv/bin/python
else
  source $CLOUD/install.$SLICE
fi
"""

PYTHON = r"""#!/usr/bin/env bash
[[ $1 != -c ]] || exec test -e "$CLOUD/finished" # whether an object of a bucket exists
for a; do [[ $a != --workdir=* ]] || workdir=${a#*=}; done
record=$(mktemp -d $CLOUD/record.XXXXXX)
env -0 > $record/environment
printf '%s\0' "$@" > $record/arguments
mkdir -p $CLOUD/runs && mv $record $CLOUD/runs
source $CLOUD/run.$SLICE
"""

OTHERS = {
    "curl": "echo 'mkdir -p $HOME/.local/bin && cp $CLOUD/host_bin/uv $HOME/.local/bin'",
    "sudo": 'echo "$@" >> $CLOUD/sudo; [[ $1 != tee ]] || cat > /dev/null\n'
    "[[ $* != *install* ]] || cp $CLOUD/host_bin/curl $CLOUD/host_bin/gcsfuse",
    "lsb_release": "echo jammy",
    "mountpoint": "exit 1",
}


class Cloud:
    """The stand-in, in a folder; `play` says what each slice in turn will do."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "slices").mkdir(parents=True)
        self._program("bin/gcloud", GCLOUD)
        self._program("host_bin/uv", UV)
        self._program("host_bin/python", PYTHON)
        for name, text in OTHERS.items():
            self._program(f"host_bin/{name}", f"#!/usr/bin/env bash\n{text}\n")
        self.environment = os.environ | {
            "CLOUD": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "RESA_JAX_POLL_SECONDS": "0",
        }
        self._played = 0
        self._processes = []

    def _program(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def play(self, states=("ACTIVE",), *, install="true", run=FINISHED):
        """The next slice's part: states, one for each look, and bash for its install and run."""
        self._played += 1
        (self.folder / f"states.{self._played}").write_text("".join(f"{s}\n" for s in states))
        (self.folder / f"install.{self._played}").write_text(install)
        (self.folder / f"run.{self._played}").write_text(run)

    def start(self, *arguments) -> subprocess.Popen:
        """Starts launch/tpu_vm.sh with these arguments, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-c", _INTERRUPTIBLE, ROOT / "launch" / "tpu_vm.sh", *arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def close(self):
        """Ends what a failed test may have left."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if self.exists:
            (self.folder / "hosts").rename(self.folder / "hosts.closed")

    def __call__(self, *arguments) -> subprocess.CompletedProcess:
        """Runs launch/tpu_vm.sh to its end."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    @property
    def calls(self) -> list[str]:
        """The calls of gcloud so far: create, describe, scp, ssh, delete."""
        return [words[3] for words in self.commands]

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each call of gcloud so far."""
        path = self.folder / "calls"
        calls = path.read_text().split("\x1e")[:-1] if path.exists() else []
        return [call.split("\x1f")[:-1] for call in calls]

    @property
    def exists(self) -> bool:
        """Whether there is a slice now, which costs money."""
        return (self.folder / "hosts").exists()

    @property
    def installs(self) -> str:
        return (self.folder / "installs").read_text()

    def starts(self, expected: int) -> int:
        """How many runs were started. Hosts do it in the background, so it waits for that many."""
        end = time.monotonic() + 20
        while len(self.runs) < expected and time.monotonic() < end:
            time.sleep(0.05)
        return len(self.runs)

    @property
    def runs(self) -> list[tuple[list[str], dict[str, str]]]:
        """Arguments and environment of each start of the run on each host."""
        return [
            (
                (record / "arguments").read_text().split("\0")[:-1],
                dict(
                    pair.split("=", 1)
                    for pair in (record / "environment").read_text().split("\0")[:-1]
                ),
            )
            for record in sorted((self.folder / "runs").glob("*"))
        ]
